"""The planned structures as text, for `budgeted-lora plan`."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

from budgeted_lora.commands.text import WIDTH, table
from budgeted_lora.method.cost import KINDS
from budgeted_lora.method.structure import Decision, PlannedModule, Structure

COLUMNS = (
    ("", "", "", "", "", "MACs", "speedup", "speedup", "fewer than", "fewer than", "train"),
    ("F", "schedule", "kept", "svd", "dropped", "per token", "on dense", "on LoRA", "dense+LoRA", "dense", "compute"),
)


def render_plan(structures: Sequence[Structure], *, notes: Sequence[str] | None = None) -> str:
    """A table with one line a budget, then which modules each budget keeps, approximates and drops.

    Args:
        notes: what else to say of each structure.
    """
    if not structures:
        return "No budget to plan.\n"
    first = structures[0]
    shape, ranks = first.shape, sorted({item.rank for item in structures})
    lines = [
        f"Student of {shape.layers} layers, hidden {shape.hidden}, kv {shape.kv}, ffn {shape.ffn}; "
        f"LoRA rank {', '.join(map(str, ranks))}.",
        f"{len(first.modules)} modules, {first.totals.dense_macs:,} dense MACs a token.",
        "Speedups are ratios of MACs, not timings; `fewer` is of parameters; train compute is KD Full = 1.",
        *dict.fromkeys(f"Schedule{_schedule(item)} of the steps." for item in structures),
        "",
        *_table(structures),
    ]
    for index, item in enumerate(structures):
        rank = f", rank {item.rank}" if len(ranks) > 1 else ""
        lines += [
            "",
            f"F = {item.rule.budget:g}{rank}{f', {notes[index]}' if notes else ''}",
            *describe_structure(item),
        ]
    return "\n".join(lines) + "\n"


def describe_structure(item: Structure, *, sums: bool = False) -> list[str]:
    """Which modules are kept, approximated and dropped, an indented line each; `sums`: the totals above them."""
    lines = []
    if sums:
        cuts = f"{item.totals.param_reduction_pct:.1f} % fewer than dense+LoRA"
        speedups = f"{item.totals.speedup_vs_dense:.2f}x on dense, {item.totals.speedup_vs_lora:.2f}x on LoRA, {cuts}"
        lines.append(f"F = {item.rule.budget:g}: {item.totals.macs:,} MACs a token, {speedups}")
    lines += [f"{name}: {describe_modules(item.modules, decision=name)}" for name in ("keep", "svd", "drop")]
    return [part for line in lines for part in wrap(line, WIDTH, initial_indent="  ", subsequent_indent=" " * 8)]


def _table(structures: Sequence[Structure]) -> list[str]:
    first, second, *lines = table([*COLUMNS, *map(_row, structures)], numbers=range(len(COLUMNS[0])))
    return [first, second, "-" * len(second), *lines]


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
    name = f" {item.schedule}:" if item.schedule else ""
    return f"{name} from {item.rule.start:g} to {item.rule.end:g}"


def _row(item: Structure) -> tuple[str, ...]:
    return (
        f"{item.rule.budget:g}",
        item.schedule or f"{item.rule.start:g}-{item.rule.end:g}",
        str(item.totals.kept),
        str(item.totals.svd),
        str(item.totals.dropped),
        f"{item.totals.macs:,}",
        f"{item.totals.speedup_vs_dense:.2f}x",
        f"{item.totals.speedup_vs_lora:.2f}x",
        f"{item.totals.param_reduction_pct:.1f} %",
        f"{item.totals.param_reduction_vs_dense_pct:.1f} %",
        f"{item.train_compute:.4f}",
    )
