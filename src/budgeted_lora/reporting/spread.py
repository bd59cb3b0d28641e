"""How far training seeds move a quantity: by method and budget, and what stands in where one was trained with one seed.

Methods differ in it by more than ten times, so each is judged by its own seeds. A deviation found from few of them may
be too small by chance, so it counts times Student's t: 4.3 for three runs of one recipe where 1.96 would do for many.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from budgeted_lora.reporting.load import method_label

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


def spread_text(spread: Spread, metric: str, *, confidence: float) -> str:
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
