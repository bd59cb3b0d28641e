"""What is wrong with a configuration, in words: pydantic's errors as one line that a person can act on."""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]
ROW_CHARACTERS = 90  # of a row's text in a message
VALUE_CHARACTERS = 60
FEW_KEYS = 12  # a section of so many is listed whole where none is near


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the keys that lead to it."""

    path: Path
    text: str


@dataclass(frozen=True)
class Spot:
    """Where a location of pydantic's leads: the keys as the file has them, the type there, and pydantic's own rest."""

    path: Path
    annotation: Any
    metadata: list[Any]
    rest: tuple[str | int, ...]


def describe(error: ValidationError, model: type[BaseModel] | None = None, values: Any = None) -> str:
    """A pydantic error as one line: for each key the value found and what was expected.

    Args:
        model: what was validated; without it unknown keys get no suggestion and types pydantic's words.
        values: what it was validated from, to show a value whole.
    """
    if model is None:
        return "; ".join(dict.fromkeys(map(plainly, error.errors())))
    return "; ".join(problem.text for problem in problems(error, model, values))


def problems(error: ValidationError, model: type[BaseModel], values: Any = None) -> list[Problem]:
    """What is wrong, each key once, in the order of the model."""
    found: dict[Path, list[tuple[Spot, dict[str, Any]]]] = {}
    for item in error.errors():
        spot = resolve(model, item["loc"])
        found.setdefault(item["loc"] if item["type"] == "extra_forbidden" else spot.path, []).append((spot, item))
    return [Problem(path, one_problem(items, model, values)) for path, items in found.items()]


def plainly(item: Mapping[str, Any]) -> str:
    """An error of a model that is not known here."""
    key = ".".join(map(str, item["loc"])) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if item["type"] == "missing":
        return f"{key} is missing"
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    return f"{key} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def one_problem(items: list[tuple[Spot, dict[str, Any]]], model: type[BaseModel], values: Any) -> str:
    """The sentence for all that pydantic has to say of one key: a union tells of each of its types."""
    spot, item = items[0]
    if item["type"] == "extra_forbidden":
        return unknown_key(spot, str(item["loc"][-1]), model, values)
    if item["type"] == "value_error":
        text = item["msg"].removeprefix("Value error, ")
        named = not spot.path or text.startswith(str(spot.path[0]))
        return text if named else f"{place(spot.path, values)}: {text}"
    if item["type"] == "missing" and not spot.rest:
        return f"{place(spot.path, values)} is missing, expected {expected(spot.annotation, spot.metadata)}"
    if "[key]" in spot.rest or item["type"] == "invalid_key":
        keys = item["loc"][: item["loc"].index("[key]")] if "[key]" in spot.rest else item["loc"]
        return f"the name {dotted(keys)} is no text; put it in quotes"
    return wrong_value([item for _, item in items], spot, values)


def wrong_value(items: Sequence[Mapping[str, Any]], spot: Spot, values: Any) -> str:
    """A value of the wrong kind or out of range."""
    found = value_at(values, spot.path, items[0]["input"])
    said = f"{place(spot.path, values)} is {shown(found)}"
    if items[0]["type"] == "too_short" and not spot.rest:
        return f"{said}, expected at least {items[0]['ctx']['min_length']} entry"
    if isinstance(found, list) and not takes_list(spot.annotation) and not has_keys(spot.annotation):
        several = "one value a row; write one row for each" if of_row(spot.path) else "one value, not a list"
        return f"{said}, which takes {several}"
    inside = [item["input"] for item in items if any(isinstance(part, int) for part in item_rest(item, spot))]
    wanted = expected(spot.annotation, spot.metadata)
    if isinstance(found, list) and inside and inside[0] is not found:
        return f"{said}, expected {element(spot.annotation) or wanted}, found {shown(inside[0])} in it"
    return f"{said}, expected {wanted}{hint(found, spot.annotation)}"


def item_rest(item: Mapping[str, Any], spot: Spot) -> tuple[str | int, ...]:
    """What pydantic's location says beyond the key: the branch of a union, the place in a list."""
    return tuple(item["loc"][len(spot.path) :])


def unknown_key(spot: Spot, name: str, model: type[BaseModel], values: Any) -> str:
    """An unknown key with the nearest known one, or where else a key of that name stands."""
    known = list(spot.annotation.model_fields)
    prefix = "" if of_row(spot.path) or not spot.path else f"{dotted(spot.path)}."
    where = f"{place(spot.path, values)}: " if of_row(spot.path) else ""
    said = f"{where}unknown key {prefix}{name}"
    section, _, inside = name.partition(".")
    if section in known and inside:
        return f"{said}; a key of a section is written `{section}: {{{inside}: ...}}`"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"{said}; did you mean {prefix}{close[0]}?"
    others = list(keys_named(model, name))
    if others:
        return f"{said}; there is {' and '.join(others)}"
    whose = "a row" if of_row(spot.path) else f"section {dotted(spot.path)}" if spot.path else "the top level"
    if len(known) <= FEW_KEYS:
        return f"{said}; the keys of {whose} are {', '.join(known)}"
    return f"{said}; config/README.md lists the keys of {whose}"


def keys_named(model: type[BaseModel], name: str, prefix: str = "") -> Iterator[str]:
    """Every section's key of this name, with dots between."""
    for key, field in model.model_fields.items():
        if key == name:
            yield f"{prefix}{key}"
        if is_section(field.annotation):
            yield from keys_named(field.annotation, name, f"{prefix}{key}.")


# --- where


def resolve(model: type[BaseModel], location: Path) -> Spot:
    """Follows a location of pydantic's through sections, named entries and rows, as far as the file's own keys go."""
    annotation, metadata = model, []
    for depth, part in enumerate(location):
        if is_section(annotation):
            if part not in annotation.model_fields:
                return Spot(location[:depth], annotation, metadata, location[depth:])
            field = annotation.model_fields[part]
            annotation, metadata = whole(field.annotation), list(field.metadata)
        elif get_origin(annotation) is dict or is_rows(annotation):
            annotation, metadata = whole(get_args(annotation)[-1]), []
        else:
            return Spot(location[:depth], annotation, metadata, location[depth:])
    return Spot(location, annotation, metadata, ())


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_rows(annotation: Any) -> bool:
    """Whether entries of this list have keys of their own."""
    return get_origin(annotation) is list and is_section(get_args(annotation)[0])


def has_keys(annotation: Any) -> bool:
    return is_section(annotation) or get_origin(annotation) is dict


def whole(annotation: Any) -> Any:
    """The section of an annotation that may be empty; any other as it is."""
    sections = [part for part in get_args(annotation) if is_section(part)] if is_union(annotation) else []
    return sections[0] if len(sections) == 1 else annotation


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (types.UnionType, typing.Union)


def of_row(path: Path) -> bool:
    """Whether a path leads into a row of a table."""
    return len(path) >= 3 and path[0] == "tables"


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))


def place(path: Path, values: Any) -> str:
    """A key as a person finds it: rows by table, number from 1 and text, anything else with dots."""
    if not of_row(path):
        return dotted(path) or "the configuration"
    row = row_place(str(path[1]), int(path[2]) + 1, value_at(values, path[:3], None))
    return row + (f": {dotted(path[3:])}" if path[3:] else "")


def row_place(table: str, number: int, row: Any) -> str:
    """A row of a table: `tables.table2, row 3 {method: kd_lora, rank: 9}`."""
    text = f" {shown(row, limit=ROW_CHARACTERS)}" if isinstance(row, Mapping) else ""
    return f"tables.{table}, row {number}{text}"


def value_at(values: Any, path: Path, default: Any) -> Any:
    """What stands at a path of nested mappings and lists."""
    if values is None:
        return default
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return default
    return values


def shown(value: Any, *, limit: int = VALUE_CHARACTERS) -> str:
    """A value as YAML has it on one line, cut where it is long; text in quotes where it stands alone."""
    text = repr(value) if isinstance(value, str) else in_yaml(value)
    return text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."


def in_yaml(value: Any) -> str:
    """A value as one would write it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {in_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(in_yaml(item) for item in value) + "]"
    return str(value)


# --- what was expected


def expected(annotation: Any, metadata: list[Any]) -> str:
    """What a key takes, in the words of config/README.md."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(arguments[0], [*metadata, *_constraints(arguments[1:])])
    if is_section(annotation):
        return "a mapping, `{key: value, ...}`"
    if origin is dict:
        return "a mapping of names, `{name: ...}`"
    if is_rows(annotation):
        return "a list of rows, each `- {key: value, ...}`"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list of {len(arguments)} values, each {expected(arguments[0], [])}"
    if origin is list:
        return f"a list, each value {expected(arguments[0], [])}"
    if is_union(annotation):
        parts = [part for part in arguments if part is not type(None)]
        said = ["a list" if get_origin(part) is list else expected(part, metadata) for part in parts]
        return " or ".join(dict.fromkeys(said))
    text = type_in_words(annotation, metadata)
    return f"a {text}" if text.startswith(("whole number", "number")) else text


def element(annotation: Any) -> str:
    """What each value of a list must be; empty where that is not one kind."""
    parts = get_args(annotation) if is_union(annotation) else [annotation]
    lists = [get_args(part)[0] for part in parts if get_origin(part) in (list, tuple)]
    return f"each value to be {expected(lists[0], [])}" if lists else ""


def takes_list(annotation: Any) -> bool:
    """Whether a key takes a list, or several values of its own."""
    if is_union(annotation):
        return any(takes_list(part) for part in get_args(annotation))
    return get_origin(annotation) in (list, tuple)


def hint(found: Any, annotation: Any) -> str:
    """What YAML made of a value that looks right."""
    if not isinstance(found, str):
        wants_text = str in (get_args(annotation) if is_union(annotation) else (annotation,))
        return "; put it in quotes" if wants_text and isinstance(found, int | float) else ""
    try:
        number = float(found)
    except ValueError:
        return ""
    return f"; YAML takes this for text, write {number:.0f}" if number.is_integer() else ""


def bounds(metadata: list[Any]) -> str:
    """The limits of a number in words, e.g. ` above 0 and below 1`."""
    found = {name: getattr(item, name) for item in metadata for name in ("gt", "ge", "lt", "le") if hasattr(item, name)}
    if found.keys() == {"ge", "le"}:
        return f" from {found['ge']:g} to {found['le']:g}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [f"{words[name]} {found[name]:g}" for name in words if name in found]
    return f" {' and '.join(limits)}" if limits else ""


def type_in_words(annotation: Any, metadata: list[Any]) -> str:
    """An annotation as a reader of YAML would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(arguments[0], [*metadata, *_constraints(arguments[1:])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if is_union(annotation):
        return " or ".join(dict.fromkeys(_alternative(part, metadata) for part in arguments))
    if origin is list:
        return f"list of {type_in_words(arguments[0], [])}"
    if origin is tuple:
        return f"[{', '.join(type_in_words(part, []) for part in arguments)}]"
    if origin is dict:
        return f"name: {type_in_words(arguments[1], [])}"
    if is_section(annotation):
        return f"{annotation.__name__} (below)"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names[annotation] + bounds(metadata)


def _alternative(part: Any, metadata: list[Any]) -> str:
    if part is type(None):
        return "empty"
    return "a list" if get_origin(part) is list else type_in_words(part, metadata)


def _constraints(metadata: tuple[Any, ...]) -> list[Any]:
    """The limits of an `Annotated`, whether given plainly or inside a pydantic Field."""
    return [item for part in metadata for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
