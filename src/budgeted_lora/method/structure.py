"""The structure a budget leads to, before anything is trained: which modules are kept, approximated, dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from budgeted_lora.errors import BadInput
from budgeted_lora.method.controller import (
    DIGITS,
    ControllerKind,
    module_targets,
    smooth,
)
from budgeted_lora.method.cost import (
    ModelShape,
    Projection,
    dense_macs,
    lora_macs,
    projections,
    train_compute,
)
from budgeted_lora.method.schedule import check_schedule, mean_fraction, target_fraction

Decision = Literal["keep", "svd", "drop"]


@dataclass(frozen=True)
class PlannedModule:
    """One projection after compression: final coefficient, decision, LoRA rank, SVD rank (0 unless svd), MACs."""

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
    """What one budget leaves of a student."""

    shape: ModelShape
    rank: int
    budget: float
    start: float
    end: float
    schedule: str | None
    modules: tuple[PlannedModule, ...]
    totals: Totals
    train_compute: float

    kept = property(lambda self: self.totals.kept)
    svd = property(lambda self: self.totals.svd)
    dropped = property(lambda self: self.totals.dropped)
    macs = property(lambda self: self.totals.macs)
    params = property(lambda self: self.totals.macs)
    dense_macs = property(lambda self: self.totals.dense_macs)
    speedup_vs_dense = property(lambda self: self.totals.speedup_vs_dense)
    speedup_vs_lora = property(lambda self: self.totals.speedup_vs_lora)
    param_reduction_pct = property(lambda self: self.totals.param_reduction_pct)
    param_reduction_vs_dense_pct = property(lambda self: self.totals.param_reduction_vs_dense_pct)

    def as_json(self) -> dict[str, Any]:
        """The object `budgeted-lora plan --json` prints for one budget."""
        sums = vars(self.totals)
        return {
            "budget": self.budget,
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
    """What compression does with a module of final coefficient `d` (method, section 5)."""
    if d < drop_threshold or d == 0.0:
        return "drop"
    return "svd" if d < svd_threshold else "keep"


def svd_rank(d: float, *, r_max: int, d_in: int, d_out: int) -> int:
    """Rank that replaces d*W: round(d r_max), at least 1, at most what the matrix has."""
    return max(1, min(round(d * r_max), d_in, d_out))


def module_macs(projection: Projection, *, decision: Decision, rank: int, svd_rank: int) -> int:
    """MACs per token of a compressed module: one dense layer if kept, else two thin ones."""
    if decision == "keep":
        return projection.macs
    return projection.low_rank_macs(rank + svd_rank)


def totals(shape: ModelShape, *, rank: int, decisions: Sequence[Decision], macs: Sequence[int]) -> Totals:
    """Sums and ratios of a compressed student.

    Args:
        rank: LoRA rank in training, which the "vs LoRA" base contains.
        decisions, macs: one entry a module.
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


def final_coefficients(
    shape: ModelShape, *, budget: float, drop_threshold: float, controller: ControllerKind
) -> list[float]:
    """The coefficient of every module after an endless run: the controller's targets at F, small ones at 0."""
    costs = [module.macs for module in projections(shape)]
    targets = module_targets(costs, budget, kind=controller)
    return [0.0 if value < drop_threshold else value for value in targets]


def structure(
    shape: ModelShape,
    *,
    rank: int,
    budget: float,
    start: float,
    end: float,
    drop_threshold: float,
    svd_threshold: float,
    r_max: int,
    controller: ControllerKind = "greedy",
    smoothing: float = 0.9,
    schedule: str | None = None,
) -> Structure:
    """The structure of one budget, as after an endless run, at full LoRA ranks.

    Args:
        rank: LoRA rank r; gates may cut ranks in training, which nobody can foresee.
        r_max: SVD rank of a coefficient of 1.
        smoothing: has no part in an endless run; checked only.
        schedule: the schedule's name, for display.

    Raises:
        BadInput: a value is out of range.
    """
    check_schedule(budget=budget, start=start, end=end)
    narrowest = min(shape.hidden, shape.kv, shape.ffn)
    if not 1 <= rank <= narrowest:
        raise BadInput(f"rank is {rank}; expected 1 to {narrowest}, the smallest dimension of a projection")
    if r_max < 1:
        raise BadInput(f"r_max is {r_max}; expected a positive whole number")
    for name, value in {
        "drop_threshold": drop_threshold,
        "svd_threshold": svd_threshold,
        "smoothing": smoothing,
    }.items():
        if not 0.0 <= value <= 1.0:
            raise BadInput(f"{name} is {value}; expected a fraction between 0 and 1")
    coefficients = final_coefficients(shape, budget=budget, drop_threshold=drop_threshold, controller=controller)
    modules = []
    for projection, d in zip(projections(shape), coefficients, strict=True):
        decision = decide(d, drop_threshold=drop_threshold, svd_threshold=svd_threshold)
        k = svd_rank(d, r_max=r_max, d_in=projection.d_in, d_out=projection.d_out) if decision == "svd" else 0
        macs = module_macs(projection, decision=decision, rank=rank, svd_rank=k)
        modules.append(PlannedModule(projection, d, decision, rank, k, macs))
    rho = mean_fraction(budget=budget, start=start, end=end)
    return Structure(
        shape=shape,
        rank=rank,
        budget=budget,
        start=start,
        end=end,
        schedule=schedule,
        modules=tuple(modules),
        totals=totals(shape, rank=rank, decisions=[m.decision for m in modules], macs=[m.macs for m in modules]),
        train_compute=train_compute(shape, method="budgeted_lora", rank=rank, rho=rho),
    )


@lru_cache(maxsize=4096)
def steps_needed(
    shape: ModelShape,
    *,
    budget: float,
    start: float,
    end: float,
    smoothing: float,
    drop_threshold: float,
    controller: ControllerKind = "greedy",
    svd_threshold: float = 0.5,
) -> int:
    """Fewest steps of a run that ends with the planned decisions; every longer run does too.

    A longer run sees at each distance from its end a fraction that is no higher, so its final coefficients are no
    higher either: the steps can be found by bisection. Coefficients approach their targets from above, so only
    the modules that must fall below a threshold need to be watched, and of those the one that falls last.

    Raises:
        BadInput: the schedule is out of range, or so late that no run reaches the structure.
    """
    check_schedule(budget=budget, start=start, end=end)
    costs = [module.macs for module in projections(shape)]
    final = final_coefficients(shape, budget=budget, drop_threshold=drop_threshold, controller=controller)
    decisions = [decide(d, drop_threshold=drop_threshold, svd_threshold=svd_threshold) for d in final]
    order = sorted(range(len(costs)), key=costs.__getitem__)
    watched = []
    for decision, threshold in (("drop", drop_threshold), ("svd", svd_threshold)):
        positions = [position for position, index in enumerate(order) if decisions[index] == decision]
        if positions:
            after = sum(costs[index] for index in order[positions[-1] + 1 :])
            watched.append((after, costs[order[positions[-1]]], threshold))
    total = sum(costs)

    def reached(steps: int) -> bool:
        for after, cost, threshold in watched:
            d = 1.0
            for n in range(steps):
                target = target_fraction(n / steps, budget=budget, start=start, end=end)
                if controller == "greedy":
                    target = round(min(1.0, max(0.0, (target * total - after) / cost)), DIGITS)
                d = smooth(d, target, smoothing=smoothing, drop_threshold=drop_threshold)
            if d >= threshold:
                return False
        return True

    if start == end == 1.0 and watched:
        raise BadInput("the schedule starts and ends at 1.0, after the last step: no run reaches its budget")
    high = 1
    while not reached(high):
        high *= 2
        if high > 2**20:
            raise BadInput(
                f"a schedule from {start} to {end} with smoothing {smoothing} "
                f"reaches the structure of F = {budget} in no run of {2**20} steps"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
