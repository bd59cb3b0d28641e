"""Which dense fraction F gives what a reader asks for: fewer multiply-accumulates (MACs), or fewer weights.

Both count the projections, as the paper does, and compare with the whole model, also where the student has fewer
layers. They are those of the planned structure, whose dense paths go by ascending MACs. Where weights decide the order,
larger paths go earlier; each saves more, so that the student has about as many MACs or a few fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from budgeted_lora.config.anatomy import Anatomy
from budgeted_lora.config.sections import Budget, Compression
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, dense_macs
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import Structure, steps_needed, structure
from budgeted_lora.workflow.recipes import narrowed, shape_of

GRID = [n / 100 for n in range(100, -1, -1)]  # the values of F that are tried, the largest first
RANK_SHARE = 6  # hidden size over rank; the paper's 768 / 128
BREAK_EVEN_SHARE = 5 / 6  # of the rank at which the narrowest projection gains nothing; the paper's 128 / 153.6
RANK_STEP = 8


def usual_rank(shape: ModelShape) -> int:
    """The paper's rank in proportion to a model, in steps of 8: low enough that every projection gains by it."""
    break_even = shape.hidden * shape.kv / (shape.hidden + shape.kv)
    rank = int(min(shape.hidden / RANK_SHARE, BREAK_EVEN_SHARE * break_even))
    return max(1, rank - rank % RANK_STEP if rank >= RANK_STEP else rank)


@dataclass(frozen=True)
class Choices:
    """The students that a model can become.

    Attributes:
        model: the network that is compressed.
        layers: of the student.
        rank: of the low-rank paths.
        rank_multiple: what SVD ranks are rounded to.
    """

    model: Anatomy
    layers: int
    rank: int
    rank_multiple: int = 1

    @cached_property
    def student(self) -> ModelShape:
        return shape_of(self.model, layers=self.layers)

    @cached_property
    def whole_macs(self) -> int:
        """MACs of the model's projections, per token."""
        return dense_macs(shape_of(self.model))

    def refuse_controls(self, budgets: Sequence[float]) -> None:
        """Raises BadInput if an F leaves too few MACs for a dense student beside its own."""
        for budget in budgets:
            layers, ffn = narrowed(self.student, macs=self.structure(budget).totals.macs)
            if ffn < 1:
                raise BadInput(
                    f"--controls: F = {budget:g} leaves the MACs of {layers} layers without feed-forwards; expected a "
                    "larger F or --rank"
                )

    def structure(self, budget: float) -> Structure:
        return structure(
            self.student, rule(budget), rank=self.rank, r_max=max(1, self.rank // 2),
            rank_multiple=self.rank_multiple, svd_threshold=Compression().svd_threshold,
        )  # fmt: skip

    def speedup(self, budget: float) -> float:
        """MACs of the model's projections over those of the student's."""
        return self.whole_macs / self.structure(budget).totals.macs

    def speedup_with_head(self, budget: float) -> float:
        """The same with the output layer, which stays whole."""
        head = self.model.hidden * (self.model.vocab_size or 0)
        return (self.whole_macs + head) / (self.structure(budget).totals.macs + head)

    def reduction(self, budget: float) -> float:
        """Per cent of the weights of the model's projections that the student lacks."""
        return 100.0 * (1.0 - 1.0 / self.speedup(budget))

    def largest_budget(self, *, speedup: float, asked: str) -> float:
        """The largest F of two digits whose planned structure has at most the model's MACs over `speedup`.

        Args:
            asked: the option, for the message.

        Raises:
            BadInput: no F has; it says what the smallest student reaches.
        """
        for budget in GRID:
            if self.speedup(budget) >= speedup:
                return budget
        best = max(GRID, key=self.speedup)
        most = int(self.speedup(best) * 100) / 100
        raise BadInput(
            f"{asked}: no F reaches it with rank {self.rank} and {self.layers} of {self.model.layers} layers; expected "
            f"at most {most:.2f}x fewer multiply-accumulates, {int(self.reduction(best))} % fewer weights (a lower "
            "--rank or fewer --student-layers reach more)"
        )

    def steps_needed(self, budgets: list[float]) -> int:
        """Fewest training steps in which all of these budgets are reached."""
        threshold = Compression().svd_threshold
        return max(steps_needed(self.student, rule(budget), svd_threshold=threshold) for budget in budgets)


def rule(budget: float) -> BudgetRule:
    """How a run reaches its budget, by the defaults of a scale."""
    usual = Budget()
    start, end = usual.schedules[usual.schedule]
    about = {"smoothing": usual.smoothing, "drop_threshold": usual.drop_threshold}
    return BudgetRule(budget=budget, start=start, end=end, **about)
