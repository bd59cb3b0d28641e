"""config/README.md, made from the typed configuration so that it cannot fall behind it.

`python -m budgeted_lora.config_docs --write` writes the page, without the option it goes to standard output.
"""

import argparse
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from budgeted_lora.config import Config, Teacher
from budgeted_lora.corpus_settings import Shards
from budgeted_lora.files import write_text
from budgeted_lora.rows import Row
from budgeted_lora.strict import Strict

PAGE = Path("config/README.md")
TAG = re.compile(r"\[(S|D|U|ours)\]")

OPENING = """\
# The configuration

This page is made from `src/budgeted_lora/config.py` by `python -m budgeted_lora.config_docs --write`; a test compares
the two. Edit the descriptions there.

## Scales

A **scale** is a file of this folder: one size of the same experiment. `mini` is the default, `snakemake --config
scale=smoke` takes another one, and results lie in `results/<scale>/`. Top-level keys can be laid on top of a file from
the command line, e.g. `snakemake --config teachers=pretrain`.

| file | what it is |
|---|---|
| `mini.yaml` | the paper's student at one eighth of its width; two CPU cores, no download |
| `smoke.yaml` | every rule in seconds; its numbers mean nothing |
| `paper.yaml` | the paper's own sizes, checkpoints and corpus; two GPUs |
| `single-gpu.yaml` | the same with a tenth of the tokens, on one GPU of 24 GB in about two days |
| `gpu-hour.yaml` | the paper's width on the docstring corpus, half an hour on one GPU; shows speed, not quality |
| `published.csv` | the numbers the paper prints, beside which ours are set; no scale |

A scale is complete, or it names another one with `extends: <scale>` and says only its own name and what differs.
Mappings are then merged key by key; `tables` and `teacher_ladder` are replaced as a whole; a key set to `null` goes
back to its default. Scales that extend each other in a ring, unknown keys and values out of range are refused in one
line, exit status 2.

## Tables and their rows

`tables` says which students are trained. Each table is a list of rows, and a row names a method and whatever differs
from the scale's own settings; everything else comes from the sections below. A list in a row means one student for each
of its values, and two lists mean every combination:

```yaml
tables:
  table2:
    - {method: kd_full, teacher: [0.13B, 1B]}                            # 2 students
    - {method: budgeted_lora, teacher: [0.13B, 1B], budget: [0.4, 0.0]}  # 4 students
```

Such a combination is a **cell**. Equal cells are one cell however many tables list them, and are trained once. A cell's
id ends in a hash of everything that determines its weights (recipes of corpus, tokenizer and teachers included,
evaluation settings not), so an edited value gives new ids to the cells it concerns, and only those run.
To add a student: add a row, look at `snakemake --dry-run`, run `snakemake`. A row is refused before anything runs
if it names an unknown teacher or schedule, a rank above the smallest dimension of a projection, a budget where none
belongs, or so few tokens that the schedule cannot reach the planned structure; the message then says how many it needs.

Rows of one table that differ in nothing but `seed` are one line of it: mean and standard deviation over the seeds. A
table of a new name needs no code: the report shows it with one line for each recipe and whatever its rows differ in.
`snakemake <name>` makes one table, `ablations` those beside the main ones, `all` all of these; `controls` belongs to
`main`, and `sensitivity` and `beyond` to no target but their own.

"""

KEYS = """\
## Keys

The tag says where a default comes from: **S** stated in the paper; **D** derived from it; **U** unknown outside the
authors, so a default of ours; **ours** a choice the paper has no word on. Without a default a key is required.

"""


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
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_alternative(part, metadata) for part in arguments))
    if origin is list:
        return f"list of {type_in_words(arguments[0], [])}"
    if origin is tuple:
        return f"[{', '.join(type_in_words(part, []) for part in arguments)}]"
    if origin is dict:
        return f"name: {type_in_words(arguments[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Strict):
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


def default_in_words(field: FieldInfo) -> str:
    """The default as one would write it in YAML; a dash for a required key."""
    if field.is_required():
        return "—"
    value = field.get_default(call_default_factory=True)
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return str(value)


def rows(model: type[Strict], prefix: str = "") -> Iterator[str]:
    """One line of the table for each key of a section; nested sections follow key by key."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from rows(field.annotation, f"{key}.")
            continue
        description = field.description or ""
        tags = ", ".join(dict.fromkeys(TAG.findall(description)))
        meaning = re.sub(r"\s*\[(S|D|U|ours)\]\.?$", "", description).replace("|", "\\|")
        kind = type_in_words(field.annotation, list(field.metadata))
        yield f"| `{key}` | {kind} | {default_in_words(field)} | {meaning} | {tags} |"


def sections() -> Iterator[tuple[str, str, list[str]]]:
    """(heading, text under it, lines of its table) in the order of the file."""
    head, rest = [], []
    for name, field in Config.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, Strict):
            rest.append((f"`{name}`", field.description or "", list(rows(model, f"{name}."))))
        else:
            alone = type("One", (Strict,), {"__annotations__": {name: model}, name: field})
            head.append(next(rows(alone)))
    yield "Top level", "", head
    yield from rest
    yield "`corpus.shards`", Shards.__doc__ or "", list(rows(Shards, "corpus.shards."))
    yield "A teacher of `teacher_ladder`", "The first one is the one students are cut from.", list(rows(Teacher))
    yield (
        "A row of `tables`",
        "A list, where one is allowed, means one student for each of its values.",
        list(rows(Row)),
    )


def render() -> str:
    """The whole page."""
    parts = [OPENING, KEYS]
    for heading, text, lines in sections():
        parts.append(f"### {heading}\n\n" + (f"{text}\n\n" if text else ""))
        parts.append("| key | type | default | meaning | tag |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n")
    return "".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints config/README.md as the configuration's types say it.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE} instead")
    page = render()
    if parser.parse_args().write:
        write_text(PAGE, page)
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
