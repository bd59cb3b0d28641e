"""Row 5: do the multiply-accumulates that run agree with the scheduled proxy?

Two parts. A short real run is counted operation by operation (`torch.utils.flop_counter`) and compared with what the
loop records as executed: that shows that a dense path of retention 0 costs nothing. Then the controller is stepped
through a run of the paper's length, which gives the executed share of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import goals
from benchmarks.context import Context
from benchmarks.measures import Measure, limits, say
from benchmarks.shapes import MINI, PAPER, Shape, recipe
from budgeted_lora.method.controller import Controller
from budgeted_lora.method.cost import dense_macs, projections, train_compute
from budgeted_lora.method.loop import Progress, train
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.models.device import prepare
from budgeted_lora.models.load import mistral_config, new_model
from budgeted_lora.planning.measure import RandomCache, RandomWindows
from budgeted_lora.training.install import install_method

PAPER_STEPS = 2_550_000_000 // 2**16
TOKENS = 32  # per step of the counted run: counts are proportional to it


class NoLog:
    """A `method.loop.RunLog` that records nothing."""

    def restore(self, student: Any, optimizer: Any) -> Progress:
        return Progress()

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def step(self, values: Any, *, rate: float, controller: Any) -> None:
        return None


@dataclass(frozen=True)
class Counted:
    """One run: FLOPs of all matrix products, and the dense share that the loop recorded."""

    flops: int
    executed: float


def counted_run(shape: Shape, method: str, *, steps: int, device: torch.device) -> Counted:
    chosen = recipe(shape, method, steps=steps, train_embeddings_head_norms=True)
    config = mistral_config(
        layers=shape.layers, hidden=shape.hidden, ffn=shape.ffn, heads=shape.heads, kv_heads=shape.kv_heads,
        vocab_size=shape.vocab_size, context=shape.length, end_id=0,
    )  # fmt: skip
    student = new_model(config, seed=0).to(device)
    modules, low_rank = install_method(student, chosen)
    teacher = RandomCache(torch.randn(shape.vocab_size, shape.hidden, device=device))
    windows = RandomWindows(shape.vocab_size, shape.length, shape.windows)
    with FlopCounterMode(display=False) as counter:
        progress = train(
            student, modules, teacher, windows, chosen, log=NoLog(), removal_order=low_rank.order, device=device,
            precision=torch.float32,
        )  # fmt: skip
    executed = progress.dense_macs / (dense_macs(shape.student) * steps) if modules else 1.0
    return Counted(counter.get_total_flops(), executed)


def executed_share(shape: Shape, rule: BudgetRule, *, steps: int) -> float:
    """Mean over a run of the share of dense MACs whose retention is not 0, from the controller alone."""
    costs = [projection.macs for projection in projections(shape.student)]
    controller, total = Controller(costs, rule), 0
    for n in range(steps):
        total += sum(cost for cost, d in zip(costs, controller.step(n, steps=steps), strict=True) if d != 0.0)
    return total / (sum(costs) * steps)


def measure(context: Context) -> Iterator[Measure]:
    place = prepare(context.device, threads=context.threads)
    steps = 30 if context.quick else 100
    shape = replace(MINI, windows=1, length=TOKENS)
    say(f"  {steps} counted steps of KD Full")
    full = counted_run(shape, "kd_full", steps=steps, device=place)
    per_mac = 2 * TOKENS * steps
    others = full.flops - 3 * dense_macs(shape.student) * per_mac  # attention and heads, the same for every student
    for method, budget in {"f0.4": 0.4, "f0": 0.0}.items():
        say(f"  {steps} counted steps of F = {budget:g}")
        run = counted_run(shape, method, steps=steps, device=place)
        about = {"method": "budgeted_lora", "rank": shape.rank}
        recorded = train_compute(shape.student, rho=run.executed, **about) * 3 * dense_macs(shape.student) * per_mac
        true = (run.flops - others) / recorded
        rule = BudgetRule.of(recipe(PAPER, method, steps=PAPER_STEPS))
        whole = executed_share(PAPER, rule, steps=PAPER_STEPS)
        about["rank"] = PAPER.rank
        scheduled = train_compute(PAPER.student, rho=rule.mean_fraction, **about)
        executed = train_compute(PAPER.student, rho=whole, **about) * true
        yield Measure(
            row=5,
            what=f"MACs of training, F = {budget:g}, {PAPER_STEPS:,} steps",
            against="scheduled proxy",
            shape="paper",
            threads=context.threads,
            value=executed / scheduled,
            digits=3,
            **limits(goals.EXECUTED),
            notes=[
                f"train compute {executed:.3f} executed, {scheduled:.3f} scheduled",
                f"in {steps} real steps at mini: counted / recorded = {true:.4f}",
            ],
        )
