"""Pydantic's errors on a configuration as one line: each key, the value it has, and what was expected."""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]
ROW_CHARACTERS = 90  # of a row's text in a message
VALUE_CHARACTERS = 60
FEW_PROBLEMS = 10  # in one message
FEW_KEYS = 12  # a section with at most this many keys is listed in full when no name is close
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """The key that an error is about, as the file has it, its type, and the rest of pydantic's location."""

    path: Path
    annotation: Any
    metadata: tuple[Any, ...]
    rest: Path


def describe(error: ValidationError, model: type[BaseModel] | None = None, values: Any = None) -> str:
    """A pydantic error as one line.

    Without the model that was validated, types are in pydantic's words; with its `values`, a value is shown whole.
    """
    if model is None:
        return joined(dict.fromkeys(map(plain_text, error.errors())))
    return joined(problems(error, model, values).values())


def joined(texts: Iterable[str]) -> str:
    """What is wrong, on one line: the first few of many."""
    texts = list(texts)
    more = len(texts) - FEW_PROBLEMS
    return "; ".join([*texts[:FEW_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])


def problems(error: ValidationError, model: type[BaseModel], values: Any = None) -> dict[Path, str]:
    """What is wrong with each key, in the order of the model."""
    by_key: dict[Path, list[tuple[Key, Mapping[str, Any]]]] = {}
    for item in error.errors():
        key = resolve(model, item["loc"])
        by_key.setdefault(item["loc"] if item["type"] == "extra_forbidden" else key.path, []).append((key, item))
    return {
        path: problem_text(entries[0][0], [item for _, item in entries], model, values)
        for path, entries in by_key.items()
    }


def plain_text(item: Mapping[str, Any]) -> str:
    """An error on a model that is not known here."""
    key = dotted(item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if item["type"] == "missing":
        return f"{key} is missing"
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    return f"{key} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def problem_text(key: Key, items: list[Mapping[str, Any]], model: type[BaseModel], values: Any) -> str:
    """The sentence for all errors on one key; a union has one error for each of its types."""
    item = items[0]
    if item["type"] == "extra_forbidden":
        return unknown_key(key, str(item["loc"][-1]), model, values)
    if item["type"] == "value_error":
        text = item["msg"].removeprefix("Value error, ")
        names_key = not key.path or text.startswith(str(key.path[0]))
        return text if names_key else f"{place(key.path, values)}: {text}"
    if item["type"] == "missing" and not key.rest:
        return f"{place(key.path, values)} is missing, expected {expected(key.annotation, key.metadata)}"
    if "[key]" in key.rest or item["type"] == "invalid_key":
        name = [part for part in item["loc"] if part != "[key]"]
        return f"the name {dotted(name)} is not text; put it in quotes"
    return wrong_value(key, items, values)


def wrong_value(key: Key, items: list[Mapping[str, Any]], values: Any) -> str:
    """A value of the wrong kind or out of range."""
    value = value_at(values, key.path, items[0]["input"])
    text = f"{place(key.path, values)} is {shown(value)}"
    if items[0]["type"] == "too_short" and not key.rest:
        least = items[0]["ctx"]["min_length"]
        return f"{text}, expected at least {least} entr{'y' if least == 1 else 'ies'}"
    wanted = expected(key.annotation, key.metadata)
    if not isinstance(value, list):
        return f"{text}, expected {wanted}{hint(value, key.annotation)}"
    kinds = [kind for kind, _ in alternatives(key.annotation)]
    if not any(is_section(kind) or get_origin(kind) in (dict, list, tuple) for kind in kinds):
        one = "one value per row; write one row for each" if is_row(key.path) else "one value, not a list"
        return f"{text}, which takes {one}"
    inside = [item["input"] for item in items if any(isinstance(part, int) for part in item["loc"][len(key.path) :])]
    if inside and inside[0] is not value:
        element = next(get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple))
        return f"{text}, expected each value to be {expected(element)}, found {shown(inside[0])} in it"
    return f"{text}, expected {wanted}"


def hint(value: Any, annotation: Any) -> str:
    """What YAML made of a value that looks right."""
    if isinstance(value, int | float) and any(kind is str for kind, _ in alternatives(annotation)):
        return "; put it in quotes"
    try:
        number = float(value) if isinstance(value, str) else 0.5
    except ValueError:
        return ""
    return f"; YAML takes this for text, write {number:.0f}" if number.is_integer() else ""


def unknown_key(key: Key, name: str, model: type[BaseModel], values: Any) -> str:
    """An unknown key with the nearest known one, or with other sections' keys of that name."""
    known = list(key.annotation.model_fields)
    in_row = is_row(key.path)
    prefix = "" if in_row or not key.path else f"{dotted(key.path)}."
    text = f"{place(key.path, values)}: unknown key {name}" if in_row else f"unknown key {prefix}{name}"
    section, _, inside = name.partition(".")
    if section in known and inside:
        return f"{text}; a key of a section is written `{section}: {{{inside}: ...}}`"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"{text}; did you mean {prefix}{close[0]}?"
    others = list(keys_named(model, name))
    if others:
        return f"{text}; there is {' and '.join(others)}"
    owner = "a row" if in_row else f"section {dotted(key.path)}" if key.path else "the top level"
    if len(known) <= FEW_KEYS:
        return f"{text}; the keys of {owner} are {', '.join(known)}"
    return f"{text}; config/README.md lists the keys of {owner}"


def keys_named(model: type[BaseModel], name: str, prefix: str = "") -> Iterator[str]:
    """Every section's key of this name, with dots between."""
    for key, field in model.model_fields.items():
        if key == name:
            yield f"{prefix}{key}"
        if is_section(field.annotation):
            yield from keys_named(field.annotation, name, f"{prefix}{key}.")


def alternatives(annotation: Any, metadata: Iterable[Any] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """The types that an annotation allows, each with its limits; unions and `Annotated` are taken apart."""
    if get_origin(annotation) is Annotated:
        kind, *limits = get_args(annotation)
        inner = [item for part in limits for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return alternatives(kind, [*metadata, *inner])
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return [pair for part in get_args(annotation) for pair in alternatives(part, metadata)]
    return [(annotation, tuple(metadata))]


def expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a key takes, in the words of a person who writes YAML; that it may be empty is left out."""
    kinds = [pair for pair in alternatives(annotation, metadata) if pair[0] is not type(None)]
    texts = ["a list" if len(kinds) > 1 and get_origin(kind) is list else kind_text(kind, m) for kind, m in kinds]
    return " or ".join(dict.fromkeys(texts))


def kind_text(kind: Any, metadata: tuple[Any, ...]) -> str:
    """One type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_section(kind):
        return "a mapping, `{key: value, ...}`"
    if origin is dict:
        return f"a mapping of names, each {expected(arguments[1])}"
    if origin is list:
        rows = entry_type(kind) is not None
        return "a list of rows, each `- {key: value, ...}`" if rows else f"a list, each {expected(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {expected(arguments[0])}"
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(str, arguments))}"
    return NAMES[kind] + limits_text(metadata)


def limits_text(metadata: tuple[Any, ...]) -> str:
    """The limits of a number, e.g. ` above 0 and below 1`."""
    limits = {
        name: getattr(item, name) for item in metadata for name in ("gt", "ge", "lt", "le") if hasattr(item, name)
    }
    if limits.keys() == {"ge", "le"}:
        return f" from {limits['ge']:g} to {limits['le']:g}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    texts = [f"{words[name]} {_limit(limits[name])}" for name in words if name in limits]
    return f" {' and '.join(texts)}" if texts else ""


def _limit(value: float) -> str:
    """A limit of a number; large powers of two as such."""
    power = int(value).bit_length() - 1
    return f"2^{power}" if power > 30 and value == 2**power else f"{value:g}"


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def entry_type(kind: Any) -> Any:
    """The type of the entries of a mapping of names or of a list of rows; None for other types."""
    arguments = get_args(kind)
    has_entries = get_origin(kind) is dict or (get_origin(kind) is list and is_section(arguments[0]))
    return arguments[-1] if has_entries else None


def resolve(model: type[BaseModel], location: Path) -> Key:
    """Follow pydantic's location through sections, named entries and rows, as far as it consists of the file's keys."""
    annotation, metadata = model, ()
    for depth, part in enumerate(location):
        kinds = [kind for kind, _ in alternatives(annotation)]
        section = next(filter(is_section, kinds), None)
        entries = next(filter(None, map(entry_type, kinds)), None)
        if section is not None and part in section.model_fields:
            field = section.model_fields[part]
            annotation, metadata = field.annotation, tuple(field.metadata)
        elif section is None and entries is not None and part != "[key]":  # with that pydantic means the name itself
            annotation, metadata = entries, ()
        else:
            return Key(location[:depth], section or annotation, metadata, location[depth:])
    return Key(location, annotation, metadata, ())


def is_row(path: Path) -> bool:
    """Whether a path leads to a row of a table or into it."""
    return len(path) >= 3 and path[0] == "tables"


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))


def place(path: Path, values: Any) -> str:
    """A key as a person looks for it: a row by its table, its number from 1 and its text; other keys with dots."""
    if not is_row(path):
        return dotted(path) or "the configuration"
    row = row_place(str(path[1]), int(path[2]) + 1, value_at(values, path[:3], None))
    return row + (f": {dotted(path[3:])}" if path[3:] else "")


def row_place(table: str, number: int, row: Any) -> str:
    """A row of a table: `tables.table2, row 3 {method: kd_lora, rank: 9}`."""
    text = f" {shown(row, limit=ROW_CHARACTERS)}" if isinstance(row, Mapping) else ""
    return f"tables.{table}, row {number}{text}"


def value_at(values: Any, path: Path, default: Any) -> Any:
    """The value at a path of nested mappings and lists; `default` if there is none."""
    if values is None:
        return default
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return default
    return values


def shown(value: Any, *, limit: int = VALUE_CHARACTERS) -> str:
    """A value as YAML on one line, cut if it is long; text that stands alone is in quotes."""
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
