"""The costs of a scale and the findings of a check as text of 100 columns and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from budgeted_lora.commands.show_structures import WIDTH, describe_structure, render_plan
from budgeted_lora.commands.text import columns, size
from budgeted_lora.planning.checks import gib
from budgeted_lora.planning.costs import CellCost, JobCost, ScaleCosts
from budgeted_lora.planning.devices import EFFICIENCY, Slots
from budgeted_lora.planning.findings import Finding, troubles
from budgeted_lora.planning.storage import disk
from budgeted_lora.planning.structures import own_structures, planned_structures
from budgeted_lora.workflow.graph import OWN_TARGETS, Graph

CELL_COLUMNS = (
    ("", "FLOPs of", "FLOPs of", "FLOPs of", "time to", "time to", "device", "host", ""),
    ("tokens", "teacher", "student", "scoring", "train", "score", "memory", "memory", "disk"),
)


def as_json(costs: ScaleCosts, *, gpus: int) -> dict[str, Any]:
    """What `plan --costs --json` prints: bytes, seconds, FLOPs; hours in the totals."""
    device, slots = costs.device, Slots(gpus, costs.config.gpus_per_run)
    space = disk(costs, slots=slots)
    together = {"gpus_per_run": slots.a_run, "trainings_at_once": slots.trainings}
    together["efficiency"] = EFFICIENCY if slots.a_run > 1 else None
    return {
        "scale": costs.config.scale,
        "device": {**asdict(device), "precision": costs.precision, "jobs_at_once": gpus, **together},
        "vocab_size": costs.vocab_size,
        "vocab_size_from": costs.vocabulary_source,
        "cells": [{**asdict(cell), "hours": cell.hours} for cell in costs.cells],
        "jobs": [asdict(job) for job in costs.jobs],
        "measured": {key: asdict(value) for key, value in costs.measured.items()},
        "disk": {**asdict(space), "results": space.results, "total": space.total},
        "total": totals(costs, gpus=gpus) | {"disk_bytes": space.total},
        "main": totals(costs.of("main"), gpus=gpus),
        "all": totals(costs.of("all"), gpus=gpus),
    }


def totals(costs: ScaleCosts, *, gpus: int) -> dict[str, Any]:
    """Sums over all jobs; device hours are those of one device, wall hours of `gpus` of them kept busy."""
    return {
        "cells": len(costs.cells),
        "tokens": sum(cell.tokens for cell in costs.cells),
        "flops": costs.flops(),
        "device_hours": costs.seconds() / 3600,
        "wall_hours": costs.wall_seconds(Slots(gpus, costs.config.gpus_per_run)) / 3600,
        "device_bytes": costs.largest_device_bytes()[0],
        "host_bytes": costs.largest_host_bytes()[0],
    }


# --- structures


def structures_json(graph: Graph) -> list[dict[str, Any]]:
    """What `plan --json` prints of a scale: the planned structures, then those that compression has found so far."""
    found = [item.as_json() for item in own_structures(graph) if item.structure is not None]
    return [item.as_json() for item in graph.structures().values()] + found


def render_structures(graph: Graph) -> str:
    """The planned structures, each once, then those of cells that have an order or ranks of their own."""
    planned = planned_structures(graph)
    controllers = [f"{' and '.join(names)} controller" for _, names in planned]
    same = len(set(controllers)) < 2  # then it goes without saying
    own = list(own_structures(graph))
    structures = [structure for structure, _ in planned]
    text = render_plan(structures, notes=None if same else controllers) if planned or not own else ""
    lines = []
    for item in own:
        if item.structure is not None:
            lines += ["", f"{item.cell}, as it was compressed", *describe_structure(item.structure, sums=True)]
    waiting = [item.cell for item in own if item.structure is None]
    if waiting:
        lines += ["", "Order or ranks of these are found in the student; their structure is known after `compress`:"]
        lines += [f"  {cell}" for cell in waiting]
    return text + "".join(f"{line}\n" for line in lines)


# --- costs


def render_costs(costs: ScaleCosts, *, gpus: int) -> str:
    """Cells of equal cost above the numbers of one, a line for every other job on a device, then sums."""
    slots = Slots(gpus, costs.config.gpus_per_run)
    lines = ["", *_heading(costs, slots), "", *_cells(costs.cells)]
    if any(cell.measured for cell in costs.cells):
        lines.append("* measured here")
    lines += ["", *_table([("job", "tokens", "FLOPs", "time", "memory", "disk"), *map(_job, costs.jobs)])]
    lines += ["", *_sums(costs, slots), "", *_disk(costs, slots)]
    lines.append("Not counted: corpus, compression, timing of structures, tables and figures.")
    return "\n".join(lines) + "\n"


def _heading(costs: ScaleCosts, slots: Slots) -> Iterator[str]:
    device = costs.device
    shares = f"{device.forward:.0%} of it assumed in a forward pass, {device.step:.0%} in a student's step"
    yield f"What {costs.config.scale} costs on {device.name}, computing in {costs.precision}."
    yield from wrap(f"Peak: {device.source}; {shares}{', but for what was measured' if costs.measured else ''}.", WIDTH)
    yield f"Vocabulary: {costs.vocab_size:,} ({costs.vocabulary_source})."
    if slots.a_run > 1:
        said = (
            f"Each student trains on {slots.a_run} of {slots.count} devices, at {EFFICIENCY:.0%} of the speed of "
            f"{slots.a_run} (assumed), {slots.trainings} at once; its memory is that of one device, and of the host "
            "for all its processes. Other jobs take one device each."
        )
        yield from wrap(said, WIDTH)


def _cells(cells: Sequence[CellCost]) -> Iterator[str]:
    """Names of cells that cost the same, then the numbers of each of them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        groups.setdefault(_cell(cell), []).append(cell.cell)
    one, two, *rows = _table([*CELL_COLUMNS, *groups], left=False)
    yield from (f"    {one}", f"    {two}")
    for names, row in zip(groups.values(), rows, strict=True):
        yield from names
        yield f"    {row}"


def _sums(costs: ScaleCosts, slots: Slots) -> Iterator[str]:
    """A row for `main`, for `all` where that is more, for what each target of its own adds; which jobs need most."""
    on_gpu = costs.device.is_gpu
    word = "GPU" if on_gpu else "CPU"
    main, everyday = costs.of("main"), costs.of("all")
    several = f"on {slots.count} GPUs" if on_gpu else f"{slots.count} at once"
    at_once = several if slots.count > 1 else "one by one"
    rows = [("", "cells", "tokens", "FLOPs", f"{word}-hours", at_once)]
    sums, before = {"main": totals(main, gpus=slots.count)}, totals(everyday, gpus=slots.count)
    if len(everyday.cells) > len(main.cells):
        sums["all"] = before
    for name in sorted(OWN_TARGETS & costs.config.tables.keys()):
        both = totals(costs.of("all", name), gpus=slots.count)
        sums[f"{name} besides"] = {key: both[key] - before[key] for key in both}
    for name, one in sums.items():
        hours = f"{one['device_hours']:.1f}", days(one["wall_hours"])
        rows.append((name, str(one["cells"]), f"{one['tokens']:,}", f"{one['flops']:.2e}", *hours))
    yield from _table(rows)
    (need, job), (host, larger) = everyday.largest_device_bytes(), everyday.largest_host_bytes()
    device = f"{gib(need)} on a GPU ({job}), " if on_gpu else ""
    yield ""
    yield from wrap(f"Most memory of a job: {device}{gib(host)} of the host ({larger}).", WIDTH, subsequent_indent="  ")


def _disk(costs: ScaleCosts, slots: Slots) -> list[str]:
    space = disk(costs, slots=slots)
    parts = ", ".join(f"{name} {size(value)}" for name, value in asdict(space).items() if value)
    said = f"Disk: {size(space.total)} in all: {parts}; a tenth more for the rest."
    return wrap(said, WIDTH, subsequent_indent="  ")


def _cell(cell: CellCost) -> tuple[str, ...]:
    flops = (cell.teacher_flops, cell.student_flops, cell.evaluation_flops)
    return (
        f"{cell.tokens:,}",
        *(f"{value:.2e}" for value in flops),
        days(cell.train_seconds / 3600) + ("*" if cell.measured else ""),
        days(cell.evaluate_seconds / 3600),
        gib(max(cell.device_bytes, cell.evaluation_bytes)),
        gib(cell.host_bytes),
        size(cell.disk_bytes),
    )


def _job(job: JobCost) -> tuple[str, ...]:
    return (
        job.job,
        f"{job.tokens:,}",
        f"{job.flops:.2e}",
        days(job.seconds / 3600),
        gib(job.device_bytes),
        size(job.disk_bytes) if job.disk_bytes else "",
    )


def days(hours: float) -> str:
    """A time as a person reads it."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _table(rows: Sequence[Sequence[str]], *, left: bool = True) -> list[str]:
    """Rows in columns that fit, numbers to the right; `left`: the first column holds names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    if left:
        padded = [[row[0].ljust(widths[0]), *cells[1:]] for row, cells in zip(rows, padded, strict=True)]
    return ["  ".join(cells).rstrip() for cells in padded]


# --- findings


def render_findings(found: Sequence[Finding], *, scale: str) -> str:
    """A line a finding, then the verdict."""
    rows = columns([[item.state, item.name, item.line()] for item in found])
    bad = troubles(found)
    verdict = (
        f"{scale} can run here" if not bad else f"{scale} cannot run here: {len(bad)} of {len(found)} lines say why"
    )
    return "\n".join(["  ".join(row) for row in rows] + [verdict])
