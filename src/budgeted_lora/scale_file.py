"""A scale as its YAML files say it, before any value is judged: what it extends, and how the two are merged."""

import re
from pathlib import Path
from typing import Any

import yaml

from budgeted_lora.errors import BadInput


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge key by key, anything else replaces; null removes the key."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in {"tables", "teacher_ladder"}:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def scales_in(folder: Path) -> list[str]:
    """Names of the scale files of a folder: those with a `scale:` of their own, which every one of them has."""
    files = sorted(folder.glob("*.yaml"))
    return [path.stem for path in files if re.search(r"^scale:", path.read_text(encoding="utf-8"), re.MULTILINE)]


def read_scale(path: Path | str) -> dict[str, Any]:
    """A scale file with what it `extends:` merged under it.

    Raises:
        BadInput: a file is missing or not a YAML mapping, or scales extend each other in a ring.
    """
    path, chain, layers = Path(path), [], []
    while True:
        if path in chain:
            raise BadInput(f"{path}: extends itself by way of {', '.join(p.name for p in chain)}")
        chain.append(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(scales_in(path.parent)) or "none"
            raise BadInput(f"{path}: no such scale file; expected one of: {known}") from None
        except yaml.YAMLError as error:
            raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(values, dict):
            raise BadInput(f"{path}: expected a mapping of settings, found {type(values).__name__}")
        parent = values.pop("extends", None)
        if layers:
            values.pop("scale", None)  # a name is not inherited: two scales would share one folder of results
        layers.append(values)
        if parent is None:
            break
        path = path.parent / f"{parent}.yaml"
    merged: dict[str, Any] = {}
    for values in reversed(layers):
        merged = merge(merged, values)
    return merged
