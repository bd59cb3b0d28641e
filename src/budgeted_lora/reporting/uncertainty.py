"""How sure a perplexity, or a difference of two, is: a paired bootstrap over validation windows, and training seeds.

Windows are drawn with replacement, the same draw for every model, so what makes a window hard for all of them cancels
in a difference. That interval covers the choice of validation text. What a training seed changes is measured apart,
from recipes that were trained with several seeds (`Spread`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.grouping import files_of, method_label
from budgeted_lora.reporting.results import FILES, RECIPE, Results, variant_folder
from budgeted_lora.reporting.table import ABSENT, Column, Record, csv_only, mean_text, number

ENDS = {"": "value", "_se": "standard_error", "_low": "low", "_high": "high", "_sd": "sd"}
OTHER_WINDOWS = "scored other validation windows than {first}; expected the same for every model"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are found: draws of the validation windows, coverage, seed of the draws."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap standard error and percentile interval."""

    value: float
    standard_error: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Run:
    """A cell, the variant it is scored as, and its seed."""

    cell: str
    variant: str
    seed: int

    @property
    def file(self) -> str:
        """Path of its perplexity below results/<scale>."""
        return FILES["perplexity"].format(cell=self.cell, variant=self.variant)


@dataclass(frozen=True)
class Difference(Interval):
    """One line's perplexity minus another's, both scored on the same windows; the interval is paired by window.

    Attributes:
        value: over the seeds that both lines have, over all of them if they share none.
        sd: standard deviation over the shared seeds, NaN below two.
        seeds: number of shared seeds.
        same_sign: whether the difference has one sign in every shared seed.
    """

    sd: float
    seeds: int
    same_sign: bool

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero and all seeds agree in sign."""
        return super().clear and self.same_sign


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

    def difference(self, line: Sequence[Run], base: Sequence[Run] | None) -> Difference | None:
        """`line` minus `base`, paired by window and by the seeds that both have; None when windows are missing."""
        mine, other = {run.seed: run for run in line}, {run.seed: run for run in base or ()}
        shared = [seed for seed in mine if seed in other]
        first = self.mean([mine[seed] for seed in shared or mine])
        second = self.mean([other[seed] for seed in shared or other])
        if first is None or second is None:
            return None
        by_seed = np.array([self.values[mine[seed]] - self.values[other[seed]] for seed in shared])
        several = len(shared) > 1
        paired = interval(first[0] - second[0], first[1] - second[1], confidence=self.confidence)
        sd = float(by_seed.std(ddof=1)) if several else math.nan
        same_sign = not several or bool(np.all(by_seed > 0) or np.all(by_seed < 0))
        return Difference(**asdict(paired), sd=sd, seeds=len(shared), same_sign=same_sign)


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


def draw(results: Results, scores: pd.DataFrame, bootstrap: Bootstrap) -> Drawn:
    """Bootstrap draws of every run of a frame of `Results.scores` or `runs`; runs without windows are left out.

    Raises:
        BadInput: two runs scored different windows.
    """
    listed = runs_of(scores)
    windows = {run: results.windows(variant_folder(run.cell, run.variant)) for run in listed}
    present = {run: frame for run, frame in windows.items() if frame is not None}
    if not present:
        return Drawn({}, {}, bootstrap.confidence)
    first = next(iter(present))
    tokens = present[first]["tokens"].to_numpy()
    slices = dict(zip(listed, scores["slice"], strict=True))
    for run, frame in present.items():
        if not np.array_equal(frame["tokens"].to_numpy(), tokens) or slices[run] != slices[first]:
            folder = results.root / variant_folder(run.cell, run.variant)
            raise BadInput(f"{folder}: {OTHER_WINDOWS.format(first=first.cell)}")
    nll = np.stack([frame["nll"].to_numpy() for frame in present.values()])
    draws = resampled_perplexities(nll, tokens, resamples=bootstrap.resamples, seed=bootstrap.seed)
    values = dict(zip(present, map(float, perplexities(nll, tokens)), strict=True))
    return Drawn(values, {run: draws[:, i] for i, run in enumerate(present)}, bootstrap.confidence)


def runs_of(scores: pd.DataFrame) -> tuple[Run, ...]:
    """The runs that a frame's rows are, in order."""
    return tuple(Run(*row) for row in zip(scores["cell"], scores["variant"], scores["seed"].map(int), strict=True))


def lines(scores: pd.DataFrame, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row per recipe and variant, its seeds averaged.

    Args:
        scores: a frame of `Results.scores` or `runs`.
        drawn: gives the standard error of a mean over seeds; without it the mean of the runs' errors stands.

    Returns:
        the columns of `scores` with numbers averaged; `ppl_sd` over seeds (NaN for one), `ppl_low` and `ppl_high`
        of the seeds, `seeds`, `runs`, the tuple of runs, and `files`, those of all runs.
    """
    keys = [name for name in scores if name in RECIPE or name == "variant"]
    rows = []
    for _, group in scores.groupby(keys, sort=False, dropna=False):
        numbers = [name for name in group.select_dtypes("number") if name not in keys and name != "seed"]
        row: dict[str, Any] = group.iloc[0].to_dict() | {name: group[name].mean(skipna=False) for name in numbers}
        mine = runs_of(group)
        if "ppl" in group:
            row |= {"ppl_sd": group["ppl"].std(), "ppl_low": group["ppl"].min(), "ppl_high": group["ppl"].max()}
            sampled = drawn.mean(mine) if drawn else None
            row["ppl_se"] = float(sampled[1].std(ddof=1)) if sampled else row["ppl_se"]
        rows.append(row | {"seeds": len(group), "runs": mine, "files": files_of(group)})
    return pd.DataFrame(rows)


def ppl_text(row: Record) -> str:
    return mean_text(row["ppl"], error=row["ppl_se"], deviation=row["ppl_sd"], seeds=row["seeds"])


PPL = (Column("ppl", "PPL", text=ppl_text), *csv_only("ppl_se", "ppl_sd", "seeds"))


def add_differences(
    frame: pd.DataFrame, name: str, drawn: Drawn, bases: Sequence[Sequence[Run] | None]
) -> pd.DataFrame:
    """The frame with each line's difference to its base as `<name>_difference`, and its numbers in columns (ENDS)."""
    differences = [drawn.difference(mine, base) for mine, base in zip(frame["runs"], bases, strict=True)]
    numbers = {
        f"{name}{end}": [getattr(one, field) if one else math.nan for one in differences] for end, field in ENDS.items()
    }
    numbers[f"{name}_clear"] = [bool(one and one.clear) for one in differences]
    return frame.assign(**numbers, **{f"{name}_difference": pd.Series(differences, frame.index, dtype=object)})


def difference_text(difference: Difference | None) -> str:
    """A paired difference: +1.25 ± 0.08, of several seeds with their standard deviation; a dash when missing."""
    if difference is None:
        return ABSENT
    several = difference.seeds > 1
    text = f"{difference.value:+.2f} ± {number(difference.sd if several else difference.standard_error, 2)}"
    return f"{text} ({difference.seeds} seeds)" if several else text


Group = tuple[str, float | None]  # method and budget
Samples = Mapping[Group, Sequence[Sequence[float]]]  # for each group the levels of every recipe's runs


def group_of(row: Any) -> Group:
    return row["method"], None if pd.isna(row["budget"]) else float(row["budget"])


@dataclass(frozen=True)
class Spread:
    """Standard deviation of levels between training seeds.

    Attributes:
        deviation: pooled over recipes that were trained with several seeds; 0 where there is none.
        degrees: of freedom: runs less recipes.
        runs: how many it is computed from.
        group: whose spread this is, None for a model without training seeds of ours.
        source: the groups whose runs it is computed from; others than `group` where that has one seed only.
    """

    deviation: float = 0.0
    degrees: int = 0
    runs: int = 0
    group: Group | None = None
    source: tuple[Group, ...] = ()

    def half_width(self, confidence: float) -> float:
        """Half the width of the interval that a single run lies in: the deviation times Student's t."""
        return self.deviation * quantile(self.degrees, confidence) if self.degrees else 0.0


def spread_of(group: Group, samples: Samples) -> Spread:
    """Seed spread of a method and budget: of its own seeds; else of the method's other budgets; else of all methods."""
    several = {key: [runs for runs in recipes if len(runs) > 1] for key, recipes in samples.items()}
    several = {key: recipes for key, recipes in several.items() if recipes}
    own, of_method = [key for key in several if key == group], [key for key in several if key[0] == group[0]]
    source = tuple(own or of_method or several)
    recipes = [np.asarray(runs, dtype=np.float64) for key in source for runs in several[key]]
    runs = sum(len(levels) for levels in recipes)
    degrees = runs - len(recipes)
    squares = sum(float(((levels - levels.mean()) ** 2).sum()) for levels in recipes)
    return Spread(math.sqrt(squares / degrees) if degrees else 0.0, degrees, runs, group, source)


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


def spread_text(spread: Spread, metric: str, *, confidence: float) -> str:
    """A spread in words: `KD LoRA 0.13 % (3 runs, t 4.3)`, and whose it is where it is borrowed."""
    name = group_label(spread.group) if spread.group else ""
    if not spread.degrees:
        return f"{name} not measured"
    borrowed = spread.source != (spread.group,)
    whose = f", one run, as of {' and '.join(map(group_label, spread.source))}:" if borrowed else ""
    factor = f"t {quantile(spread.degrees, confidence):.3g}"
    return f"{name}{whose} {range_text([spread.deviation], metric)} ({spread.runs} runs, {factor})"


def range_text(levels: Sequence[float], metric: str) -> str:
    """Differences of levels as people read them, the smallest and the largest: 0.4 to 0.9 %."""
    values = [100 * math.expm1(level) if metric == "ppl" else level for level in levels]
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    unit = {"ppl": " %", "icl": " points"}.get(metric, "")
    return f"{low if low == high else f'{low} to {high}'}{unit}"
