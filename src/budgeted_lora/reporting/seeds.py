"""Runs of one recipe under several seeds as one line of a table, and paired differences between lines.

A run is a trained cell under one of the compression settings that it is scored with. With one seed the uncertainty
of a perplexity is that of the validation text; with several it is their standard deviation, and both are kept.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.grouping import Settings
from budgeted_lora.reporting.layout import ABSENT, measured, number
from budgeted_lora.reporting.load import PARTS, Results
from budgeted_lora.reporting.uncertainty import interval, perplexities, resampled_perplexities

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
