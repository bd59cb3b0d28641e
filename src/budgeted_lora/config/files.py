"""A scale as its YAML files say it, before any value is judged: what it extends, and how the two are merged."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from budgeted_lora.errors import BadInput

WHOLE = frozenset({"tables", "teacher_ladder"})  # replaced, not merged key by key
COMMAND_LINE = "--config"
Layer = tuple[str, dict[str, Any]]  # a file's name, or where else values are from, and what it says


class Loader(yaml.SafeLoader):
    """YAML in which a key may stand once: the usual loader takes the last of them without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                problem = f"key {key.value} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge key by key, anything else replaces; null removes the key."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and key not in WHOLE:
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def scales_in(folder: Path) -> list[str]:
    """Names of the scale files of a folder: those with a `scale:` of their own, which every one of them has."""
    files = sorted(folder.glob("*.yaml"))
    return [path.stem for path in files if re.search(r"^scale:", path.read_text(encoding="utf-8"), re.MULTILINE)]


def read_layers(path: Path | str, overrides: dict[str, Any] | None = None) -> list[Layer]:
    """A scale file and those it `extends:`, one by way of another, by name: the file itself first, or the overrides.

    Raises:
        BadInput: a file is missing or not a YAML mapping, scales extend each other in a ring, or the file does not
            say its own name. The name of a file that is extended counts for nothing, whatever it is: two scales of one
            name would share a folder of results, and what one of them no longer lists would be pruned from the other.
    """
    path, chain, layers = Path(path), [], []
    while True:
        if path in chain:
            raise BadInput(f"{path}: extends itself by way of {', '.join(p.name for p in chain)}")
        chain.append(path)
        values = read_mapping(path)
        parent = values.pop("extends", None)
        if not layers:
            check_name(path, values.get("scale"))
        else:
            values.pop("scale", None)
        layers.append((path.name, values))
        if parent is None:
            return [(COMMAND_LINE, overrides), *layers] if overrides else layers
        if not isinstance(parent, str):
            raise BadInput(f"{path}: extends is {parent!r}, expected the name of one scale beside it")
        path = path.parent / f"{parent}.yaml"


def read_mapping(path: Path) -> dict[str, Any]:
    """The settings of one file.

    Raises:
        BadInput: it is missing, no YAML, no mapping, or has a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        known = ", ".join(scales_in(path.parent)) or "none"
        raise BadInput(f"{path}: no such scale file; expected one of: {known}") from None
    except yaml.constructor.ConstructorError as error:
        raise BadInput(f"{path}, line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}, line {line}: not YAML ({error.problem})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def check_name(path: Path, name: object) -> None:
    """Refuses a scale that is not named after its file.

    Raises:
        BadInput: it has no name, or another one.
    """
    if name is None:
        raise BadInput(f"{path}: scale is missing, expected `scale: {path.stem}`, the name of the file")
    if name != path.stem:
        raise BadInput(
            f"{path}: scale is {name!r}, expected {path.stem}, the name of the file: results lie in results/<scale>, "
            "and a copy that kept its old name would write into the other's"
        )


def read_scale(path: Path | str) -> dict[str, Any]:
    """A scale file with what it `extends:` merged under it; errors as in `read_layers`."""
    return merged_layers(read_layers(path))


def merged_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """Layers, the topmost first, as one mapping."""
    merged: dict[str, Any] = {}
    for _, values in reversed(layers):
        merged = merge(merged, values)
    return merged


def said_elsewhere(layers: Sequence[Layer], path: tuple[str | int, ...]) -> str:
    """A remark on which other file, or the command line, decides what stands at a path of keys; empty if the file."""
    own = next(name for name, _ in layers if name != COMMAND_LINE)
    source = decider(layers, path) or own
    return "" if source == own else f" (said in {source})"


def decider(layers: Sequence[Layer], path: tuple[str | int, ...]) -> str | None:
    """Name of the topmost layer that has a path of keys, or most of the way to it."""
    for length in range(len(path) if path and path[0] not in WHOLE else 1, 0, -1):
        for name, values in layers:
            found: Any = values
            for part in path[:length]:
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return name
    return None
