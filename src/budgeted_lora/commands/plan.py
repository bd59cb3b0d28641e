"""What `budgeted-lora plan` computes: structures of a shape given by flags, and the costs of a scale."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from budgeted_lora.config.sections import Budget
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.method.cost import ModelShape
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import Structure, structure
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import matching, named_device
from budgeted_lora.planning.machine import gpus
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.slots import gpu_slots

SCHEDULES = Budget().schedules
SHAPE_FLAGS = (
    "layers", "hidden", "kv", "ffn", "attention", "rank", "budget", "schedule", "r_max", "rank_multiple",
    "drop_threshold", "svd_threshold",
)  # fmt: skip
COST_FLAGS = ("device", "gpus", "utilisation", "calibrate")
SCALE_FLAGS = ("config_folder", "config", "costs", *COST_FLAGS)


def refuse_ignored(given: Collection[str], *, scale: bool) -> None:
    """Raises BadInput if flags of `plan` would have no effect, or exclude each other."""

    def flags(names: Collection[str]) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name in names if name in given)

    if scale and flags(SHAPE_FLAGS):
        instead = "expected a shape without --scale, or --config KEY=VALUE"
        raise BadInput(f"{flags(SHAPE_FLAGS)} beside --scale, whose file defines the shape; {instead}")
    if not scale and flags(SCALE_FLAGS):
        raise BadInput(f"{flags(SCALE_FLAGS)} without --scale: expected the scale that is to be costed")
    if "as_json" in given and "costs" not in given and flags(COST_FLAGS):
        raise BadInput(f"{flags(COST_FLAGS)} with --json: a list of structures has no costs; expected --costs too")
    if "calibrate" in given and flags(("device", "utilisation")):
        other = flags(("device", "utilisation"))
        raise BadInput(f"{other} with --calibrate: expected either assumed rates or measured ones")


def structures_of_shape(
    shape: ModelShape,
    *,
    budgets: list[float],
    schedule: str,
    rank: int,
    r_max: int,
    rank_multiple: int,
    drop_threshold: float,
    svd_threshold: float,
) -> list[Structure]:
    """The structures of a shape that belongs to no scale. Raises BadInput if the schedule or the rank is impossible."""
    if schedule not in SCHEDULES:
        raise BadInput(f"--schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if rank > shape.narrowest:
        raise BadInput(f"--rank {rank} exceeds {shape.narrowest}, the smallest dimension of a projection")
    start, end = SCHEDULES[schedule]
    rules = [BudgetRule(budget=budget, start=start, end=end, drop_threshold=drop_threshold) for budget in budgets]
    svd = {"r_max": r_max, "rank_multiple": rank_multiple, "svd_threshold": svd_threshold}
    return [structure(shape, rule, rank=rank, schedule=schedule, **svd) for rule in rules]


def costs_of(graph: Graph, *, device: str | None, utilisation: float | None, calibrate: bool) -> ScaleCosts:
    """The costs of a scale on a named device, or by steps that are timed here."""
    if not calibrate:
        return ScaleCosts(graph, named_device(device, graph.config, utilisation=utilisation))
    with gpu_slots(1, device=graph.config.device) as held:
        names = {gpu.id: gpu.name for gpu in gpus()}
        here = matching(names[held[0]]) if held else named_device("cpu", graph.config)
        from budgeted_lora.planning.measure import calibrate as time_steps  # imports torch, so after the slot is taken

        measured, skipped = time_steps(ScaleCosts(graph, here), threads=graph.config.threads.training)
    for line in skipped:
        print(f"note: {line}; the device table's rate is used", file=sys.stderr)
    return ScaleCosts(graph, here, measured=measured)


@dataclass(frozen=True)
class Energy:
    """Joules of the finished trainings whose GPUs were measured, and of all trainings at as many joules per FLOP."""

    trainings: int
    joules: float
    all_joules: float


def energy_of(costs: ScaleCosts) -> Energy | None:
    """What the trainings of a scale take, by those that are finished; None where none was measured."""
    took: dict[str, float] = {}
    for cell in costs.cells:
        path = Path(costs.graph.results) / "cells" / cell.cell / "train.json"
        measured = read_json(path).get("gpu") if path.is_file() else None
        if measured and measured.get("joules"):
            took[cell.cell] = measured["joules"]
    if not took:
        return None
    flops = {cell.cell: cell.teacher_flops + cell.student_flops for cell in costs.cells}
    joules = sum(took.values())
    return Energy(len(took), joules, joules / sum(flops[cell] for cell in took) * sum(flops.values()))
