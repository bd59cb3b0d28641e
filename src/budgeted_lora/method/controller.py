"""The controller: how much of each dense path a training step retains (paper, section 3)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from budgeted_lora.config.recipe import ControllerKind
from budgeted_lora.errors import BadInput
from budgeted_lora.method.schedule import BudgetRule

DIGITS = 12


def by_cost(costs: Sequence[int]) -> list[int]:
    """The paper's removal order: indices by ascending cost, equal costs in the order given."""
    return sorted(range(len(costs)), key=costs.__getitem__)


def greedy_targets(costs: Sequence[int], fraction: float, removal_order: Sequence[int] | None = None) -> list[float]:
    """Target retentions that keep exactly `fraction` of the total cost, taken from one module after the other.

    The walk starts from 1 everywhere. The paper walks by ascending cost; ties keep the order of `costs`, which is the
    order of `named_modules()`. Targets are rounded to 12 digits, so that one that equals a threshold on paper (0.05 at
    F = 0.6) equals it here.

    Args:
        costs: MACs of each module.
        fraction: share of the total to keep, in [0, 1].
        removal_order: indices of the modules in the order in which their dense paths go; the paper's when None.

    Returns:
        One retention in [0, 1] per module; at most one lies strictly between 0 and 1.
    """
    total = sum(costs)
    excess = total - fraction * total
    targets = [1.0] * len(costs)
    if removal_order is None:
        removal_order = by_cost(costs)
    for index in removal_order:
        if excess <= 0.0:
            break
        cut = min(excess, float(costs[index]))
        targets[index] = round((costs[index] - cut) / costs[index], DIGITS)
        excess -= cut
    return targets


def whole_paths(
    costs: Sequence[int], fraction: float, removal_order: Sequence[int] | None = None
) -> tuple[list[int], float]:
    """The dense paths that fit whole into a budget: what a greedy walk leaves if it may leave none in part.

    From the last path to go back to the first, each stays that still fits. So all that `fraction` leaves whole stay,
    and in place of the one that it leaves in part such as went before it and cost less.

    Args:
        costs, fraction, removal_order: as of `greedy_targets`.

    Returns:
        A removal order in which those that stay come last, and their share of the total cost: at most `fraction`.
    """
    order = list(removal_order) if removal_order is not None else by_cost(costs)
    spare, stay = fraction * sum(costs), []
    for index in reversed(order):
        if costs[index] <= round(spare, DIGITS // 2):  # so that a share computed from whole paths holds them
            stay.append(index)
            spare -= costs[index]
    kept = set(stay)
    gone = [index for index in order if index not in kept]
    return gone + stay[::-1], sum(costs[index] for index in stay) / sum(costs)


def settled(
    rule: BudgetRule, costs: Sequence[int], removal_order: Sequence[int] | None = None
) -> tuple[BudgetRule, Sequence[int] | None]:
    """A rule and an order that a plain greedy walk follows: those of `whole_paths` where the rule wants whole paths."""
    if not rule.whole:
        return rule, removal_order
    order, budget = whole_paths(costs, rule.budget, removal_order)
    return replace(rule, budget=budget, whole=False), order


def module_targets(
    costs: Sequence[int], fraction: float, *, kind: ControllerKind, removal_order: Sequence[int] | None = None
) -> list[float]:
    """Target retentions of either controller; the uniform one gives every module the fraction itself."""
    if kind == "greedy":
        return greedy_targets(costs, fraction, removal_order)
    if kind == "uniform":
        return [fraction] * len(costs)
    raise BadInput(f"controller is {kind!r}; module_targets knows greedy and uniform")


def final_retentions(
    costs: Sequence[int],
    budget: float,
    *,
    kind: ControllerKind,
    drop_threshold: float,
    removal_order: Sequence[int] | None = None,
) -> list[float]:
    """Retentions in the limit of a long run: the controller's targets at the budget, small ones at 0."""
    targets = module_targets(costs, budget, kind=kind, removal_order=removal_order)
    return [0.0 if value < drop_threshold else value for value in targets]


def ends_of(rule: BudgetRule, costs: Sequence[int], removal_order: Sequence[int] | None = None) -> list[float]:
    """Retentions of each module in the limit of a long run by a rule."""
    rule, order = settled(rule, costs, removal_order)
    how = {"kind": rule.controller, "drop_threshold": rule.drop_threshold, "removal_order": order}
    return final_retentions(costs, rule.budget, **how)


def smooth(value: float, target: float, *, smoothing: float, drop_threshold: float) -> float:
    """One step of the moving average of a retention; below the threshold it becomes exactly 0.

    Targets never rise during training, so the average lies at or above its target; `max` stops rounding from
    carrying it below.
    """
    value = max(target, smoothing * value + (1.0 - smoothing) * target)
    return 0.0 if value < drop_threshold else value


class Dial(ABC):
    """Retentions of all modules during one training run; a subclass says how a step sets them.

    Args:
        costs: MACs of each module, in `named_modules()` order.
        removal_order: for a greedy walk, the modules' indices in the order in which their dense paths go; by ascending
            cost, as in the paper, when None.

    Attributes:
        retentions: d of every module, in the order of `costs`; 1 before the first step.
        target: F(t) of the last step.

    Raises:
        BadInput: no module, a cost that is not positive, or an order that is not a permutation.
    """

    def __init__(self, costs: Sequence[int], *, removal_order: Sequence[int] | None = None) -> None:
        if not costs or min(costs) < 1:
            raise BadInput("controller: expected at least one module, each with a positive cost")
        if removal_order is not None and sorted(removal_order) != list(range(len(costs))):
            raise BadInput(
                f"controller: removal_order has {len(removal_order)} indices; expected each of the {len(costs)} "
                "modules once"
            )
        self.costs, self.removal_order = list(costs), removal_order
        self.retentions = [1.0] * len(self.costs)
        self.target = 1.0

    @abstractmethod
    def step(self, n: int, *, steps: int) -> list[float]:
        """Moves the retentions to step `n` of `steps` (n = 0 .. steps - 1); call it before the forward pass."""

    @property
    def retained_fraction(self) -> float:
        """Share of the dense MACs weighted by the retentions: what the schedule steers."""
        return sum(c * d for c, d in zip(self.costs, self.retentions, strict=True)) / sum(self.costs)

    def load(self, retentions: Sequence[float]) -> None:
        """Continues from the retentions of an earlier run; JSON carries them exactly.

        Raises:
            BadInput: the number of modules differs, or a retention lies outside [0, 1].
        """
        if len(retentions) != len(self.costs):
            raise BadInput(f"controller state has {len(retentions)} retentions; expected {len(self.costs)}")
        if not all(0.0 <= value <= 1.0 for value in retentions):
            raise BadInput("controller state has a retention outside [0, 1]")
        self.retentions = [float(value) for value in retentions]


class Controller(Dial):
    """The paper's: retentions follow a budget that falls along its schedule."""

    def __init__(self, costs: Sequence[int], rule: BudgetRule, *, removal_order: Sequence[int] | None = None) -> None:
        super().__init__(costs, removal_order=removal_order)
        self.rule, self.removal_order = settled(rule, self.costs, removal_order)

    def step(self, n: int, *, steps: int) -> list[float]:
        rule = self.rule
        self.target = rule.target_fraction(n / steps)
        targets = module_targets(self.costs, self.target, kind=rule.controller, removal_order=self.removal_order)
        self.retentions = [
            smooth(value, target, smoothing=rule.smoothing, drop_threshold=rule.drop_threshold)
            for value, target in zip(self.retentions, targets, strict=True)
        ]
        return list(self.retentions)
