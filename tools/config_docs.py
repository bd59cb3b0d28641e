"""config/README.md, made from the typed configuration so that the two cannot differ.

`python tools/config_docs.py --write` writes the page; without the option it is printed.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from budgeted_lora.config.corpus import Shards
from budgeted_lora.config.messages import alternatives, expected, in_yaml, is_section
from budgeted_lora.config.rows import Row, Sweep
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Teacher
from budgeted_lora.files import write_text

PAGE = Path("config/README.md")
TAG = re.compile(r"\s*\[(S|D|U|ours)\]\.?")

OPENING = """\
# The configuration

This page is made by `python tools/config_docs.py --write` from the types in `src/budgeted_lora/config/`; a test
compares them. Edit the descriptions there.

## Scales

A **scale** is a file of this folder: one size of the same experiment. `mini` is the default; `snakemake --config
scale=smoke` runs another one. Results go to `results/<scale>/`. Top-level keys of a file can be replaced on the command
line, e.g. `snakemake --config teachers=pretrain`.

| file | what it is |
|---|---|
| `mini.yaml` | the paper's student at one eighth of its width; two CPU cores, no download |
| `recommended.yaml` | the default scale with the rule that did best in `beyond` in place of the paper's |
| `smoke.yaml` | every rule in seconds; its numbers mean nothing |
| `paper.yaml` | the paper's own sizes, checkpoints and corpus; two GPUs |
| `evening.yaml` | `mini` with twice the tokens and three lengths, under its smallest teacher; an evening of two cores |
| `overnight.yaml` | `mini` with four times the tokens and three seeds, in a night or two of two cores |
| `tuning.yaml` | how the learning rates of `mini` were chosen, off the validation set |
| `single-gpu.yaml` | `paper` with a tenth of the tokens, on one GPU of 24 GB in 29 hours by the plan |
| `gpu-hour.yaml` | the paper's width on the docstring corpus, half an hour on one GPU; shows speed, not quality |
| `your-model.yaml` | a model of your own, as `budgeted-lora compress` writes such a file; every line explained |
| `published.csv` | the paper's own numbers, shown beside ours; not a scale |
| `schema.json` | the keys as JSON Schema, made by `python tools/config_schema.py --write` |

An editor with a YAML language server completes and checks keys if the first line of a scale is
`# yaml-language-server: $schema=schema.json`, as in the files here.

A scale is either complete, or it names another one with `extends: <scale>` and says only its name and what differs.
The files are then merged key by key; `tables` and `teacher_ladder` are replaced as a whole, and `null` resets a key to
its default. `scale:` must be the file's own name without its ending; the `scale:` of an extended file is ignored.
These mistakes end in one line and exit status 2: scales that extend each other in a ring, unknown keys, a key given
twice, and values out of range. The line says which file holds the value, if it is not the file that was asked for.

## Tables and their rows

`tables` says which students are trained. Each table is a list of rows. A row names a method and what differs from the
scale's defaults; everything else comes from the sections below. Each value of a list in a row makes one student, and
two lists make every combination:

```yaml
tables:
  table2:
    - {method: kd_full, teacher: [0.13B, 1B]}                            # 2 students
    - {method: budgeted_lora, teacher: [0.13B, 1B], budget: [0.4, 0.0]}  # 4 students
```

One such student is a **cell**. Equal cells are one cell, however many tables list it, and are trained once. A cell's id
ends in a hash of everything that determines its weights: its recipe and those of corpus, tokenizer and teachers, but
not how it is evaluated. So an edited value gives new ids to the cells that it affects, and only those run.
To add a student, add a row, look at `snakemake --dry-run`, and run `snakemake`. A row is refused before anything runs
if it names an unknown teacher or schedule, a rank above the smallest dimension of a projection, a key that its method
does not use, or so few tokens that the schedule cannot reach the planned structure; the message then says how many it
needs. A repeated row, a repeated value in a list, an empty list and a table without rows are refused too, because they
ask for nothing.

Rows of one table that differ only in `seed` become one line of it, with mean and standard deviation over the seeds. A
table with a new name needs no code: the report shows one line per recipe, with the keys in which its rows differ.
`snakemake <name>` makes one table, `ablations` those beside the main ones, and `all` all of these. `controls` belongs
to `main`; `sensitivity`, `beyond`, `elastic` and `tokens` are made only by their own names.

A row with `compression: <sweep>` is trained once and compressed in several **variants**: one for each combination of
the lists of that sweep in `sweeps`.

A row with `budget: elastic` is one training for every budget. It needs such a sweep, with the list `budget` of the F
that the trained student is cut to; each is a line of its table. Low-rank paths must start at an SVD and dense paths go
by gradient; keys of the schedule are refused. [docs/beyond.md](../docs/beyond.md) says what it costs.

```yaml
sweeps:
  dial: {budget: [0.0, 0.2, 0.4, 0.6, 0.8]}
tables:
  elastic:
    - {method: budgeted_lora, budget: elastic, low_rank_init: activation_svd, order: gradient, compression: dial}
```

"""

KEYS = """\
## Keys

The tag says where a default comes from: **S** stated in the paper; **D** derived from it; **U** not stated and known
only to its authors, so we chose it; **ours** a choice that the paper does not mention. A key without a default is
required.

"""


def type_text(field: FieldInfo) -> str:
    """What a key takes, in the words of the configuration's error messages."""
    types = [kind for kind, _ in alternatives(field.annotation)]
    return expected(field.annotation, field.metadata) + (" or empty" if type(None) in types else "")


def default_text(field: FieldInfo) -> str:
    """The default as one would write it in YAML; a dash for a required key."""
    return "—" if field.is_required() else f"`{in_yaml(field.get_default(call_default_factory=True))}`"


def line(key: str, field: FieldInfo) -> str:
    """The line of one key."""
    description = field.description or ""
    tags = ", ".join(dict.fromkeys(TAG.findall(description)))
    meaning = TAG.sub("", description).strip().replace("|", "\\|")
    return f"| `{key}` | {type_text(field)} | {default_text(field)} | {meaning} | {tags} |"


def lines(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One line for each key of a section; nested sections follow key by key."""
    for name, field in model.model_fields.items():
        if is_section(field.annotation):
            yield from lines(field.annotation, f"{prefix}{name}.")
        else:
            yield line(f"{prefix}{name}", field)


def sections() -> Iterator[tuple[str, str, list[str]]]:
    """(heading, text under it, lines of its table) in the order of the file."""
    fields = Config.model_fields.items()
    yield "Top level", "", [line(name, field) for name, field in fields if not is_section(field.annotation)]
    for name, field in fields:
        if is_section(field.annotation):
            yield f"`{name}`", field.description or "", list(lines(field.annotation, f"{name}."))
    yield "`corpus.shards`", Shards.__doc__ or "", list(lines(Shards, "corpus.shards."))
    yield "A teacher of `teacher_ladder`", "Students are cut from the first one.", list(lines(Teacher))
    yield "A row of `tables`", "Each value of a list makes one student.", list(lines(Row))
    yield "A sweep of `sweeps`", "Every combination of the lists is one variant.", list(lines(Sweep))


def render() -> str:
    """The whole page."""
    parts = [OPENING, KEYS]
    for heading, text, rows in sections():
        parts.append(f"### {heading}\n\n" + (f"{text}\n\n" if text else ""))
        parts.append("| key | type | default | meaning | tag |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n")
    return "".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print config/README.md as the types define it.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE} instead")
    page = render()
    if parser.parse_args().write:
        write_text(PAGE, page)
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
