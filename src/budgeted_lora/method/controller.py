"""The controller: which dense path runs at what strength, at every step of training (paper, section 3)."""

from collections.abc import Sequence
from typing import Literal

from budgeted_lora.errors import BadInput
from budgeted_lora.method.schedule import check_schedule, target_fraction

ControllerKind = Literal["greedy", "uniform"]
DIGITS = 12


def greedy_targets(costs: Sequence[int], fraction: float, order: Sequence[int] | None = None) -> list[float]:
    """Target coefficients that keep exactly `fraction` of the total cost, taken from one module after the other.

    The walk starts from 1 everywhere. The paper's order is by ascending cost; ties keep the order of `costs`, which is
    the order of `named_modules()`.
    Coefficients are rounded to 12 digits, so that one which equals a threshold on paper (0.05 at F = 0.6) does so here.

    Args:
        costs: MACs of each module.
        fraction: share of the total to keep, in [0, 1].
        order: indices of the modules in the order of removal; the paper's when None.

    Returns:
        One coefficient in [0, 1] a module; at most one lies strictly between 0 and 1.
    """
    total = sum(costs)
    excess = total - fraction * total
    targets = [1.0] * len(costs)
    for index in sorted(range(len(costs)), key=costs.__getitem__) if order is None else order:
        if excess <= 0.0:
            break
        cut = min(excess, float(costs[index]))
        targets[index] = round((costs[index] - cut) / costs[index], DIGITS)
        excess -= cut
    return targets


def module_targets(
    costs: Sequence[int], fraction: float, *, kind: ControllerKind, order: Sequence[int] | None = None
) -> list[float]:
    """Target coefficients of either controller; the uniform one gives every module the fraction itself."""
    if kind == "greedy":
        return greedy_targets(costs, fraction, order)
    return [fraction] * len(costs)


def smooth(value: float, target: float, *, smoothing: float, drop_threshold: float) -> float:
    """One step of the moving average of a coefficient; below the threshold it becomes exactly 0.

    Targets never rise during training, so the average lies at or above its target; `max` keeps rounding from
    carrying it below.
    """
    value = max(target, smoothing * value + (1.0 - smoothing) * target)
    return 0.0 if value < drop_threshold else value


class Controller:
    """Dense coefficients of all modules during one training run.

    Args:
        costs: MACs of each module, in `named_modules()` order.
        budget: F, fraction of dense MACs kept at the end.
        start, end: share of training at which the schedule starts and ends.
        smoothing: beta of the moving average, in [0, 1).
        drop_threshold: tau_drop; a smoothed coefficient below it becomes exactly 0 and its matmul is skipped.
        kind: greedy (one module after the other) or uniform (one coefficient for all).
        order: for greedy, the modules' indices in the order of removal; by ascending cost, as in the paper, when None.

    Raises:
        BadInput: a value is out of range.
    """

    def __init__(
        self,
        costs: Sequence[int],
        *,
        budget: float,
        start: float,
        end: float,
        smoothing: float,
        drop_threshold: float,
        kind: ControllerKind = "greedy",
        order: Sequence[int] | None = None,
    ) -> None:
        check_schedule(budget=budget, start=start, end=end)
        if not costs or min(costs) < 1:
            raise BadInput("controller: expected at least one module, each with a positive cost")
        if not 0.0 <= smoothing < 1.0:
            raise BadInput(f"controller: smoothing is {smoothing}; expected 0 <= smoothing < 1")
        if not 0.0 <= drop_threshold < 1.0:
            raise BadInput(f"controller: drop_threshold is {drop_threshold}; expected 0 <= drop_threshold < 1")
        if kind not in ("greedy", "uniform"):
            raise BadInput(f"controller: kind is {kind!r}; expected greedy or uniform")
        if order is not None and sorted(order) != list(range(len(costs))):
            raise BadInput(
                f"controller: order has {len(order)} indices; expected each of the {len(costs)} modules once"
            )
        self.costs = list(costs)
        self.budget, self.start, self.end = budget, start, end
        self.smoothing, self.drop_threshold, self.kind, self.order = smoothing, drop_threshold, kind, order
        self.coefficients = [1.0] * len(self.costs)
        self.target = 1.0

    def step(self, n: int, *, steps: int) -> list[float]:
        """Moves the coefficients to step `n` of `steps` (n = 0 .. steps - 1); call it before the forward pass.

        Returns:
            The coefficient d of every module, in the order of `costs`.
        """
        self.target = target_fraction(n / steps, budget=self.budget, start=self.start, end=self.end)
        targets = module_targets(self.costs, self.target, kind=self.kind, order=self.order)
        self.coefficients = [
            smooth(value, target, smoothing=self.smoothing, drop_threshold=self.drop_threshold)
            for value, target in zip(self.coefficients, targets, strict=True)
        ]
        return list(self.coefficients)

    @property
    def retained_fraction(self) -> float:
        """Share of the dense MACs weighted by the coefficients: what the schedule steers."""
        return sum(c * d for c, d in zip(self.costs, self.coefficients, strict=True)) / sum(self.costs)

    def state(self) -> list[float]:
        """The coefficients, for a checkpoint; JSON carries them exactly."""
        return list(self.coefficients)

    def load(self, state: Sequence[float]) -> None:
        """Takes back what `state` returned.

        Raises:
            BadInput: the number of modules differs, or a coefficient lies outside [0, 1].
        """
        if len(state) != len(self.costs):
            raise BadInput(f"controller state has {len(state)} coefficients; expected {len(self.costs)}")
        if not all(0.0 <= value <= 1.0 for value in state):
            raise BadInput("controller state holds a coefficient outside [0, 1]")
        self.coefficients = [float(value) for value in state]
