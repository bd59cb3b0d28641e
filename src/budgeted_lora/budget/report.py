"""The planned structures as text, for `budgeted-lora plan`."""

from collections.abc import Sequence
from itertools import groupby

from budgeted_lora.budget.cost import KINDS
from budgeted_lora.budget.plan import Decision, PlannedModule, Structure

COLUMNS = (
    "F",
    "schedule",
    "kept",
    "svd",
    "dropped",
    "MACs/token",
    "speedup/dense",
    "speedup/LoRA",
    "less than dense+LoRA",
    "less than dense",
    "train compute",
)


def render_plan(structures: Sequence[Structure]) -> str:
    """A table with one line a budget, then which modules each budget keeps, approximates and drops."""
    if not structures:
        return "No budget to plan.\n"
    first = structures[0]
    shape = first.shape
    header = (
        f"Student of {shape.layers} layers, hidden {shape.hidden}, kv {shape.kv}, ffn {shape.ffn}, "
        f"LoRA rank {first.rank}: "
        f"{len(first.modules)} modules, {first.dense_macs:,} dense MACs a token.\n"
        "Speedups are ratios of MACs, not timings; `less` is the parameter reduction; train compute is KD Full = 1.\n"
    )
    rows = [COLUMNS, *(_row(item) for item in structures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    details = []
    for item in structures:
        details.append(f"\nF = {item.budget:g}, {_schedule(item)}")
        for decision, label in (("keep", "keep"), ("svd", "svd"), ("drop", "drop")):
            details.append(f"  {label}: {describe_modules(item.modules, decision=decision)}")
    return header + "\n" + "\n".join(lines) + "\n" + "\n".join(details) + "\n"


def describe_modules(modules: Sequence[PlannedModule], *, decision: Decision) -> str:
    """The modules of one decision, equal layers together: `layer 3 gate (d = 0.7), up; layers 4-5 gate, up`."""
    chosen = [module for module in modules if module.decision == decision]
    if not chosen:
        return "none"
    if len(chosen) == len(modules) and len({module.d for module in chosen}) == 1:
        return f"all {len(modules)} modules{_coefficient(chosen[0])}"
    layers = [
        (layer, _words(list(group))) for layer, group in groupby(chosen, key=lambda module: module.projection.layer)
    ]
    spans: list[tuple[int, int, str]] = []
    for layer, words in layers:
        if spans and spans[-1][2] == words and spans[-1][1] == layer - 1:
            spans[-1] = (spans[-1][0], layer, words)
        else:
            spans.append((layer, layer, words))
    return "; ".join(f"layer {a} {words}" if a == b else f"layers {a}-{b} {words}" for a, b, words in spans)


def _words(modules: list[PlannedModule]) -> str:
    """The modules of one layer, in the order of registration."""
    ordered = sorted(modules, key=lambda module: KINDS.index(module.projection.kind))
    return ", ".join(module.projection.kind + _coefficient(module) for module in ordered)


def _coefficient(module: PlannedModule) -> str:
    if module.decision == "svd":
        return f" (d = {module.d:g}, rank {module.svd_rank} + {module.rank})"
    return "" if module.d in (0.0, 1.0) else f" (d = {module.d:g})"


def _schedule(item: Structure) -> str:
    name = f"schedule {item.schedule}" if item.schedule else "schedule"
    return f"{name} from {item.start:g} to {item.end:g} of the steps"


def _row(item: Structure) -> tuple[str, ...]:
    return (
        f"{item.budget:g}",
        item.schedule or f"{item.start:g}-{item.end:g}",
        str(item.kept),
        str(item.svd),
        str(item.dropped),
        f"{item.macs:,}",
        f"{item.speedup_vs_dense:.2f}x",
        f"{item.speedup_vs_lora:.2f}x",
        f"{item.param_reduction_pct:.1f} %",
        f"{item.param_reduction_vs_dense_pct:.1f} %",
        f"{item.train_compute:.4f}",
    )
