"""What was measured of the quantities that claims speak of, and how far chance could move a difference of two.

Perplexities are compared as ratios (differences of their logarithm), so that a seed's spread measured under one teacher
serves under another; everything else is compared as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from budgeted_lora.config.scale import CLAIM_TABLES, DEFAULT_VARIANT, Config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.claims.file import Metric, Selection
from budgeted_lora.reporting.results import COLUMNS, RECIPE, Results, Source, value_at
from budgeted_lora.reporting.standing import PAPER_RANK
from budgeted_lora.reporting.table import number
from budgeted_lora.reporting.uncertainty import (
    OTHER_WINDOWS,
    Bootstrap,
    Group,
    Spread,
    group_of,
    quantile,
    range_text,
    resampled_perplexities,
    spread_of,
    spread_text,
)

# Metrics that the results call by another name.
COLUMN_OF = {
    "module_speedup": "speedup_vs_dense", "dense_kept": "kept", "dense_svd": "svd", "dense_dropped": "dropped",
}  # fmt: skip
SCORED_BY = {"ppl": "validation windows, paired:", "icl": "ICL queries:"}
VARYING = ("ppl", "icl", "avg_rank")  # what differs from seed to seed; all else follows from the recipe


@dataclass(frozen=True)
class Missing:
    """Why there is no measured value."""

    reason: str


@dataclass(frozen=True)
class Measured:
    """One quantity, the mean over its runs.

    Attributes:
        levels: [runs], the metric as it is compared: ln of a perplexity, % of an accuracy, otherwise the value itself.
        draws: [resamples], bootstrap of the mean level over validation windows; perplexities only.
        error: standard error over queries; chance: what guessing scores, in %; accuracies only.
        group: method and budget, whose seeds say how far another run may be; None for a reference model.
        files: result files it comes from, below the results folder.
    """

    metric: Metric
    levels: tuple[float, ...]
    files: tuple[str, ...]
    draws: np.ndarray | None = None
    error: float = 0.0
    chance: float = 0.0
    group: Group | None = None

    @property
    def level(self) -> float:
        return float(np.mean(self.levels))

    @property
    def value(self) -> float:
        return math.exp(self.level) if self.metric == "ppl" else self.level

    @property
    def text(self) -> str:
        if self.metric in ("icl", "param_reduction_pct"):
            return number(self.value, 1, unit=" %")
        return number(self.value, {"avg_rank": 1}.get(self.metric, 0 if self.metric.startswith("dense_") else 2))


class Evidence:
    """The measured side of the claims: looks up quantities, and says within what tolerance two of them are equal."""

    def __init__(self, results: Results, config: Config, bootstrap: Bootstrap) -> None:
        self.results, self.config, self.bootstrap = results, config, bootstrap
        self._samples: dict[Metric, dict[Group, list[list[float]]]] = {}
        self._drawn: dict[str, np.ndarray] = {}
        self._first: tuple[str, np.ndarray, Any] | None = None

    def find(self, selection: Selection, metric: Metric) -> Measured | Missing:
        """The measured value of a metric of the students that a selection names.

        Raises:
            BadInput: two models scored different validation windows.
        """
        if selection.model is not None:
            return self._gather([selection.model], metric, group=None)
        cells = self._select(selection, metric)
        if isinstance(cells, Missing):
            return cells
        return self._gather([f"cells/{cell['cell']}" for cell in cells], metric, group=group_of(cells[0]))

    def tolerance(self, left: Measured, right: Measured) -> float:
        """Largest difference of levels that chance explains at the report's confidence."""
        seeds = [self.seeds(one) / math.sqrt(len(one.levels)) for one in (left, right)]
        return math.hypot(self.known * self.scored(left, right), *seeds)

    def tolerance_to_print(self, one: Measured) -> float:
        """The same for a printed number, which is one run of the authors' with as much spread as a run of ours."""
        ours = math.hypot(self.known * self.scored(one), self.seeds(one) / math.sqrt(len(one.levels)))
        return math.hypot(ours, self.known * self.scored(one), self.seeds(one))

    @cached_property
    def calibrated(self) -> bool | Missing:
        """Whether the teachers' perplexities come out as Table 1 has them; true where nothing asks for that."""
        if not self.config.calibration.teachers:
            return True
        record = self._json("calibration.json")
        return bool(record["as_published"]) if "as_published" in record else Missing("no value in calibration.json")

    @cached_property
    def known(self) -> float:
        """Standard errors that count of an error whose size is known."""
        return quantile(math.inf, self.bootstrap.confidence)

    def seeds(self, one: Measured) -> float:
        """How far another training seed may move one run."""
        return self.spread(one).half_width(self.bootstrap.confidence)

    def scored(self, *sides: Measured) -> float:
        """Standard error of a level, or of a difference of two, by the choice of windows or queries to score on.

        The windows are the same draws of them for both sides; queries count as if they were independent.
        """
        errors = sum(one.error**2 for one in sides)
        draws = [one.draws for one in sides if one.draws is not None]
        if len(draws) < len(sides):
            return math.sqrt(errors)
        paired = draws[0] - draws[1] if len(draws) > 1 else draws[0]
        return math.sqrt(errors + float(paired.var(ddof=1)))

    def covers(self, comparisons: Sequence[Sequence[Measured]]) -> str:
        """What the tolerances of comparisons are made of, in words; all of one metric."""
        metric = comparisons[0][0].metric
        if metric not in VARYING:
            return "none: a count"
        spreads = dict.fromkeys(self.spread(one) for sides in comparisons for one in sides if one.group is not None)
        confidence = self.bootstrap.confidence
        parts = []
        if metric in SCORED_BY:
            parts.append(f"{SCORED_BY[metric]} {range_text([self.scored(*sides) for sides in comparisons], metric)}")
        if spreads:
            texts = [spread_text(spread, metric, confidence=confidence) for spread in spreads]
            parts.append(f"training seeds: {', '.join(texts)}")
        return "; ".join(parts)

    def spread(self, one: Measured) -> Spread:
        """Seed standard deviation of a metric (`spread_of`); zero for models without training runs."""
        if one.group is None or one.metric not in VARYING:
            return Spread()
        if one.metric not in self._samples:
            self._samples[one.metric] = self._runs(one.metric)
        return spread_of(one.group, self._samples[one.metric])

    def _runs(self, metric: Metric) -> dict[Group, list[list[float]]]:
        """Levels of the runs of every recipe, by method and budget."""
        cells = self.results.listed(*CLAIM_TABLES)  # not those of targets that may or may not have been run
        recipe = [name for name in cells.columns if name in RECIPE]
        samples: dict[Group, list[list[float]]] = {}
        for _, runs in cells.groupby(recipe, dropna=False, sort=False):
            if len(runs) > 1:
                levels = [self._level(f"cells/{cell}", metric) for cell in runs["cell"]]
                present = [level for level in levels if not math.isnan(level)]
                samples.setdefault(group_of(runs.iloc[0]), []).append(present)
        return samples

    def _select(self, selection: Selection, metric: Metric) -> list[dict[str, Any]] | Missing:
        """The cells that a selection names: runs of one recipe."""
        wanted = selection.given
        table = wanted.pop("table")
        cells = self.results.listed(table).to_dict("records")
        if not cells:
            return Missing(f"this scale has no {table}")
        absent = [name for name in wanted if name not in cells[0]]
        if absent:
            raise BadInput(f"{self.results.root / 'tables.csv'}: no column {', '.join(absent)}; a claim asks for it")
        if "rank" in wanted:
            wanted["rank"] = wanted["rank"] * self.config.lora.rank / PAPER_RANK
        cells = [cell for cell in cells if all(equal(cell[name], value) for name, value in wanted.items())]
        named = ", ".join(f"{name} {value}" for name, value in wanted.items())
        if not cells:
            return Missing(f"{table} has no student of {named}")
        recipe = RECIPE if metric in VARYING else RECIPE - {"teacher"}  # counts do not depend on the teacher
        differ = [name for name in cells[0] if name in recipe and len({repr(cell[name]) for cell in cells}) > 1]
        if differ:
            return Missing(f"{table} has several students of {named}: they differ in {', '.join(differ)}")
        return cells

    def _gather(self, folders: list[str], metric: Metric, *, group: Group | None) -> Measured | Missing:
        levels = tuple(self._level(folder, metric) for folder in folders)
        files = tuple(self._file(folder, metric) for folder in folders)
        absent = [file for file, level in zip(files, levels, strict=True) if math.isnan(level)]
        if absent:
            return Missing(f"no value in {', '.join(absent)}")
        draws, error, chance = None, 0.0, 0.0
        if metric == "ppl":
            drawn = [self._draw(folder) for folder in folders]
            missing = next((one for one in drawn if isinstance(one, Missing)), None)
            if missing is not None:
                return missing
            draws = np.mean(drawn, axis=0)
        elif metric == "icl":
            # Every run answers the same queries, so that more runs do not make their choice matter less.
            error = float(np.mean([100.0 * self._json(file)["composite_se"] for file in files]))
            chance = 100.0 * self._json(files[0])["chance_composite"]
        return Measured(metric, levels, files, draws, error, chance, group)

    def _scored(self, folder: str) -> str:
        return f"{folder}/compressed/{DEFAULT_VARIANT}" if folder.startswith("cells/") else folder

    def _file(self, folder: str, metric: Metric) -> str:
        kind = source_of(metric).file
        return f"{folder if kind == 'train' else self._scored(folder)}/{kind}.json"

    def _json(self, path: str) -> dict[str, Any]:
        return self.results.json(path) or {}

    def _level(self, folder: str, metric: Metric) -> float:
        """One run's metric as it is compared; NaN where it is missing."""
        value = value_at(self._json(self._file(folder, metric)), source_of(metric).key)
        if metric == "ppl":
            return math.log(value)
        return 100.0 * value if metric == "icl" else float(value)

    def _draw(self, folder: str) -> np.ndarray | Missing:
        """Bootstrap draws [resamples] of a model's ln perplexity; the same windows are drawn for every model."""
        if folder in self._drawn:
            return self._drawn[folder]
        scored = self._scored(folder)
        windows = self.results.windows(scored)
        if windows is None:
            return Missing(f"no value in {scored}/perplexity_windows.parquet")
        tokens = windows["tokens"].to_numpy()
        piece = value_at(self._json(f"{scored}/perplexity.json"), COLUMNS["slice"].key)
        self._first = self._first or (scored, tokens, piece)
        first, first_tokens, first_piece = self._first
        if not np.array_equal(tokens, first_tokens) or piece != first_piece:
            raise BadInput(f"{self.results.root / scored}: {OTHER_WINDOWS.format(first=first)}")
        nll = windows["nll"].to_numpy()[None]
        resamples, seed = self.bootstrap.resamples, self.bootstrap.seed
        self._drawn[folder] = np.log(resampled_perplexities(nll, tokens, resamples=resamples, seed=seed)[:, 0])
        return self._drawn[folder]


def source_of(metric: Metric) -> Source:
    """The result file and key of a metric."""
    return COLUMNS[COLUMN_OF.get(metric, metric)]


def equal(value: Any, wanted: Any) -> bool:
    """Whether a value of a cell is the one a claim names; an empty one (NaN) equals nothing."""
    return value == wanted if isinstance(wanted, str) else math.isclose(float(value), wanted, abs_tol=1e-12)
