"""Beyond the paper: one training for every budget.

The paper trains one student for each F. An elastic run trains one: each step sets the dense paths to what some F leaves
of them at the end of a schedule, so that compression can cut the trained student to any F. Half of the steps draw their
F from the list; the others take the lowest and the highest in turn, as in training with the sandwich rule
(arXiv 1903.05134), whose widths between the ends do well once the ends do.
"""

from collections.abc import Sequence

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput
from budgeted_lora.method.controller import Dial, final_retentions
from budgeted_lora.method.schedule import BudgetRule


def budget_of_step(n: int, budgets: Sequence[float], *, seed: int) -> float:
    """F of step n = 0, 1, ...: drawn, the lowest, drawn, the highest, and again.

    Args:
        budgets: ascending; the ends can be drawn, too.
        seed: with n alone it determines the draw, so a resumed run draws what it would have drawn.
    """
    import numpy as np  # `plan` asks this module for a mean, and starts quickly

    if n % 2:
        return budgets[0] if n % 4 == 1 else budgets[-1]
    return budgets[int(np.random.default_rng([seed, n]).integers(len(budgets)))]


def scheduled_fraction(recipe: Recipe) -> float:
    """The scheduled share of the dense paths, averaged over training; 1 for students without a budget.

    The greedy controller runs hardly more; the uniform one runs every dense path in full until all are dropped.
    """
    if recipe.elastic:
        budgets = recipe.elastic_budgets
        return (sum(budgets) / len(budgets) + (budgets[0] + budgets[-1]) / 2) / 2
    return BudgetRule.of(recipe).mean_fraction if recipe.method == "budgeted_lora" else 1.0


class ElasticController(Dial):
    """Retentions of an elastic run: at each step those that one of several budgets ends with.

    Args:
        costs, removal_order: as of every `Dial`.
        budgets: at least two different ones in [0, 1).
        drop_threshold: a retention below it is 0.
        seed: of the draws.

    Raises:
        BadInput: budgets are fewer, equal or out of range, or what a `Dial` refuses.
    """

    def __init__(
        self,
        costs: Sequence[int],
        budgets: Sequence[float],
        *,
        drop_threshold: float,
        seed: int,
        removal_order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(costs, removal_order=removal_order)
        if len(budgets) < 2 or len(set(budgets)) < len(budgets) or not all(0.0 <= one < 1.0 for one in budgets):
            raise BadInput(f"elastic budgets are {list(budgets)}; expected at least two different ones in [0, 1)")
        self.budgets, self.seed = sorted(budgets), seed
        how = {"kind": "greedy", "drop_threshold": drop_threshold, "removal_order": removal_order}
        self.ends = {budget: final_retentions(costs, budget, **how) for budget in self.budgets}

    @classmethod
    def of(cls, recipe: Recipe, costs: Sequence[int], removal_order: Sequence[int] | None) -> "ElasticController":
        """The controller of an elastic recipe."""
        how = {"drop_threshold": recipe.drop_threshold, "seed": recipe.seed, "removal_order": removal_order}
        return cls(costs, recipe.elastic_budgets, **how)

    def step(self, n: int, *, steps: int) -> list[float]:
        self.target = budget_of_step(n, self.budgets, seed=self.seed)
        self.retentions = list(self.ends[self.target])
        return list(self.retentions)
