"""What differs between two results: settings, code and machine, metrics with their noise, structure, files.

Two results are two scales, two folders of one cell or model, two reports, two exported models, or archives of scales.
Cells of two scales are compared by their id, and what is left by the readable part of it, so that a student can be
compared with itself under another configuration. Start times, durations and timings differ between any two runs and
are never compared.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from budgeted_lora.commands.archive import unpacked
from budgeted_lora.commands.diff_files import compare_file, files_below, read_parquet
from budgeted_lora.commands.diff_records import (
    METRICS,
    Change,
    Metric,
    Restructured,
    code_of,
    digests_of,
    error_at,
    grouped,
    number_at,
    place,
    restructured,
    settings_of,
    value_at,
)
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.reporting.uncertainty import Bootstrap, Interval, interval, quantile, resampled_perplexities

TREE = ("cells", "teachers", "students", "data", "speed", "tables", "figures")  # folders of a scale or a report
RECORDS = ("train.json", "compression.json", "perplexity.json", "teacher.json", "student.json", "config.json")


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: its name as it was given, and its files by their path below the root."""

    name: str
    root: Path
    files: dict[str, Path]

    @property
    def is_tree(self) -> bool:
        """Whether it is a scale or a report, and not one cell or model."""
        return not any((self.root / name).is_file() for name in RECORDS)

    @property
    def cells(self) -> set[str]:
        return {name.split("/")[1] for name in self.files if name.startswith("cells/")} if self.is_tree else set()

    def renamed(self, names: Mapping[str, str]) -> "Side":
        """The same with cells called otherwise."""
        files = {}
        for name, path in self.files.items():
            top, _, rest = name.partition("/")
            cell, _, below = rest.partition("/")
            files[f"cells/{names[cell]}/{below}" if top == "cells" and cell in names else name] = path
        return Side(self.name, self.root, files)


def cell_folder(path: Path) -> Path:
    """The folder of the only cell below `results` whose name begins so, if there is no such path."""
    if path.exists() or len(path.parts) != 1:
        return path
    found = sorted(folder for folder in Path("results").glob("*/cells/*") if folder.name.startswith(path.name))
    if len(found) > 1:
        raise BadInput(f"{path} begins the names of {len(found)} cells, such as {found[0]} and {found[1]}")
    return found[0] if found else path


@contextmanager
def opened(path: Path) -> Iterator[Side]:
    """A folder, the results in an archive, or the folder of a cell that is named.

    Raises:
        BadInput: it is missing, holds no results, or names several cells.
    """
    path = cell_folder(path)
    with ExitStack() as stack:
        root = stack.enter_context(unpacked(path)) if path.is_file() else path
        if not root.is_dir():
            raise BadInput(f"{path}: no such folder, archive or cell; expected for example results/smoke")
        side = Side(str(path), root, files_below(root))
        if side.is_tree and not any((root / name).is_dir() for name in TREE):
            raise BadInput(
                f"{path}: holds no results; expected results/<scale>, the folder of a cell or model in it, "
                "reports/<scale>, or what `budgeted-lora export` wrote"
            )
        yield side


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between two sides.

    Args:
        renamed: cells of B that are compared with another id of A, by A's.
        ignore_provenance: code and machine may differ.
    """

    a: Side
    b: Side
    renamed: Mapping[str, str]
    ignore_provenance: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    @classmethod
    def of(cls, a: Side, b: Side, *, ignore_provenance: bool = False) -> "Comparison":
        """Compares two sides. Raises BadInput if one is a scale and the other one cell."""
        if a.is_tree != b.is_tree:
            one, other = (a, b) if a.is_tree else (b, a)
            raise BadInput(
                f"{one.name} holds several models and {other.name} is one; expected two scales, or two cells or models"
            )
        pairs = same_slug(a.cells - b.cells, b.cells - a.cells)
        return cls(a, b.renamed({new: old for old, new in pairs.items()}), pairs, ignore_provenance)

    @cached_property
    def common(self) -> list[str]:
        return sorted(self.a.files.keys() & self.b.files.keys())

    @cached_property
    def records(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """JSON results that both have, and config.json of two models, by name."""
        read = {}
        for name in self.common:
            if name.endswith(".json"):
                old, new = (read_json(side.files[name], kind=object) for side in (self.a, self.b))
                if all(isinstance(one, dict) and ("provenance" in one or name == "config.json") for one in (old, new)):
                    read[name] = old, new
        return read

    @cached_property
    def settings(self) -> list[Change]:
        """Values that the results were made with; of an exported model its configuration, without ranks."""
        return grouped((name, settings_of(old), settings_of(new)) for name, (old, new) in self.records.items())

    @cached_property
    def provenance(self) -> list[Change]:
        """Code, versions and machine; empty where they may differ."""
        if self.ignore_provenance:
            return []
        about = ((name, code_of(old), code_of(new)) for name, (old, new) in self.records.items())
        folders = [side.root / "code" for side in (self.a, self.b)]
        stages = sorted(set.intersection(*({path.name for path in folder.glob("*.txt")} for folder in folders)))
        code = ((stage.removesuffix(".txt"), *(digests_of(folder / stage) for folder in folders)) for stage in stages)
        return grouped(about) + grouped(code)

    @cached_property
    def metrics(self) -> list[Metric]:
        """Scores and losses that differ."""
        found = []
        for name, (old, new) in self.records.items():
            for key, metric in METRICS.get(Path(name).name, {}).items():
                a, b = number_at(old, key), number_at(new, key)
                if a is not None and b is not None and a != b:
                    paired = self._paired(name, old, new, key=key)
                    noise = paired or self._apart(b - a, [error_at(old, key), error_at(new, key)])
                    found.append(Metric(place(name), metric, a, b, noise, paired is not None))
        return found

    def _apart(self, difference: float, errors: list[float | None]) -> Interval | None:
        """The interval of a difference whose sides were measured each for itself."""
        if None in errors:
            return None
        error = math.hypot(*errors)
        half = quantile(math.inf, self.bootstrap.confidence) * error
        return Interval(difference, error, difference - half, difference + half)

    def _paired(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any], *, key: str) -> Interval | None:
        """The interval of a difference of perplexities, or of their bits per byte, paired by window.

        None for another metric, and unless both scored the same windows.
        """
        windows = Path(name).with_name("perplexity_windows.parquet").as_posix()
        scored = [value_at(record, "conditions.validation_sha256") for record in (old, new)]
        if (
            key not in ("value", "bits_per_byte")
            or windows not in self.common
            or scored[0] is None
            or len({*scored}) > 1
        ):
            return None
        frames = [read_parquet(side.files[windows]) for side in (self.a, self.b)]
        if any(not {"nll", "tokens"} <= set(frame.columns) for frame in frames):
            return None
        tokens = frames[0]["tokens"].to_numpy()
        if not np.array_equal(tokens, frames[1]["tokens"].to_numpy()):
            return None
        nll = np.stack([frame["nll"].to_numpy() for frame in frames])
        draws = resampled_perplexities(nll, tokens, resamples=self.bootstrap.resamples, seed=self.bootstrap.seed)
        if key == "bits_per_byte":  # of the same windows: a multiple of the logarithm
            draws = np.log(draws) * [record[key] / math.log(record["value"]) for record in (old, new)]
        difference = number_at(new, key) - number_at(old, key)
        return interval(difference, draws[:, 1] - draws[:, 0], confidence=self.bootstrap.confidence)

    @cached_property
    def structure(self) -> list[Restructured]:
        """Compressed models whose modules differ."""
        both = (restructured(place(name), old, new) for name, (old, new) in self.records.items())
        return [item for item in both if item is not None]

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """What differs in the content of files, without provenance and timings, by name."""
        only = {name: ["only in A"] for name in self.a.files.keys() - self.b.files.keys()}
        only |= {name: ["only in B"] for name in self.b.files.keys() - self.a.files.keys()}
        compared = {name: compare_file(self.a.files[name], self.b.files[name]) for name in self.common}
        return dict(sorted((only | {name: lines for name, lines in compared.items() if lines}).items()))

    @property
    def only(self) -> tuple[list[str], list[str]]:
        """Cells that only one side has."""
        return sorted(self.a.cells - self.b.cells), sorted(self.b.cells - self.a.cells)

    @property
    def equal(self) -> bool:
        return not (self.renamed or self.settings or self.provenance or self.metrics or self.structure or self.files)

    def as_json(self) -> dict[str, Any]:
        """What `diff --json` prints."""
        only_a, only_b = self.only
        return {
            "a": self.a.name,
            "b": self.b.name,
            "equal": self.equal,
            "cells": {
                "both": len(self.a.cells & self.b.cells),
                "renamed": self.renamed,
                "only_a": only_a,
                "only_b": only_b,
            },
            "settings": [asdict(change) for change in self.settings],
            "provenance": [asdict(change) for change in self.provenance],
            "metrics": [metric.as_json() for metric in self.metrics],
            "structure": [asdict(item) for item in self.structure],
            "files": self.files,
        }


def same_slug(only_a: Iterable[str], only_b: Iterable[str]) -> dict[str, str]:
    """Cells of B by those of A whose ids differ in their hash alone; without those of which there are several."""

    def by_slug(cells: Iterable[str]) -> dict[str, list[str]]:
        slugs: dict[str, list[str]] = {}
        for cell in sorted(cells):
            slugs.setdefault(cell.rpartition("-")[0], []).append(cell)
        return slugs

    mine, other = by_slug(only_a), by_slug(only_b)
    return {mine[slug][0]: other[slug][0] for slug in mine if len(mine[slug]) == len(other.get(slug, ())) == 1}
