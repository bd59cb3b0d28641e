"""What was measured of the quantities that claims speak of, and how far chance could move a difference of two.

Perplexities are compared as ratios (differences of their logarithm), so that a seed's spread measured under one teacher
serves under another; everything else is compared as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import CLAIM_TABLES, Config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.claims.file import Metric, Selection
from budgeted_lora.reporting.grouping import Settings
from budgeted_lora.reporting.results import Results, perplexity_columns
from budgeted_lora.reporting.table import number
from budgeted_lora.reporting.uncertainty import (
    Group,
    Spread,
    quantile,
    range_text,
    resampled_perplexities,
    seed_spread_text,
    spread_of,
)

PAPER_RANK = 128
RECIPE = frozenset(Recipe.model_fields) - {"seed"}  # columns of cells.csv in which runs of one recipe agree
PARTS = {"ppl": "perplexity.json", "icl": "icl.json", "train_compute": "train.json", "executed_compute": "train.json"}
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
        """The quantity itself."""
        return math.exp(self.level) if self.metric == "ppl" else self.level

    @property
    def text(self) -> str:
        """The quantity as people read it."""
        if self.metric in ("icl", "param_reduction_pct"):
            return number(self.value, 1, unit=" %")
        return number(self.value, {"avg_rank": 1}.get(self.metric, 0 if self.metric.startswith("dense_") else 2))


class Evidence:
    """The measured side of the claims: looks up quantities, and says within what tolerance two of them are equal."""

    def __init__(self, results: Results, config: Config, settings: Settings) -> None:
        self.results, self.config, self.settings = results, config, settings
        self._spreads: dict[tuple[Metric, Group | None], Spread] = {}
        self._samples: dict[Metric, dict[Group, list[list[float]]]] = {}
        self._drawn: dict[str, np.ndarray | Missing] = {}
        self._first: tuple[str, np.ndarray, Any] | None = None
        self._found: dict[tuple[Selection, Metric], Measured | Missing] = {}

    def find(self, selection: Selection, metric: Metric) -> Measured | Missing:
        """The measured value of a metric of the students that a selection names.

        Raises:
            BadInput: two models scored different validation windows.
        """
        key = (selection, metric)
        if key not in self._found:
            self._found[key] = self._find(selection, metric)
        return self._found[key]

    def _find(self, selection: Selection, metric: Metric) -> Measured | Missing:
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
        found = self._json("calibration.json")
        return bool(found["as_published"]) if "as_published" in found else Missing("no value in calibration.json")

    @cached_property
    def known(self) -> float:
        """Standard errors that count of an error whose size is known."""
        return quantile(math.inf, self.settings.confidence)

    def seeds(self, one: Measured) -> float:
        """How far another training seed may move one run."""
        return self.spread(one).half_width(self.settings.confidence)

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
        confidence = self.settings.confidence
        seeds = ", ".join(seed_spread_text(spread, metric, confidence=confidence) for spread in spreads)
        said = [f"training seeds: {seeds}"] if seeds else []
        if metric in SCORED_BY:
            scored = [self.scored(*sides) for sides in comparisons]
            said = [f"{SCORED_BY[metric]} {range_text(scored, metric)}", *said]
        return "; ".join(said)

    def spread(self, one: Measured) -> Spread:
        """How far training seeds move a quantity: see `spread.spread_of`; not at all if no run of ours is in it."""
        if one.group is None or one.metric not in VARYING:
            return Spread()
        key = (one.metric, one.group)
        if key not in self._spreads:
            if one.metric not in self._samples:
                self._samples[one.metric] = self._runs(one.metric)
            self._spreads[key] = spread_of(one.group, self._samples[one.metric])
        return self._spreads[key]

    def _runs(self, metric: Metric) -> dict[Group, list[list[float]]]:
        """Levels of the runs of every recipe, by method and budget."""
        cells = self.results.listed(*CLAIM_TABLES)  # not those of targets that may or may not have been run
        recipe = [name for name in cells.columns if name in RECIPE]
        found: dict[Group, list[list[float]]] = {}
        for _, runs in cells.groupby(recipe, dropna=False, sort=False):
            if len(runs) > 1:
                levels = [self._level(f"cells/{cell}", metric) for cell in runs["cell"]]
                there = [level for level in levels if not math.isnan(level)]
                found.setdefault(group_of(runs.iloc[0]), []).append(there)
        return found

    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        """The lines of cells.csv."""
        return self.results.cells.to_dict("records")

    def _select(self, selection: Selection, metric: Metric) -> list[dict[str, Any]] | Missing:
        """Lines of the cells that a selection names: runs of one recipe."""
        wanted = selection.given
        table = wanted.pop("table")
        cells = [cell for cell in self._cells if table in cell["tables"].split()]
        if not cells:
            return Missing(f"this scale has no {table}")
        absent = [name for name in wanted if name not in cells[0]]
        if absent:
            raise BadInput(f"{self.results.root / 'cells.csv'}: no column {', '.join(absent)}; a claim asks for it")
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
        return f"{folder}/compressed/{self.results.settings}" if folder.startswith("cells/") else folder

    def _file(self, folder: str, metric: Metric) -> str:
        part = PARTS.get(metric, "compression.json")
        return f"{folder}/{part}" if part == "train.json" else f"{self._scored(folder)}/{part}"

    def _json(self, path: str) -> dict[str, Any]:
        return self.results.json(path) or {}

    def _level(self, folder: str, metric: Metric) -> float:
        """One run's metric as it is compared; NaN where it is missing."""
        found = self._json(self._file(folder, metric))
        value = LEVELS[metric](found)
        return math.nan if value is None else float(value)

    def _draw(self, folder: str) -> np.ndarray | Missing:
        """Bootstrap draws [resamples] of a model's ln perplexity; the same windows are drawn for every model."""
        if folder not in self._drawn:
            scored = self._scored(folder)
            windows = self.results.windows(scored)
            if windows is None:
                self._drawn[folder] = Missing(f"no value in {scored}/perplexity_windows.parquet")
            else:
                tokens = windows["tokens"].to_numpy()
                self._same_windows(scored, tokens)
                nll = windows["nll"].to_numpy()[None]
                how = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
                self._drawn[folder] = np.log(resampled_perplexities(nll, tokens, **how)[:, 0])
        return self._drawn[folder]

    def _same_windows(self, scored: str, tokens: np.ndarray) -> None:
        piece = perplexity_columns(self._json(f"{scored}/perplexity.json"))["slice"]
        if self._first is None:
            self._first = (scored, tokens, piece)
        first, its_tokens, its_piece = self._first
        if not np.array_equal(tokens, its_tokens) or piece != its_piece:
            raise BadInput(
                f"{self.results.root / scored}: scored other validation windows than {first}; "
                "expected the same for every model"
            )


def group_of(cell: Any) -> Group:
    """Method and budget of a line of cells.csv."""
    return cell["method"], None if math.isnan(cell["budget"]) else float(cell["budget"])


def equal(found: Any, wanted: Any) -> bool:
    """Whether a value of cells.csv is the one a claim asks for; an empty one (NaN) equals nothing."""
    return found == wanted if isinstance(wanted, str) else math.isclose(float(found), wanted, abs_tol=1e-12)


def _log_perplexity(found: dict[str, Any]) -> float | None:
    return math.log(found["value"]) if found.get("value") else None


def _percent(found: dict[str, Any]) -> float | None:
    return 100.0 * found["composite"] if "composite" in found else None


def _total(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda found: (found.get("totals") or {}).get(name)


def _compute(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda found: (found.get("train_compute") or {}).get(name)


LEVELS: dict[Metric, Callable[[dict[str, Any]], float | None]] = {
    "ppl": _log_perplexity,
    "icl": _percent,
    "train_compute": _compute("scheduled"),
    "executed_compute": _compute("executed"),
    "module_speedup": _total("speedup_vs_dense"),
    "param_reduction_pct": _total("param_reduction_pct"),
    "dense_kept": _total("kept"),
    "dense_svd": _total("svd"),
    "dense_dropped": _total("dropped"),
    "avg_rank": _total("avg_rank"),
}
