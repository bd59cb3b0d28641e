"""How sure a perplexity, or a difference of two, is: a paired bootstrap over validation windows, in float64.

Windows are drawn with replacement, the same draw for every model, so what makes a window hard for all of them
cancels in a difference. The interval speaks of the choice of validation text, not of the training seed.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.grouping import Settings, method_label
from budgeted_lora.reporting.results import PARTS, Results
from budgeted_lora.reporting.table import ABSENT, measured, number


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap standard error and percentile interval."""

    value: float
    standard_error: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0.0 or self.high < 0.0


def perplexities(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Perplexity of each model.

    Args:
        nll: [models, windows], sum of the negative log likelihood over a window's scored tokens, nats.
        tokens: [windows], scored tokens of each window.

    Returns:
        [models], exp of the token mean.
    """
    return np.exp(nll.sum(axis=-1, dtype=np.float64) / tokens.sum(dtype=np.float64))


def resampled_perplexities(nll: np.ndarray, tokens: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Perplexities of `resamples` draws of the windows, the same draws for every model.

    Args:
        nll: [models, windows]; tokens: [windows], as in `perplexities`.

    Returns:
        [resamples, models], float64.
    """
    nll, tokens = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    windows = tokens.shape[0]
    generator = np.random.default_rng(seed)
    shares = np.full(windows, 1.0 / windows)
    drawn = []
    for start in range(0, resamples, 100):  # in blocks: 1000 draws of 10,000 windows would take 80 MB at once
        counts = generator.multinomial(windows, shares, size=min(100, resamples - start)).astype(np.float64)
        drawn.append(np.exp((counts @ nll.T) / (counts @ tokens)[:, None]))
    return np.concatenate(drawn)


def interval(value: float, draws: np.ndarray, *, confidence: float) -> Interval:
    """Standard error and percentile interval of bootstrap draws [resamples]."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(float(value), float(draws.std(ddof=1)), float(low), float(high))


NOT_RECIPE = frozenset({"cell", "tables", "settings", "asked", "seed", "structure", "setting"})


@dataclass(frozen=True)
class Run:
    """A cell, its seed, and the compression settings it is scored with."""

    cell: str
    setting: str
    seed: int


@dataclass(frozen=True)
class Difference:
    """One line's perplexity minus another's, both scored on the same windows.

    Attributes:
        value: over the seeds that both lines have, over all of them if they share none.
        standard_error, low, high: of the paired bootstrap over windows.
        sd: standard deviation over the shared seeds, NaN below two.
        seeds: number of shared seeds.
        same_sign: whether the difference has one sign in every shared seed.
    """

    value: float
    standard_error: float
    low: float
    high: float
    sd: float
    seeds: int
    same_sign: bool

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out and no seed says otherwise."""
        return (self.low > 0.0 or self.high < 0.0) and self.same_sign


@dataclass(frozen=True)
class Drawn:
    """Perplexities of runs and their bootstrap draws [resamples], the same draws of windows for every run."""

    values: dict[Run, float]
    draws: dict[Run, np.ndarray]
    confidence: float

    def mean(self, line: Sequence[Run]) -> tuple[float, np.ndarray] | None:
        """Mean perplexity over the runs of a line and its draws; None when a run's windows are missing."""
        if not line or any(run not in self.values for run in line):
            return None
        return float(np.mean([self.values[run] for run in line])), np.mean([self.draws[run] for run in line], axis=0)

    def difference(self, line: Sequence[Run], base: Sequence[Run]) -> Difference | None:
        """`line` minus `base`, paired by window and by the seeds that both have; None when windows are missing."""
        mine, other = ({run.seed: run for run in runs} for runs in (line, base))
        shared = [seed for seed in mine if seed in other]
        first, second = ([runs[seed] for seed in shared] or list(runs.values()) for runs in (mine, other))
        found, reference = self.mean(first), self.mean(second)
        if found is None or reference is None:
            return None
        by_seed = np.array([self.values[mine[seed]] - self.values[other[seed]] for seed in shared])
        spread = interval(found[0] - reference[0], found[1] - reference[1], confidence=self.confidence)
        return Difference(
            value=spread.value,
            standard_error=spread.standard_error,
            low=spread.low,
            high=spread.high,
            sd=float(by_seed.std(ddof=1)) if len(shared) > 1 else float("nan"),
            seeds=len(shared),
            same_sign=bool(np.all(by_seed > 0) or np.all(by_seed < 0)) if len(shared) > 1 else True,
        )


def runs(results: Results, *tables: str, parts: Collection[str] = PARTS) -> pd.DataFrame:
    """One row a run that any of `tables` asks for: columns of cells.csv, `setting`, and those of `Results.score`.

    Raises:
        BadInput: no cell is listed, or a result is missing and the report is not partial.
    """
    listed = results.listed(*tables)
    if listed.empty:
        raise BadInput(f"{results.root / 'cells.csv'}: no cell of {' or '.join(tables)}; expected at least one")
    rows = []
    for position, cell in enumerate(listed.itertuples()):
        for name in results.settings_asked(cell, *tables):
            score = replace(results, settings=name).score(cell, parts=parts)
            rows.append(listed.iloc[position].to_dict() | {"setting": name} | score)
    return pd.DataFrame(rows)


def draw(results: Results, scores: pd.DataFrame, settings: Settings) -> Drawn:
    """Bootstrap draws of every run of a frame (`runs`, or one of `Results.scores`); runs without windows are left out.

    Raises:
        BadInput: two runs scored different windows.
    """
    found = {run: results.windows(windows_folder(results, run)) for run in runs_of(results, scores)}
    there = {run: frame for run, frame in found.items() if frame is not None}
    if not there:
        return Drawn({}, {}, settings.confidence)
    first = next(iter(there))
    tokens = there[first]["tokens"].to_numpy()
    slices = dict(zip(runs_of(results, scores), scores["slice"], strict=True))
    for run, frame in there.items():
        if not np.array_equal(frame["tokens"].to_numpy(), tokens) or slices[run] != slices[first]:
            raise BadInput(
                f"{results.root / windows_folder(results, run)}: scored other validation windows than {first.cell}; "
                "expected the same for every model"
            )
    nll = np.stack([frame["nll"].to_numpy() for frame in there.values()])
    draws = resampled_perplexities(nll, tokens, resamples=settings.bootstrap, seed=settings.seed)
    values = dict(zip(there, map(float, perplexities(nll, tokens)), strict=True))
    return Drawn(values, {run: draws[:, i] for i, run in enumerate(there)}, settings.confidence)


def runs_of(results: Results, scores: pd.DataFrame) -> tuple[Run, ...]:
    """The runs that a frame's rows are, in order."""
    setting = scores["setting"] if "setting" in scores else [results.settings] * len(scores)
    return tuple(Run(*values) for values in zip(scores["cell"], setting, scores["seed"].map(int), strict=True))


def windows_folder(results: Results, run: Run) -> str:
    """Path below the results of a run's scores."""
    return replace(results, settings=run.setting).compressed(run.cell)


def lines(results: Results, scores: pd.DataFrame, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row a recipe and compression setting, its seeds averaged.

    Args:
        scores: a frame of `runs` or of `Results.scores`.
        drawn: gives the standard error of a mean over seeds; without it the mean of the runs' stands.

    Returns:
        the columns of `scores` with numbers averaged; `ppl_sd` over seeds (NaN for one), `ppl_low` and `ppl_high`
        of the seeds, `seeds`, and `runs`, the tuple of runs.
    """
    keys = [name for name in results.cells.columns if name not in NOT_RECIPE]
    keys += ["setting"] if "setting" in scores else []
    rows = []
    for _, group in scores.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = group.iloc[0].to_dict()
        row |= {
            name: group[name].mean(skipna=False)
            for name in group.select_dtypes("number").columns
            if name not in keys and name != "seed"
        }
        mine = runs_of(results, group)
        if "ppl" in group:
            row |= {"ppl_sd": group["ppl"].std(), "ppl_low": group["ppl"].min(), "ppl_high": group["ppl"].max()}
            sampled = drawn.mean(mine) if drawn else None
            row["ppl_se"] = float(sampled[1].std(ddof=1)) if sampled else row["ppl_se"]
        rows.append(row | {"seeds": len(group), "runs": mine})
    return pd.DataFrame(rows)


def spread_text(value: float, error: float, sd: float, seeds: int, digits: int = 2) -> str:
    """A mean with its standard error, or, of several seeds, with their standard deviation and number."""
    if seeds > 1:
        text = measured(value, sd, digits)
        return text if text == ABSENT else f"{text} ({seeds} seeds)"
    return measured(value, error, digits)


def ppl_texts(frame: pd.DataFrame) -> list[str]:
    """Perplexities of lines as people read them."""
    columns = (frame[name] for name in ("ppl", "ppl_se", "ppl_sd", "seeds"))
    return [spread_text(value, error, sd, int(seeds)) for value, error, sd, seeds in zip(*columns, strict=True)]


def difference_text(found: Difference | None) -> str:
    """A paired difference: +1.25 ± 0.08, of several seeds with their standard deviation; a dash when missing."""
    if found is None:
        return ABSENT
    several = found.seeds > 1
    text = f"{found.value:+.2f} ± {number(found.sd if several else found.standard_error, 2)}"
    return f"{text} ({found.seeds} seeds)" if several else text


def several_seeds(counts: Iterable[int]) -> list[str]:
    """The sentence that says what ± means where a line has several seeds; empty where none has."""
    if max(counts, default=1) < 2:
        return []
    return [
        "Where a number of training seeds stands in brackets, the value is their mean and ± their standard deviation."
    ]


Group = tuple[str, float | None]  # method and budget


Samples = Mapping[Group, Sequence[Sequence[float]]]  # for each group the levels of every recipe's runs


@dataclass(frozen=True)
class Spread:
    """Standard deviation of levels between training seeds.

    Attributes:
        deviation: pooled over recipes that were trained with several seeds; 0 where there is none.
        degrees: of freedom: runs less recipes.
        runs: how many it is found from.
        group: whose spread is asked for, None for a model without training seeds of ours.
        found_in: whose runs it is found from, others than `group` where that was trained with one seed only.
    """

    deviation: float = 0.0
    degrees: int = 0
    runs: int = 0
    group: Group | None = None
    found_in: tuple[Group, ...] = ()

    def half_width(self, confidence: float) -> float:
        """Half the width of the interval that a single run lies in: the deviation times Student's t."""
        return self.deviation * quantile(self.degrees, confidence) if self.degrees else 0.0


def spread_of(group: Group, samples: Samples) -> Spread:
    """The spread of a method and budget: of its own seeds; else of the method's other budgets; else of all methods."""
    several = {key: [runs for runs in recipes if len(runs) > 1] for key, recipes in samples.items()}
    several = {key: recipes for key, recipes in several.items() if recipes}
    nearest = [
        tuple(key for key in several if key == group),
        tuple(key for key in several if key[0] == group[0]),
        tuple(several),
    ]
    found_in = next((keys for keys in nearest if keys), ())
    recipes = [np.asarray(runs, dtype=np.float64) for key in found_in for runs in several[key]]
    runs = sum(len(levels) for levels in recipes)
    degrees = runs - len(recipes)
    squares = sum(float(((levels - levels.mean()) ** 2).sum()) for levels in recipes)
    return Spread(math.sqrt(squares / degrees) if degrees else 0.0, degrees, runs, group, found_in)


def quantile(degrees: float, confidence: float) -> float:
    """Standard errors in half an interval: 1.96 at a confidence of 0.95 for a known error, more for an estimated one.

    Args:
        degrees: of freedom of the estimate; infinite for a known error.
    """
    tail = 0.5 + confidence / 2.0
    return NormalDist().inv_cdf(tail) if math.isinf(degrees) else float(stdtrit(degrees, tail))


def group_label(group: Group) -> str:
    """KD Full, KD LoRA, F = 0.4."""
    method, budget = group
    return method_label(method) if budget is None else f"F = {budget:g}"


def seed_spread_text(spread: Spread, metric: str, *, confidence: float) -> str:
    """A spread in words: `KD LoRA 0.13 % (3 runs, t 4.3)`, and whose it is where it is borrowed."""
    name = group_label(spread.group) if spread.group else ""
    if not spread.degrees:
        return f"{name} not measured"
    borrowed = spread.found_in != (spread.group,)
    whose = f", one run, as of {' and '.join(map(group_label, spread.found_in))}:" if borrowed else ""
    factor = f"t {quantile(spread.degrees, confidence):.3g}"
    return f"{name}{whose} {range_text([spread.deviation], metric)} ({spread.runs} runs, {factor})"


def range_text(levels: Sequence[float], metric: str) -> str:
    """Differences of levels as people read them, the smallest and the largest: 0.4 to 0.9 %."""
    shown = [100 * math.expm1(level) if metric == "ppl" else level for level in levels]
    low, high = f"{min(shown):.2g}", f"{max(shown):.2g}"
    unit = {"ppl": " %", "icl": " points"}.get(metric, "")
    return f"{low if low == high else f'{low} to {high}'}{unit}"
