"""config/README.md, made from the typed configuration so that it cannot fall behind it.

`python tools/config_docs.py --write` writes the page, without the option it goes to standard output.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from budgeted_lora.config.corpus import Shards
from budgeted_lora.config.messages import in_yaml, type_in_words
from budgeted_lora.config.rows import Row
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Teacher
from budgeted_lora.config.types import Strict
from budgeted_lora.files import write_text

PAGE = Path("config/README.md")
TAG = re.compile(r"\[(S|D|U|ours)\]")

OPENING = """\
# The configuration

This page is made by `python tools/config_docs.py --write` from the types in `src/budgeted_lora/config.py`,
`corpus_settings.py` and `rows.py`; a test compares them. Edit the descriptions there.

## Scales

A **scale** is a file of this folder: one size of the same experiment. `mini` is the default, `snakemake --config
scale=smoke` takes another one, and results lie in `results/<scale>/`. Top-level keys can be laid on top of a file from
the command line, e.g. `snakemake --config teachers=pretrain`.

| file | what it is |
|---|---|
| `mini.yaml` | the paper's student at one eighth of its width; two CPU cores, no download |
| `recommended.yaml` | the default scale with the rule that did best in `beyond` in the place of the paper's |
| `smoke.yaml` | every rule in seconds; its numbers mean nothing |
| `paper.yaml` | the paper's own sizes, checkpoints and corpus; two GPUs |
| `single-gpu.yaml` | the same with a tenth of the tokens, on one GPU of 24 GB in about two days |
| `gpu-hour.yaml` | the paper's width on the docstring corpus, half an hour on one GPU; shows speed, not quality |
| `published.csv` | the numbers the paper prints, beside which ours are set; no scale |

A scale is complete, or it names another one with `extends: <scale>` and says only its own name and what differs.
Mappings are then merged key by key; `tables` and `teacher_ladder` are replaced as a whole; a key set to `null` goes
back to its default. `scale:` is the file's own name, without its ending; that of a file it extends counts for nothing.
Scales that extend each other in a ring, unknown keys, a key that stands twice and values out of range are refused in
one line, exit status 2; it says in which file the value stands, if not in the one that was asked for.

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
belongs (or any other key that its method has no use for), or so few tokens that the schedule cannot reach the planned
structure; the message then says how many it needs. The same row twice in a table, a value twice in a list, an empty
list and a table without rows are refused too: each would look as if it asked for something.

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


def default_in_words(field: FieldInfo) -> str:
    """The default as one would write it in YAML; a dash for a required key."""
    if field.is_required():
        return "—"
    value = field.get_default(call_default_factory=True)
    return f"`{in_yaml(value)}`"


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
