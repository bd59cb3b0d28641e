"""The budget F and its schedule: F(t) falls from 1 along a cosine to F (paper, section 3)."""

import math
from dataclasses import dataclass
from typing import get_args

from budgeted_lora.config.recipe import ControllerKind, Recipe
from budgeted_lora.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class BudgetRule:
    """How a run reaches its budget.

    Attributes:
        budget: F, fraction of the dense MACs kept at the end, in [0, 1].
        start, end: share of training at which the cosine starts and ends; equal for a fall without a cosine.
        smoothing: beta of the moving average of retentions, in [0, 1).
        drop_threshold: tau_drop in [0, 1); a smoothed retention below it becomes exactly 0.
        controller: greedy (one module after the other) or uniform (one retention for all modules).
        whole: whether a greedy controller leaves no dense path in part (`controller.whole_paths`).

    Raises:
        BadInput: a value is out of range.
    """

    budget: float
    start: float
    end: float
    smoothing: float = 0.9
    drop_threshold: float = 0.05
    controller: ControllerKind = "greedy"
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.budget <= 1.0:
            raise BadInput(f"budget is {self.budget}; expected a fraction between 0 and 1")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise BadInput(f"schedule runs from {self.start} to {self.end}; expected 0 <= start <= end <= 1")
        for name in ("smoothing", "drop_threshold"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise BadInput(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        if self.controller not in get_args(ControllerKind):
            raise BadInput(f"controller is {self.controller!r}; expected {' or '.join(get_args(ControllerKind))}")
        if self.whole and self.controller != "greedy":
            raise BadInput("whole needs controller: greedy")

    @classmethod
    def of(cls, recipe: Recipe) -> "BudgetRule":
        """The rule in the recipe of a budgeted student. Raises BadInput if it has several budgets."""
        if recipe.elastic:
            raise BadInput(f"budget: elastic has no schedule; its budgets are {recipe.elastic_budgets}")
        return cls(
            budget=recipe.budget,
            start=recipe.schedule_start,
            end=recipe.schedule_end,
            smoothing=recipe.smoothing,
            drop_threshold=recipe.drop_threshold,
            controller=recipe.controller,
            whole=recipe.whole or False,
        )

    def target_fraction(self, t: float) -> float:
        """F(t): fraction of dense MACs to keep when the share `t` of training is done."""
        if t < self.start:
            return 1.0
        if t >= self.end:
            return self.budget
        cosine = (1.0 + math.cos(math.pi * (t - self.start) / (self.end - self.start))) / 2.0
        return self.budget + (1.0 - self.budget) * cosine

    @property
    def mean_fraction(self) -> float:
        """rho: the mean of F(t) over training, exact (the cosine's mean is the middle of its span)."""
        return self.start + (self.end - self.start) * (1.0 + self.budget) / 2.0 + (1.0 - self.end) * self.budget


def trained_share(recipe: Recipe) -> float:
    """Share of the dense MACs whose weights train beside low-rank paths, averaged over a run as scheduled.

    Of those kept, F itself: the path that a budget leaves in part does not train, and where paths stay whole less may
    stay than F. So it is at most this, and train.json has the executed share.
    """
    if recipe.train_dense is None:
        return 0.0
    return recipe.budget if recipe.train_dense == "kept" else BudgetRule.of(recipe).mean_fraction
