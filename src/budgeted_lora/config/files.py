"""Scale files as plain YAML, before values are checked: what a scale extends, and how the files are merged."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from budgeted_lora.errors import BadInput

WHOLE = frozenset({"tables", "teacher_ladder"})  # replaced, not merged key by key
COMMAND_LINE = "--config"
MOST_VALUES = 100_000  # in one file, each as often as the file refers to it
Layer = tuple[str, dict[str, Any]]  # a file's name, or COMMAND_LINE, and its values


class Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; the usual loader silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                problem = f"key {key.value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top: mappings merge key by key, other values replace, and null removes the key."""
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


def read_layers(path: Path | str, overrides: dict[str, Any] | None = None) -> list[Layer]:
    """A scale file and the chain of files it `extends:`, topmost first; overrides, if any, come before the file.

    Raises:
        BadInput: a file is missing or not a YAML mapping, scales extend each other in a ring, or the file's `scale:`
            is not its own name. Two scales of one name would share a folder of results, and `prune` in one would
            remove the other's cells. The `scale:` of an extended file is ignored.
    """
    path, chain, layers = Path(path), [], []
    while True:
        if path in chain:
            raise BadInput(f"{path}: extends itself through {', '.join(p.name for p in chain)}")
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
    """The values of one file. Raises BadInput if the file is missing, not YAML, not a mapping, or has a key twice."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
        refuse_endless(values)
    except FileNotFoundError:
        scales = sorted(path.parent.glob("*.yaml"))
        files = {file.stem: file.read_text(encoding="utf-8", errors="replace") for file in scales}
        known = ", ".join(name for name, text in files.items() if re.search(r"^scale:", text, re.MULTILINE))
        raise BadInput(f"{path}: no such scale file; expected one of: {known or 'none'}") from None
    except yaml.constructor.ConstructorError as error:
        raise BadInput(f"{path}, line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}, line {line}: not YAML ({error.problem})") from None
    except RecursionError:
        raise BadInput(f"{path}: not YAML that can be read (nested too deeply)") from None
    except (yaml.YAMLError, ValueError) as error:  # also dates that are none, and numbers of thousands of digits
        raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values


def refuse_endless(values: Any) -> None:
    """Refuses what a few lines of references (`&a [*a, *a]`) stand for, if it is without end or far too much.

    Raises:
        RecursionError: a value contains itself, or is nested too deeply.
        ValueError: there are more than `MOST_VALUES`.
    """
    count = 0

    def visit(value: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            visit(inside)

    visit(values)


def check_name(path: Path, name: object) -> None:
    """Refuse a scale that is not named after its file. Raises BadInput if the name is missing or different."""
    if name is None:
        raise BadInput(f"{path}: scale is missing, expected `scale: {path.stem}`, the name of the file")
    if name != path.stem:
        raise BadInput(
            f"{path}: scale is {name!r}, expected {path.stem}, the name of the file: results are in results/<scale>, "
            "and a copy with its old name would write into the original's folder"
        )


def merged_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """Layers, the topmost first, as one mapping."""
    merged: dict[str, Any] = {}
    for _, values in reversed(layers):
        merged = merge(merged, values)
    return merged


def origin_note(layers: Sequence[Layer], path: tuple[str | int, ...]) -> str:
    """Where the value at a path of keys comes from, if that is another file or the command line; else empty."""
    own = next(name for name, _ in layers if name != COMMAND_LINE)
    source = origin(layers, path) or own
    return "" if source == own else f" (given in {source})"


def origin(layers: Sequence[Layer], path: tuple[str | int, ...]) -> str | None:
    """Name of the topmost layer with a value at a path of keys, or else at the longest part of the path."""
    for length in range(len(path) if path and path[0] not in WHOLE else 1, 0, -1):
        for name, values in layers:
            value: Any = values
            for part in path[:length]:
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return name
    return None
