"""The costs of a scale and the findings of a check as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from budgeted_lora.graph import OWN_TARGETS
from budgeted_lora.planning.costs import CellCost, JobCost, ScaleCosts
from budgeted_lora.planning.doctor import gb, gib
from budgeted_lora.planning.findings import Finding, troubles
from budgeted_lora.planning.storage import disk
from budgeted_lora.render import columns

CELL_COLUMNS = (
    "cell", "tokens", "teacher FLOPs", "student FLOPs", "scoring FLOPs", "train", "score", "memory", "host", "disk"
)  # fmt: skip


def as_json(costs: ScaleCosts, *, gpus: int) -> dict[str, Any]:
    """What `plan --costs --json` prints: bytes, seconds, FLOPs; hours in the totals."""
    device, space = costs.device, disk(costs, jobs_at_once=gpus)
    return {
        "scale": costs.config.scale,
        "device": {**asdict(device), "precision": costs.precision, "jobs_at_once": gpus},
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
    hours = costs.seconds() / 3600
    return {
        "cells": len(costs.cells),
        "tokens": sum(cell.tokens for cell in costs.cells),
        "flops": costs.flops(),
        "device_hours": hours,
        "wall_hours": max(hours / gpus, longest(costs)),
        "device_bytes": costs.largest_device_bytes()[0],
        "host_bytes": costs.largest_host_bytes()[0],
    }


def longest(costs: ScaleCosts) -> float:
    """Hours of the longest job, below which no number of devices brings the run."""
    return max([*(cell.hours for cell in costs.cells), *(job.seconds / 3600 for job in costs.jobs)], default=0.0)


def render_costs(costs: ScaleCosts, *, gpus: int) -> str:
    """A line a cell, a line for every other job on the device, then sums."""
    device, config = costs.device, costs.config
    how = (
        "measured here"
        if costs.measured
        else f"assumed: {device.forward:.0%} of the peak forward, {device.step:.0%} in a step"
    )
    lines = [
        f"\nWhat {config.scale} costs on {device.name}, computing in {costs.precision} ({device.source}; {how}).",
        f"Vocabulary {costs.vocab_size:,} ({costs.vocabulary_source}). Memory is of one job.",
        "",
        *_table([CELL_COLUMNS, *map(_cell, costs.cells)]),
        "",
        *_table([("job", "tokens", "FLOPs", "time", "memory", "disk"), *map(_job, costs.jobs)]),
        "",
    ]
    space = disk(costs, jobs_at_once=gpus)
    parts = ", ".join(f"{name} {gb(value)}" for name, value in asdict(space).items() if value)
    lines.append(f"Disk: {gb(space.total)} in all ({parts}; a tenth more for the rest)")
    lines += _sums(costs, gpus=gpus)
    lines.append("Corpus, compression, timings of structures, tables and figures run on the CPU and are not counted.")
    return "\n".join(lines) + "\n"


def _sums(costs: ScaleCosts, *, gpus: int) -> list[str]:
    """A line for `main`, for `all` where that is more, and for what each target of its own adds to that."""
    word, lines = ("GPU" if costs.device.is_gpu else "CPU"), []
    main, everyday = costs.of("main"), costs.of("all")
    for name, part in {"main": main, "all": everyday}.items():
        if name == "all" and len(part.cells) == len(main.cells):
            continue
        sums, space = totals(part, gpus=gpus), disk(part, jobs_at_once=gpus)
        (need, job), (host, _) = part.largest_device_bytes(), part.largest_host_bytes()
        lines.append(
            f"{name}: {sums['cells']} cells, {sums['tokens']:,} tokens, {sums['flops']:.2e} FLOPs, "
            f"{sums['device_hours']:.1f} {word}-hours ({days(sums['wall_hours'])} with {gpus} at once), "
            f"{gib(need)} of {word if word == 'GPU' else 'host'} memory ({job}), {gib(host)} of host memory a job, "
            f"{gb(space.total)} of disk"
        )
    for name in sorted(OWN_TARGETS & costs.config.tables.keys()):
        both = costs.of("all", name)
        cells, hours = len(both.cells) - len(everyday.cells), (both.seconds() - everyday.seconds()) / 3600
        size = disk(both, jobs_at_once=gpus).total - disk(everyday, jobs_at_once=gpus).total
        lines.append(f"{name} besides: {cells} cells, {hours:.1f} {word}-hours, {gb(size)} of disk")
    return lines


def _cell(cell: CellCost) -> tuple[str, ...]:
    flops = (cell.teacher_flops, cell.student_flops, cell.evaluation_flops)
    return (
        cell.cell,
        f"{cell.tokens:,}",
        *(f"{value:.2e}" for value in flops),
        days(cell.train_seconds / 3600) + ("*" if cell.measured else ""),
        days(cell.evaluate_seconds / 3600),
        gib(max(cell.device_bytes, cell.evaluation_bytes)),
        gib(cell.host_bytes),
        gb(cell.disk_bytes),
    )


def _job(job: JobCost) -> tuple[str, ...]:
    return (
        job.job,
        f"{job.tokens:,}",
        f"{job.flops:.2e}",
        days(job.seconds / 3600),
        gib(job.device_bytes),
        gb(job.disk_bytes),
    )


def days(hours: float) -> str:
    """A time as a person reads it."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def render_findings(found: Sequence[Finding], *, scale: str) -> str:
    """A line a finding, then the verdict."""
    rows = columns([[item.state, item.name, item.line()] for item in found])
    bad = troubles(found)
    verdict = (
        f"{scale} can run here" if not bad else f"{scale} cannot run here: {len(bad)} of {len(found)} lines say why"
    )
    return "\n".join(["  ".join(row) for row in rows] + [verdict])
