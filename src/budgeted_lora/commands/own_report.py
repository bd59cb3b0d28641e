"""What a reader gets at the end of `compress`: the students' folders, and a short report with the Pareto plot."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from budgeted_lora.commands.students import export_folder
from budgeted_lora.commands.text import table
from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.files import write_text
from budgeted_lora.reporting.contents import CONTROLS, TABLES
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import ABSENT, number, ratio_text
from budgeted_lora.workflow.graph import Graph

SHOWN = replace(TABLES["table2"], reads=("perplexity", "icl", "compression", "speed"))
COLUMNS = ("", "weights", "perplexity", "bits per byte", "in context", "fewer MACs", "reads", "writes", "folder")
PAGE = """# {scale}

{table}

![Perplexity against multiply-accumulates](figures/pareto_mac_speedup.svg)

{control}- Weights: with embeddings; tied ones count once. In context: mean accuracy of 19 tasks.
- Perplexity and bits per byte: of {tokens:,} held-out tokens, lower is better.
- Fewer MACs: those of the model's projections over the student's, counted. Reads and writes: measured here, a prompt
  and new tokens of one sequence, against the same student with all its dense paths.
- The folders load with transformers alone. All numbers, curves, and how they were made: [index.html](index.html).
"""
CONTROL = """- Dense: smaller students without low-rank paths, each with the MACs of one F, distilled on as many tokens.
"""


def finish(graph: Graph) -> str:
    """Exports every student of a finished scale and writes its short report; returns what to tell."""
    results = Results.open(graph.results).of(SHOWN)
    tables = [table for table in ("table2", CONTROLS) if table in graph.config.tables]
    folders = {cell: exported(graph, cell) for cell in graph.listed(tables)}
    [teacher] = graph.config.teacher_ladder
    folders[teacher] = Path(graph.results) / "teachers" / teacher / "model"
    rows = shown_rows(results, folders, layers=graph.config.student.layers, tables=tables)
    page = Path(graph.reports) / "students.md"
    text = PAGE.format(
        scale=graph.config.scale,
        table=markdown(rows),
        control=CONTROL if CONTROLS in tables else "",
        tokens=graph.config.corpus.validation_tokens,
    )
    write_text(page, text)
    return "\n".join(["", *table(rows, numbers=range(1, len(rows[0]) - 1)), "", f"report: {page}"])


def exported(graph: Graph, cell: str) -> Path:
    """A student's folder that needs nothing of this package. One that is there stays: its name has the model's hash."""
    recipe = graph.recipe_of(cell)
    label = recipe.method if recipe.budget is None else f"F{recipe.budget:g}"
    source = Path(graph.results) / "cells" / cell / "compressed" / DEFAULT_VARIANT / "model"
    digest = source.with_suffix(".sha256").read_text(encoding="utf-8")
    folder = Path("exported") / graph.config.scale / f"{label}-{digest[:8]}"
    if not folder.exists():
        export_folder(source, folder, dtype="bfloat16", dense=False, license=None)
    return folder


def shown_rows(results: Results, folders: dict[str, Path], *, layers: int, tables: list[str]) -> list[tuple[str, ...]]:
    """Headings, then a row for the model itself and one for each student; no column in which nothing was measured.

    Args:
        folders: of the model by its name, and of each student by its cell.
        layers: of the students.
        tables: whose cells are shown; those of `controls` are smaller dense students, which nothing was timed with.
    """
    [model] = results.teachers().to_dict("records")
    own = folders[model["name"]]
    rows = [COLUMNS, (str(model["name"]), weights(own), *scores(model), "1.00x", "", "", "")]
    runs = pd.concat([results.scores(table) for table in tables])
    of_shape = runs["student_ffn"].isna()
    dense = model["layers"] / layers * runs.loc[of_shape, "dense_macs"].max()  # of the model's projections
    for one in runs.to_dict("records"):
        control = pd.notna(one["student_ffn"])
        label = one["method"] if pd.isna(one["budget"]) else f"F = {one['budget']:g}"
        if control:
            label = f"dense, {one['student_layers']:g} layers, FFN {one['student_ffn']:g}"
        timed = [ABSENT if control else ratio_text(one, f"measured_{part}", unit="x") for part in ("prefill", "decode")]
        speeds = (number(dense / one["macs"], 2, unit="x"), *timed)
        folder = folders[one["cell"]]
        rows.append((label, weights(folder), *scores(one), *speeds, str(folder)))
    kept = [at for at in range(len(COLUMNS)) if at == 0 or any(row[at] not in ("", ABSENT) for row in rows[1:])]
    return [tuple(row[at] for at in kept) for row in rows]


def weights(folder: Path) -> str:
    """The weights in the files of a folder, in millions; tied ones count once."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            count += sum(prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    return f"{count / 1e6:,.1f} M"


def scores(one: dict[str, Any]) -> tuple[str, str, str]:
    """Perplexity, bits per byte and in-context accuracy of a model."""
    bits = one.get("bits_per_byte", float("nan"))
    return number(one["ppl"], 2), number(bits, 3), number(one["icl"], 1, unit=" %", factor=100)


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table of rows, the first of which are headings."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
