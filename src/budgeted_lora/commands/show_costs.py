"""The costs of a scale and the findings of a check, as text and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from budgeted_lora.commands.plan import Energy
from budgeted_lora.commands.show_structures import describe_structure, render_plan
from budgeted_lora.commands.text import WIDTH, duration, size, table
from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.planning.costs import CellCost, ScaleCosts
from budgeted_lora.planning.devices import EFFICIENCY, Slots
from budgeted_lora.planning.findings import Finding, gib, troubles
from budgeted_lora.planning.storage import disk
from budgeted_lora.planning.structures import own_structures, planned_structures
from budgeted_lora.reporting.contents import OWN_TARGETS
from budgeted_lora.workflow.graph import Graph

KWH = 3.6e6  # joules
CELL_COLUMNS = (
    ("", "FLOPs of", "FLOPs of", "FLOPs of", "time to", "time to", "device", "host", ""),
    ("tokens", "teacher", "student", "scoring", "train", "score", "memory", "memory", "disk"),
)


def as_json(costs: ScaleCosts, *, gpus: int, energy: Energy | None = None) -> dict[str, Any]:
    """What `plan --costs --json` prints, in bytes, seconds and FLOPs; totals are in hours."""
    device, slots = costs.device, Slots(gpus, costs.config.gpus_per_run)
    space = disk(costs, slots=slots)
    sharing = {
        "gpus_per_run": slots.per_run,
        "trainings_at_once": slots.trainings,
        "efficiency": EFFICIENCY if slots.per_run > 1 else None,
    }
    return {
        "scale": costs.config.scale,
        "device": {**asdict(device), "precision": costs.precision, "jobs_at_once": gpus, **sharing},
        "vocab_size": costs.vocab_size,
        "vocab_size_from": costs.vocabulary_source,
        "cells": [{**asdict(cell), "hours": cell.hours} for cell in costs.cells],
        "jobs": [asdict(job) for job in costs.jobs],
        "measured": {key: asdict(value) for key, value in costs.measured.items()},
        "energy": asdict(energy) if energy else None,
        "disk": {**asdict(space), "results": space.results, "total": space.total},
        "total": totals(costs, gpus=gpus) | {"disk_bytes": space.total},
        "main": totals(costs.of("main"), gpus=gpus),
        "all": totals(costs.of("all"), gpus=gpus),
    }


def totals(costs: ScaleCosts, *, gpus: int) -> dict[str, Any]:
    """Sums over all jobs; device hours are on one device, wall hours on `gpus` devices that are never idle."""
    return {
        "cells": len(costs.cells),
        "tokens": sum(cell.tokens for cell in costs.cells),
        "flops": costs.flops(),
        "device_hours": costs.seconds() / 3600,
        "wall_hours": costs.wall_seconds(Slots(gpus, costs.config.gpus_per_run)) / 3600,
        "device_bytes": costs.largest_device_bytes()[0],
        "host_bytes": costs.largest_host_bytes()[0],
    }


def structures_json(graph: Graph) -> list[dict[str, Any]]:
    """What `plan --json` prints: the planned structures, then those that finished compressions left."""
    compressed = [
        {"cell": item.cell, "variant": item.variant} | item.structure.as_json()
        for item in own_structures(graph)
        if item.structure
    ]
    return [item.as_json() for item in graph.structures().values()] + compressed


def render_structures(graph: Graph) -> str:
    """The planned structures, each once, then those of cells with a removal order or ranks that are not the paper's."""
    planned = planned_structures(graph)
    controllers = [f"{' and '.join(names)} controller" for _, names in planned]
    same = len(set(controllers)) < 2  # then they are not printed
    own = list(own_structures(graph))
    structures = [structure for structure, _ in planned]
    text = render_plan(structures, notes=None if same else controllers) if planned or not own else ""
    lines = []
    for item in own:
        if item.structure is not None:
            variant = "" if item.variant == DEFAULT_VARIANT else f" {item.variant}"
            lines += ["", f"{item.cell}{variant}, as it was compressed"]
            lines += describe_structure(item.structure, sums=True)
    waiting: dict[str, list[str]] = {}
    for item in own:
        if item.structure is None:
            waiting.setdefault(item.cell, []).append(item.variant)
    if waiting:
        lines += ["", "The weights of these students decide their structure; it is known after `compress`:"]
        for cell, variants in waiting.items():
            named = cell if variants == [DEFAULT_VARIANT] else f"{cell}: {', '.join(variants)}"
            lines += wrap(named, WIDTH, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
    return text + "".join(f"{line}\n" for line in lines)


def render_costs(costs: ScaleCosts, *, gpus: int, energy: Energy | None = None) -> str:
    """The cells, grouped by equal costs; a line for every other job on a device; then sums."""
    slots = Slots(gpus, costs.config.gpus_per_run)
    lines = ["", *_heading(costs, slots), "", *_cells(costs.cells)]
    if any(cell.measured for cell in costs.cells):
        lines.append("* measured here")
    jobs = [("job", "tokens", "FLOPs", "time", "memory", "disk")]
    for job in costs.jobs:
        stored = size(job.disk_bytes) if job.disk_bytes else ""
        jobs.append(
            (job.job, f"{job.tokens:,}", f"{job.flops:.2e}", duration(job.seconds), gib(job.device_bytes), stored)
        )
    lines += ["", *table(jobs, numbers=range(1, 6))]
    space = disk(costs, slots=slots)
    parts = ", ".join(f"{name} {size(value)}" for name, value in asdict(space).items() if value)
    text = f"Disk: {size(space.total)} in all: {parts}; a tenth more for small files."
    lines += ["", *_sums(costs, slots), "", *wrap(text, WIDTH, subsequent_indent="  ")]
    if energy:
        trainings = f"{energy.trainings} finished training{'s' * (energy.trainings > 1)}"
        done = f"{trainings} took {energy.joules / KWH:.2g} kWh on their GPUs"
        every = f"all {len(costs.cells)} take about {energy.all_joules / KWH:.2g} kWh at as much per FLOP"
        lines += wrap(f"Energy: {done}; {every}.", WIDTH, subsequent_indent="  ")
    lines.append("Not counted: corpus, compression, timing of structures, tables and figures.")
    return "\n".join(lines) + "\n"


def _heading(costs: ScaleCosts, slots: Slots) -> Iterator[str]:
    device = costs.device
    shares = f"assumed are {device.forward:.0%} of it in a forward pass and {device.step:.0%} in a student's step"
    yield f"What {costs.config.scale} costs on {device.name}, computing in {costs.precision}."
    yield from wrap(f"Peak: {device.source}; {shares}{', except where measured' if costs.measured else ''}.", WIDTH)
    yield f"Vocabulary: {costs.vocab_size:,} ({costs.vocabulary_source})."
    if slots.per_run > 1:
        text = (
            f"Each student trains on {slots.per_run} of {slots.count} devices, at {EFFICIENCY:.0%} of the speed of "
            f"{slots.per_run} (assumed), {slots.trainings} at once. Device memory is that of one device, host memory "
            "that of all its processes. Other jobs take one device each."
        )
        yield from wrap(text, WIDTH)


def _cells(cells: Sequence[CellCost]) -> Iterator[str]:
    """Names of cells with equal costs, then the costs of one of them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        groups.setdefault(_cell(cell), []).append(cell.cell)
    first, second, *rows = table([*CELL_COLUMNS, *groups], numbers=range(len(CELL_COLUMNS[0])))
    yield from (f"    {first}", f"    {second}")
    for names, row in zip(groups.values(), rows, strict=True):
        yield from names
        yield f"    {row}"


def _sums(costs: ScaleCosts, slots: Slots) -> Iterator[str]:
    """A row for `main`, for `all` if that is more, for what each separate target adds; then the largest jobs."""
    on_gpu = costs.device.is_gpu
    word = "GPU" if on_gpu else "CPU"
    main, everyday = costs.of("main"), costs.of("all")
    at_once = f"on {slots.count} GPUs" if on_gpu else f"{slots.count} at once"
    rows = [("", "cells", "tokens", "FLOPs", f"{word}-hours", at_once if slots.count > 1 else "one by one")]
    sums, before = {"main": totals(main, gpus=slots.count)}, totals(everyday, gpus=slots.count)
    if len(everyday.cells) > len(main.cells):
        sums["all"] = before
    for name in sorted(OWN_TARGETS & costs.config.tables.keys()):
        both = totals(costs.of("all", name), gpus=slots.count)
        sums[f"{name} besides"] = {key: both[key] - before[key] for key in both}
    for name, one in sums.items():
        hours = f"{one['device_hours']:.1f}", duration(3600 * one["wall_hours"])
        rows.append((name, str(one["cells"]), f"{one['tokens']:,}", f"{one['flops']:.2e}", *hours))
    yield from table(rows, numbers=range(1, 6))
    (need, job), (host, larger) = everyday.largest_device_bytes(), everyday.largest_host_bytes()
    device = f"{gib(need)} on a GPU ({job}), " if on_gpu else ""
    memory = f"Most memory of a job: {device}{gib(host)} of the host ({larger})."
    yield from ("", *wrap(memory, WIDTH, subsequent_indent="  "))


def _cell(cell: CellCost) -> tuple[str, ...]:
    flops = (cell.teacher_flops, cell.student_flops, cell.evaluation_flops)
    return (
        f"{cell.tokens:,}",
        *(f"{value:.2e}" for value in flops),
        duration(cell.train_seconds) + ("*" if cell.measured else ""),
        duration(cell.evaluate_seconds),
        gib(max(cell.device_bytes, cell.evaluation_bytes)),
        gib(cell.host_bytes),
        size(cell.disk_bytes),
    )


def render_findings(findings: Sequence[Finding], *, scale: str) -> str:
    """One line per finding, then the verdict."""
    lines = table([[item.state, item.name, item.line()] for item in findings])
    bad = len(troubles(findings))
    verdict = f"cannot run here: {bad} of {len(findings)} lines say why" if bad else "can run here"
    return "\n".join([*lines, f"{scale} {verdict}"])
