"""The planned structures as text, for `budgeted-lora plan`."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

from budgeted_lora.commands.text import WIDTH, table
from budgeted_lora.method.cost import KINDS, ModelShape
from budgeted_lora.method.structure import Decision, PlannedModule, Structure

COLUMNS = (
    ("", "", "", "", "", "MACs", "speedup", "speedup", "fewer than", "fewer than", "train"),
    ("F", "schedule", "kept", "svd", "dropped", "per token", "on dense", "on LoRA", "dense+LoRA", "dense", "compute"),
)


def _sizes(shape: ModelShape) -> str:
    attention = "" if shape.attention == shape.hidden else f", attention {shape.attention}"
    return f"hidden {shape.hidden}{attention}, kv {shape.kv}, ffn {shape.ffn}"


def render_plan(structures: Sequence[Structure], *, notes: Sequence[str] | None = None) -> str:
    """A table with one line per budget, then the modules that each budget keeps, approximates and drops.

    Args:
        notes: a remark on each structure.
    """
    if not structures:
        return "No budget to plan.\n"
    first = structures[0]
    shape, ranks = first.shape, sorted({item.rank for item in structures})
    lines = [
        f"Student of {shape.layers} layers, {_sizes(shape)}; LoRA rank {', '.join(map(str, ranks))}.",
        f"{len(first.modules)} modules, {first.totals.dense_macs:,} dense MACs per token.",
        "Speedups are ratios of MACs, not timings; `fewer` is of parameters; train compute is KD Full = 1.",
        *dict.fromkeys(map(_schedule, structures)),
        "",
        *_table(structures),
    ]
    for item, note in zip(structures, notes or [""] * len(structures), strict=True):
        rank = f"rank {item.rank}" if len(ranks) > 1 else ""
        lines += ["", ", ".join(filter(None, [f"F = {item.rule.budget:g}", rank, note])), *describe_structure(item)]
    return "\n".join(lines) + "\n"


def describe_structure(item: Structure, *, sums: bool = False) -> list[str]:
    """One indented line each for the modules that are kept, approximated and dropped; with `sums`, totals above."""
    lines, totals = [], item.totals
    if sums:
        speedups = f"{totals.speedup_vs_dense:.2f}x on dense, {totals.speedup_vs_lora:.2f}x on LoRA"
        cuts = f"{totals.param_reduction_pct:.1f} % fewer than dense+LoRA"
        lines.append(f"F = {item.rule.budget:g}: {totals.macs:,} MACs per token, {speedups}, {cuts}")
    lines += [f"{name}: {describe_modules(item.modules, decision=name)}" for name in ("keep", "svd", "drop")]
    return [part for line in lines for part in wrap(line, WIDTH, initial_indent="  ", subsequent_indent=" " * 8)]


def describe_modules(modules: Sequence[PlannedModule], *, decision: Decision) -> str:
    """The modules of one decision, equal layers together: `layer 3 gate (d = 0.7), up; layers 4-5 gate, up`."""
    chosen = [module for module in modules if module.decision == decision]
    if not chosen:
        return "none"
    if len(chosen) == len(modules) and len({module.d for module in chosen}) == 1:
        return f"all {len(modules)} modules{_retention(chosen[0])}"
    spans: list[tuple[int, int, str]] = []  # first layer, last layer, their modules
    for layer, group in groupby(chosen, key=lambda module: module.projection.layer):
        ordered = sorted(group, key=lambda module: KINDS.index(module.projection.kind))
        words = ", ".join(module.projection.kind + _retention(module) for module in ordered)
        if spans and spans[-1][1:] == (layer - 1, words):
            spans[-1] = (spans[-1][0], layer, words)
        else:
            spans.append((layer, layer, words))
    return "; ".join(f"layer {a} {words}" if a == b else f"layers {a}-{b} {words}" for a, b, words in spans)


def _retention(module: PlannedModule) -> str:
    if module.decision == "svd":
        return f" (d = {module.d:g}, rank {module.svd_rank} + {module.rank})"
    return "" if module.d in (0.0, 1.0) else f" (d = {module.d:g})"


def _schedule(item: Structure) -> str:
    name = f"Schedule {item.schedule}:" if item.schedule else "Schedule"
    return f"{name} from {item.rule.start:g} to {item.rule.end:g} of the steps."


def _table(structures: Sequence[Structure]) -> list[str]:
    first, second, *lines = table([*COLUMNS, *map(_row, structures)], numbers=range(len(COLUMNS[0])))
    return [first, second, "-" * len(second), *lines]


def _row(item: Structure) -> tuple[str, ...]:
    totals = item.totals
    return (
        f"{item.rule.budget:g}",
        item.schedule or f"{item.rule.start:g}-{item.rule.end:g}",
        *(str(count) for count in (totals.kept, totals.svd, totals.dropped)),
        f"{totals.macs:,}",
        f"{totals.speedup_vs_dense:.2f}x",
        f"{totals.speedup_vs_lora:.2f}x",
        f"{totals.param_reduction_pct:.1f} %",
        f"{totals.param_reduction_vs_dense_pct:.1f} %",
        f"{item.train_compute:.4f}",
    )
