"""The structure a budget leads to, before anything is trained: which modules are kept, approximated, dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from budgeted_lora.errors import BadInput
from budgeted_lora.method.controller import DIGITS, by_cost, ends_of, settled, smooth
from budgeted_lora.method.cost import ModelShape, Projection, dense_macs, lora_macs, projections, train_compute
from budgeted_lora.method.schedule import BudgetRule

Decision = Literal["keep", "svd", "drop"]


@dataclass(frozen=True)
class PlannedModule:
    """One projection after compression: final retention d, decision, LoRA rank, SVD rank (0 unless svd), MACs."""

    projection: Projection
    d: float
    decision: Decision
    rank: int
    svd_rank: int
    macs: int


@dataclass(frozen=True)
class Totals:
    """Sums over all modules of a compressed student. MACs are per token and equal the number of weights.

    The paper divides by two bases: speedup vs dense by the dense projections (C_d), parameter reduction by dense
    plus LoRA (C_d + C_l). Both are given for both.
    """

    kept: int
    svd: int
    dropped: int
    macs: int
    dense_macs: int
    speedup_vs_dense: float
    speedup_vs_lora: float
    param_reduction_pct: float
    param_reduction_vs_dense_pct: float


@dataclass(frozen=True)
class Structure:
    """What one budget leaves of a student; `rank` is the LoRA rank in training, `schedule` a name for display."""

    shape: ModelShape
    rank: int
    rule: BudgetRule
    schedule: str | None
    modules: tuple[PlannedModule, ...]
    totals: Totals
    train_compute: float

    def as_json(self) -> dict[str, Any]:
        """The object `budgeted-lora plan --json` prints for one budget."""
        sums = vars(self.totals)
        return {
            "budget": self.rule.budget,
            "schedule": self.schedule,
            **{name: sums[name] for name in sums if name != "param_reduction_vs_dense_pct"},
            "train_compute": self.train_compute,
            "modules": [
                {
                    "name": module.projection.name,
                    "d": module.d,
                    "decision": module.decision,
                    "rank": module.rank,
                    "svd_rank": module.svd_rank,
                    "macs": module.macs,
                }
                for module in self.modules
            ],
        }


def decide(d: float, *, drop_threshold: float, svd_threshold: float) -> Decision:
    """What compression does with a module of final retention `d` (method, section 5)."""
    if d < drop_threshold or d == 0.0:
        return "drop"
    return "svd" if d < svd_threshold else "keep"


def svd_rank(d: float, *, r_max: int, d_in: int, d_out: int, lora_rank: int = 0, multiple: int = 1) -> int:
    """Rank of the SVD that replaces d W: round(d r_max), at least 1, at most what the matrix has.

    With a `multiple` it is the nearest one, the larger of two and one at least. It is rounded down where, beside
    `lora_rank` ranks of training, the larger factors would cost more than the dense layer; where no multiple is left
    the rank stays what it was.
    """
    exact = max(1, min(round(d * r_max), d_in, d_out))
    nearest = max(1, (2 * exact + multiple) // (2 * multiple)) * multiple
    if nearest > exact and (lora_rank + nearest) * (d_in + d_out) > d_in * d_out:
        nearest -= multiple
    return nearest or exact


def module_macs(projection: Projection, *, decision: Decision, rank: int, svd_rank: int) -> int:
    """MACs per token of a compressed module: one dense layer if kept, else two thin ones."""
    if decision == "keep":
        return projection.macs
    return projection.low_rank_macs(rank + svd_rank)


def totals(shape: ModelShape, *, rank: int, decisions: Sequence[Decision], macs: Sequence[int]) -> Totals:
    """Sums and ratios of a compressed student.

    Args:
        rank: LoRA rank in training, which the "vs LoRA" base contains.
        decisions, macs: one entry per module.
    """
    total, dense = sum(macs), dense_macs(shape)
    with_lora = dense + lora_macs(shape, rank=rank)
    return Totals(
        kept=decisions.count("keep"),
        svd=decisions.count("svd"),
        dropped=decisions.count("drop"),
        macs=total,
        dense_macs=dense,
        speedup_vs_dense=dense / total,
        speedup_vs_lora=with_lora / total,
        param_reduction_pct=100.0 * (1.0 - total / with_lora),
        param_reduction_vs_dense_pct=100.0 * (1.0 - total / dense),
    )


def planned_retentions(shape: ModelShape, rule: BudgetRule) -> list[float]:
    """The retention of every module in the limit of a long run, by the paper's order."""
    return ends_of(rule, [module.macs for module in projections(shape)])


def structure(
    shape: ModelShape,
    rule: BudgetRule,
    *,
    rank: int,
    svd_threshold: float,
    r_max: int,
    rank_multiple: int = 1,
    schedule: str | None = None,
    trained_share: float = 0.0,
) -> Structure:
    """The structure of one budget in the limit of a long run, at full LoRA ranks.

    Args:
        rank: LoRA rank r; gates may cut ranks in training, which cannot be foreseen.
        r_max: SVD rank of a retention of 1.
        rank_multiple: what SVD ranks are rounded to.
        schedule: the schedule's name, for display.
        trained_share: of the dense paths, that which trains beside low-rank ones.

    Raises:
        BadInput: a value is out of range.
    """
    if not 1 <= rank <= shape.narrowest:
        raise BadInput(f"rank is {rank}; expected 1 to {shape.narrowest}, the smallest dimension of a projection")
    if r_max < 1:
        raise BadInput(f"r_max is {r_max}; expected a positive whole number")
    if rank_multiple < 1:
        raise BadInput(f"rank_multiple is {rank_multiple}; expected a positive whole number")
    if not 0.0 <= svd_threshold <= 1.0:
        raise BadInput(f"svd_threshold is {svd_threshold}; expected a fraction between 0 and 1")
    modules = []
    for projection, d in zip(projections(shape), planned_retentions(shape, rule), strict=True):
        decision = decide(d, drop_threshold=rule.drop_threshold, svd_threshold=svd_threshold)
        sizes = {"d_in": projection.d_in, "d_out": projection.d_out, "lora_rank": rank, "multiple": rank_multiple}
        k = svd_rank(d, r_max=r_max, **sizes) if decision == "svd" else 0
        macs = module_macs(projection, decision=decision, rank=rank, svd_rank=k)
        modules.append(PlannedModule(projection, d, decision, rank, k, macs))
    return Structure(
        shape=shape,
        rank=rank,
        rule=rule,
        schedule=schedule,
        modules=tuple(modules),
        totals=totals(shape, rank=rank, decisions=[m.decision for m in modules], macs=[m.macs for m in modules]),
        train_compute=train_compute(
            shape, method="budgeted_lora", rank=rank, rho=rule.mean_fraction, trained=trained_share
        ),
    )


@lru_cache(maxsize=4096)
def steps_needed(shape: ModelShape, rule: BudgetRule, *, svd_threshold: float = 0.5) -> int:
    """Fewest steps of a run that ends with the planned decisions; every longer run does too.

    A longer run sees, at each distance from its end, a fraction that is no higher. Its final retentions are no higher
    either, so the number of steps can be found by bisection.

    Raises:
        BadInput: the schedule is so late that no run reaches the structure.
    """
    rule, order = settled(rule, [module.macs for module in projections(shape)])
    watched = _last_below_thresholds(shape, rule, order, svd_threshold=svd_threshold)
    if rule.start == rule.end == 1.0 and watched:
        raise BadInput("the schedule starts and ends at 1.0, after the last step: no run reaches its budget")
    high = 1
    while not all(module.reached(rule, steps=high) for module in watched):
        high *= 2
        if high > 2**20:
            raise BadInput(
                f"a schedule from {rule.start} to {rule.end} with smoothing {rule.smoothing} "
                f"reaches the structure of F = {rule.budget} in no run of {2**20} steps"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if all(module.reached(rule, steps=middle) for module in watched):
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class _Watched:
    """The last module to fall below one threshold: its cost, the cost of all that fall later, and of all modules."""

    cost: int
    after: int
    total: int
    threshold: float

    def reached(self, rule: BudgetRule, *, steps: int) -> bool:
        """Whether a run of `steps` steps brings the module below its threshold."""
        d = 1.0
        for n in range(steps):
            target = rule.target_fraction(n / steps)
            if rule.controller == "greedy":
                target = round(min(1.0, max(0.0, (target * self.total - self.after) / self.cost)), DIGITS)
            d = smooth(d, target, smoothing=rule.smoothing, drop_threshold=rule.drop_threshold)
        return d < self.threshold


def _last_below_thresholds(
    shape: ModelShape, rule: BudgetRule, order: Sequence[int] | None, *, svd_threshold: float
) -> list[_Watched]:
    """For each threshold the module that falls below it last. Retentions approach their targets from above, so the
    others need no watching."""
    costs = [module.macs for module in projections(shape)]
    final = ends_of(rule, costs, order)
    decisions = [decide(d, drop_threshold=rule.drop_threshold, svd_threshold=svd_threshold) for d in final]
    order = order or by_cost(costs)
    watched = []
    for decision, threshold in (("drop", rule.drop_threshold), ("svd", svd_threshold)):
        positions = [position for position, index in enumerate(order) if decisions[index] == decision]
        if positions:
            after = sum(costs[index] for index in order[positions[-1] + 1 :])
            watched.append(_Watched(costs[order[positions[-1]]], after, sum(costs), threshold))
    return watched
