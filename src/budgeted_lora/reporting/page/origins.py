"""Where the numbers of the page are from: their result files, the logs of the jobs that made these, and the values.

A table row, a sentence and a verdict name the files that they were made from. The page lists these in panels: one per
set of files, opened from every number that was read from them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.grouping import method_label
from budgeted_lora.reporting.page.facts import STAGES
from budgeted_lora.reporting.results import FILES, RECIPE, Results, is_elastic, variant_folder

# Logs of the job that wrote a result, by the result's name without its ending; the first is shown that says anything.
# {kind} and {name} are the first two parts of the result's path, {variant} that of a compressed model.
SCORING = (
    "logs/evaluate_cell/{name}_{variant}.log", "logs/score_cell/{name}_{variant}.log",
    "logs/evaluate_reference/{kind}_{name}.log",
)  # fmt: skip
LOGS = {
    "train": ("logs/train_cell/{name}.log",),
    "compression": ("logs/compress_cell/{name}_{variant}.log",),
    "perplexity": SCORING,
    "icl": SCORING,
    "lm_eval": ("logs/score_tasks/{name}_{variant}.log", "logs/score_reference_tasks/{kind}_{name}.log"),
    "speed": ("logs/measure_speed/{name}.log",),
    "int8": ("logs/measure_int8/{name}_{variant}.log",),
    "manifest": ("logs/tokenize_corpus.log", "logs/join_shards.log"),
    "contamination": ("logs/search_prompts.log",),
    "calibration": ("logs/calibrate_teachers.log",),
}
WORDS = {"train": "training", "icl": "in context", "lm_eval": "tasks", "speed": "timing", "manifest": "corpus"}


class Link(NamedTuple):
    """A result file: what it is, its address on the page, and the address of its log, empty if it says nothing."""

    label: str
    address: str
    log: str


class Owner(NamedTuple):
    """A cell, a model or a structure and its result files; `cell` is empty where its values are not on the page."""

    name: str
    cell: str
    links: list[Link]


@dataclass
class Origins:
    """Panels of a page.

    Attributes:
        results: what the page is made from.
        relative: path from the page's folder to results/<scale>, with / between parts.
        home: the last folders of the page's path, as far as they are not those of the results too: as long as the
            page lies there, its links lead to the results.
        panels: the sets of files that the page asked for, in order; a panel's number is its place.
    """

    results: Results
    relative: str
    home: str
    panels: dict[tuple[str, ...], int] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Results, out: Path) -> "Origins":
        """Those of a page in the folder `out`."""
        root, out = results.root.resolve(), out.resolve()
        shared = os.path.commonpath([root, out])
        home = "" if out == Path(shared) else out.relative_to(shared).as_posix()
        return cls(results, Path(os.path.relpath(root, out)).as_posix(), home)

    def panel(self, files: Sequence[str]) -> str:
        """Name of the panel of these files; empty without any."""
        present = tuple(path for path in files if self.results.holds(path))
        return f"files-{self.panels.setdefault(present, len(self.panels))}" if present else ""

    def owners(self, files: Sequence[str]) -> list[Owner]:
        """The files by what they belong to."""
        grouped: dict[tuple[str, str], list[Link]] = {}
        for path in files:
            kind, name = owner_of(path)
            grouped.setdefault((kind, name), []).append(self.link(path))
        listed = set(self.results.lines["cell"])
        return [Owner(name or kind, name if name in listed else "", links) for (kind, name), links in grouped.items()]

    def link(self, path: str) -> Link:
        """One result file."""
        kind, name = owner_of(path)
        variant = path.split("/")[3] if "/compressed/" in path else ""
        what = "speed" if kind == "speed" else Path(path).stem
        logs = [log.format(kind=kind, name=name, variant=variant) for log in LOGS.get(what, ())]
        log = next((f"{self.relative}/{one}" for one in logs if self.says(one)), "")
        remark = f", {variant}" if variant not in ("", DEFAULT_VARIANT) else ""
        return Link(f"{WORDS.get(what, what)}{remark}", f"{self.relative}/{path}", log)

    def says(self, log: str) -> bool:
        """Whether a log is present and not empty, as that of a job that printed nothing."""
        return self.results.holds(log) and (self.results.root / log).stat().st_size > 0

    def cells(self) -> list[dict[str, Any]]:
        """One row per cell: what it is, the values that not all cells share, and its files."""
        results = self.results
        listing = results.lines.groupby("cell")["table"].unique()
        shared = {name for name, _ in self.common_values()}
        rows = []
        for name, variants in results.of_tables(*results.tables).groupby("cell", sort=False):
            cell = variants.iloc[0]
            names = [f"cells/{name}/{file}" for file in ("train.json", "history.csv", "retention.csv")]
            for variant in variants["variant"]:
                kinds = ("compression", "perplexity", "icl")
                names += [FILES[kind].format(cell=name, variant=variant) for kind in kinds]
            default = variant_folder(name, DEFAULT_VARIANT)
            names += [f"{default}/lm_eval.json", f"{default}/int8.json", FILES["speed"].format(**cell)]
            method = method_label(cell["method"], cell["budget"])
            if is_elastic(variants).any():
                cell = cell.drop("budget")  # it is the first variant's
                method = f"{method_label(cell['method'])}, elastic"
            about = {"cell": name, "method": method, "teacher": cell["teacher"]}
            values = [(key, value) for key, value in recipe_values(cell) if key not in shared]
            about |= {"tables": " ".join(listing[name]), "values": values}
            rows.append(about | {"links": [self.link(path) for path in names if results.holds(path)]})
        return rows

    def common_values(self) -> list[tuple[str, str]]:
        """Keys and values of the recipe in which all cells agree."""
        cells = self.results.cells
        return [(key, value) for key, value in recipe_values(cells.iloc[0]) if cells[key].nunique(dropna=False) == 1]

    def shared(self) -> list[Link]:
        """The files that belong to no cell: lists, manifest, teachers and untrained students."""
        results = self.results
        models = results.files(STAGES["teachers and untrained students"])
        names = ["cells.csv", "data/manifest.json", *(path.relative_to(results.root).as_posix() for path in models)]
        return [self.link(name)._replace(label=name) for name in names if results.holds(name)]


def owner_of(path: str) -> tuple[str, str]:
    """Kind and name of what a result file belongs to: its first folder and the next; no name outside of these."""
    kind, *rest = path.split("/")
    if kind in ("cells", "teachers", "students"):
        return kind, rest[0]
    return kind, Path(path).stem if kind == "speed" else ""


def recipe_values(cell: pd.Series) -> list[tuple[str, str]]:
    """Keys of a cell's recipe that are set, and their values as text."""
    names = [name for name in cell.index if name in RECIPE or name == "seed"]
    return [(name, value_text(cell[name])) for name in names if pd.notna(cell[name]) and cell[name] != ""]


def value_text(value: Any) -> str:
    """A value of a recipe: whole numbers without a point."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
