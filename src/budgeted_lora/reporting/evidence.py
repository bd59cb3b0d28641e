"""What was measured of the quantities that claims speak of, and how far chance could move a difference of two.

Perplexities are compared as ratios (differences of their logarithm), so that a seed's spread measured at one of them
serves at another; everything else is compared as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np

from budgeted_lora.config import CLAIM_TABLES, Config
from budgeted_lora.errors import BadInput
from budgeted_lora.recipe import Recipe
from budgeted_lora.reporting.claims_file import Metric, Selection
from budgeted_lora.reporting.grouping import Settings
from budgeted_lora.reporting.layout import number
from budgeted_lora.reporting.load import Results, perplexity_columns
from budgeted_lora.reporting.uncertainty import resampled_perplexities

PAPER_RANK = 128
RECIPE = frozenset(Recipe.model_fields) - {"seed"}  # columns of cells.csv in which runs of one recipe agree
PARTS = {"ppl": "perplexity.json", "icl": "icl.json", "train_compute": "train.json", "executed_compute": "train.json"}
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
        trained: whether a training seed is part of it: not of a reference model.
        files: result files it comes from, below the results folder.
    """

    metric: Metric
    levels: tuple[float, ...]
    files: tuple[str, ...]
    draws: np.ndarray | None = None
    error: float = 0.0
    chance: float = 0.0
    trained: bool = True

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


@dataclass(frozen=True)
class Spread:
    """How much a quantity differs between training seeds: pooled standard deviation of levels, over `runs` of recipes
    that were trained with several seeds; zero runs where none was."""

    deviation: float
    runs: int


class Evidence:
    """The measured side of the claims: looks up quantities, and says within what tolerance two of them are equal."""

    def __init__(self, results: Results, config: Config, settings: Settings) -> None:
        self.results, self.config, self.settings = results, config, settings
        self._spreads: dict[Metric, Spread] = {}
        self._drawn: dict[str, np.ndarray | Missing] = {}
        self._first: tuple[str, np.ndarray, Any] | None = None
        self._found: dict[tuple[Selection, Metric], Measured | Missing] = {}

    @cached_property
    def quantile(self) -> float:
        """Standard errors in a tolerance: 1.96 at a confidence of 0.95."""
        return NormalDist().inv_cdf(0.5 + self.settings.confidence / 2.0)

    def find(self, selection: Selection, metric: Metric) -> Measured | Missing:
        """The measured value of a metric of the students that a selection names.

        Raises:
            BadInput: two models scored different validation windows.
        """
        key = (selection, metric)
        if key not in self._found:
            folders = self._select(selection, metric) if selection.model is None else [selection.model]
            trained = selection.model is None
            self._found[key] = (
                folders if isinstance(folders, Missing) else self._gather(folders, metric, trained=trained)
            )
        return self._found[key]

    def tolerance(self, left: Measured, right: Measured) -> float:
        """Largest difference of levels that chance explains at the report's confidence."""
        windows = 0.0
        if left.draws is not None and right.draws is not None:
            windows = float((left.draws - right.draws).std(ddof=1))  # paired: the same draws of the same windows
        seeds = self.spread(left.metric).deviation
        runs = sum(1.0 / len(one.levels) for one in (left, right) if one.trained)
        return self.quantile * math.sqrt(windows**2 + left.error**2 + right.error**2 + runs * seeds**2)

    def tolerance_to_print(self, one: Measured) -> float:
        """The same for a printed number, which is one run of the authors' with as much spread as a run of ours."""
        windows = 0.0 if one.draws is None else float(one.draws.std(ddof=1))
        seeds = self.spread(one.metric).deviation if one.trained else 0.0
        runs = 1.0 + 1.0 / len(one.levels)
        return self.quantile * math.sqrt(2.0 * (windows**2 + one.error**2) + runs * seeds**2)

    def covers(self, metric: Metric) -> str:
        """What a tolerance takes into account, in words."""
        if metric not in VARYING:
            return "none: a count"
        spread = self.spread(metric)
        seeds = f"training seeds ({spread.runs} runs)" if spread.runs else ""
        chance = {"ppl": "validation windows, paired", "icl": "ICL queries"}.get(metric, "")
        return " and ".join(part for part in (chance, seeds) if part) or "none measured"

    def spread(self, metric: Metric) -> Spread:
        """The pooled spread between seeds at this scale, over all recipes that were trained with several."""
        if metric not in self._spreads:
            self._spreads[metric] = self._pool(metric) if metric in VARYING else Spread(0.0, 0)
        return self._spreads[metric]

    def _pool(self, metric: Metric) -> Spread:
        cells = self.results.listed(*CLAIM_TABLES)  # not those of targets that may or may not have been run
        recipe = [name for name in cells.columns if name in RECIPE]
        squares, degrees, runs = 0.0, 0, 0
        for _, group in cells.groupby(recipe, dropna=False, sort=False):
            if len(group) < 2:
                continue
            levels = [self._level(f"cells/{cell}", metric) for cell in group["cell"]]
            there = np.array([level for level in levels if not math.isnan(level)])
            if len(there) > 1:
                squares += float(((there - there.mean()) ** 2).sum())
                degrees += len(there) - 1
                runs += len(there)
        return Spread(math.sqrt(squares / degrees) if degrees else 0.0, runs)

    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        """The lines of cells.csv."""
        return self.results.cells.to_dict("records")

    def _select(self, selection: Selection, metric: Metric) -> list[str] | Missing:
        """Folders of the cells that a selection names: runs of one recipe."""
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
        return [f"cells/{cell['cell']}" for cell in cells]

    def _gather(self, folders: list[str], metric: Metric, *, trained: bool) -> Measured | Missing:
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
        return Measured(metric, levels, files, draws, error, chance, trained)

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
