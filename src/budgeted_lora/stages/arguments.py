"""The arguments of a stage: from the words of a command line to what the stage's signature names."""

import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from budgeted_lora.config.messages import describe
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.workflow.stage_command import GPUS, OPTIONS, flag


def read_words(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A stage's name and its arguments as the command line has them: text, lists of text, None, or values of JSON.

    Raises:
        BadInput: a word belongs to no option, an option is given twice, or `--options` holds no JSON object.
    """
    stage, *rest = words
    texts: dict[str, list[str]] = {}
    for word in rest:
        if word.startswith("--"):
            name, equals, text = word.removeprefix("--").partition("=")
            if name.replace("-", "_") in texts:
                raise BadInput(f"stage {stage}: --{name} is given twice")
            latest = texts[name.replace("-", "_")] = [text] if equals else []
        elif texts:
            latest.append(word)
        else:
            raise BadInput(f"stage {stage}: {word!r} belongs to no option; expected --name value")
    given = {name: None if not text else text[0] if len(text) == 1 else text for name, text in texts.items()}
    return stage, convert(OPTIONS, dict[str, Any], given.pop(OPTIONS, "{}")) | given


def bind(stage: str, given: Mapping[str, Any]) -> tuple[Callable[..., None], dict[str, Any]]:
    """A stage's function, and its arguments in the types of its signature. Raises BadInput if a value does not fit."""
    function = getattr(importlib.import_module(f"budgeted_lora.stages.{stage}"), stage)
    hints = typing.get_type_hints(function, include_extras=True)
    return function, {name: convert(name, hints[name], value) for name, value in given.items() if name != GPUS}


def convert(name: str, annotation: Any, value: Any) -> Any:
    """A value of the command line in the type that a signature names. Raises BadInput, with the option."""
    kinds = list(_kinds(annotation))
    model = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    try:
        is_object = model or any(issubclass(kind, Mapping) or dataclasses.is_dataclass(kind) for kind in kinds)
        if isinstance(value, str) and is_object:
            value = read_json(value[1:], kind=object) if value.startswith("@") else json.loads(value)
        if any(issubclass(kind, Sequence) and kind is not str for kind in kinds) and not isinstance(value, list):
            value = [] if value is None else [value]
        if value is None and type(None) not in kinds:
            raise BadInput(f"{flag(name)} needs a value")
        return TypeAdapter(annotation).validate_python(value)
    except json.JSONDecodeError as error:
        raise BadInput(f"{flag(name)}: not JSON ({error})") from None
    except ValidationError as error:
        raise BadInput(f"{flag(name)}: {describe(error, model, value) if model else _first(error, value)}") from None


def _first(error: ValidationError, value: Any) -> str:
    """The first fault of a value that is no model: where in it, what is there, what is wrong."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place + ': ' if place else ''}{fault.get('input', value)!r}: {fault['msg']}"


def _kinds(annotation: Any) -> typing.Iterator[type]:
    """The classes that an annotation names, those of a union one by one."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from _kinds(part)
    elif origin is typing.Annotated:
        yield from _kinds(parts[0])
    elif isinstance(origin or annotation, type):
        yield origin or annotation
