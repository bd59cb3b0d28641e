"""config/schema.json, the JSON Schema of a scale file, made from the typed configuration; editors complete keys by it.

`python tools/config_schema.py --write` writes the file; without the option it is printed. It holds what a type says:
keys, kinds, ranges and choices. What only several keys together say is checked when the scale is loaded.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from budgeted_lora.config.rows import Row, Sweep
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Teacher
from budgeted_lora.files import write_text

PATH = Path("config/schema.json")
WHOLE = {model.__name__ for model in (Teacher, Row, Sweep)}  # a file says these in full or not at all
NULL = {"type": "null"}
EXTENDS = {"type": "string", "description": "Name of the scale that this one changes; the files are merged key by key."}


def schema() -> dict[str, Any]:
    """The schema of one file: it may extend another one, so it may leave out any key, and null resets a key."""
    made = untitled(Config.model_json_schema())
    sections = [model for name, model in made["$defs"].items() if name not in WHOLE and "properties" in model]
    for model in [made, *sections]:
        model.pop("required", None)
        model["properties"] = {name: or_null(value) for name, value in model["properties"].items()}
    made["properties"] = {"extends": EXTENDS, **made["properties"], "scale": {"type": "string"}}
    made["properties"]["scale"]["description"] = Config.model_fields["scale"].description
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A scale of budgeted-lora",
        "description": "Made by tools/config_schema.py.",
    }
    return head | {key: value for key, value in made.items() if key not in head} | {"required": ["scale"]}


def untitled(value: Any, *, names: bool = False) -> Any:
    """The same without the titles that repeat the names of keys; `names`: the keys here are names, not words."""
    if isinstance(value, list):
        return [untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: untitled(item, names=key in ("properties", "$defs") and not names)
        for key, item in value.items()
        if names or key != "title"
    }


def or_null(value: dict[str, Any]) -> dict[str, Any]:
    """The schema of a key that may also be null."""
    if NULL in value.get("anyOf", []):
        return value
    about = {key: item for key, item in value.items() if key in ("description", "default")}
    kind = {key: item for key, item in value.items() if key not in about}
    return about | {"anyOf": [kind, NULL]}


def render() -> str:
    """The whole file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=f"Print {PATH} as the types define it.")
    parser.add_argument("--write", action="store_true", help=f"write {PATH} instead")
    if parser.parse_args().write:
        write_text(PATH, render())
    else:
        print(render(), end="")


if __name__ == "__main__":
    main()
