"""What differs between two results, as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from budgeted_lora.commands.diff import Comparison
from budgeted_lora.commands.diff_records import Change, Metric, Restructured
from budgeted_lora.commands.text import columns, table
from budgeted_lora.config.messages import in_yaml

MOST_FILES, MOST_NAMES = 10, 3
VERDICTS = {True: "clear", False: "within noise", None: "noise not known"}


def render_diff(found: Comparison, *, all_files: bool = False) -> str:
    """A part per kind of difference; one line where there is none."""
    if found.equal:
        counted = f"{len(found.records)} records, {len(found.common)} files"
        return f"no difference in {counted}{'; code and machine were not compared' if found.ignore_provenance else ''}"
    parts = {
        "cells": cell_lines(found),
        "settings": change_lines(found.settings),
        "code and machine": change_lines(found.provenance),
        "metrics": metric_lines(found.metrics, percent=100 * found.bootstrap.confidence),
        "structure": [line for item in found.structure for line in structure_lines(item)],
        "files, without provenance and timings": file_lines(found.files, len(found.common), every=all_files),
    }
    lines = [f"A  {found.a.name}", f"B  {found.b.name}"]
    for heading, part in parts.items():
        if part:
            lines += ["", heading, *(f"  {line}" for line in part)]
    return "\n".join(lines)


def cell_lines(found: Comparison) -> list[str]:
    """Which cells only one side has, and which are compared although their ids differ."""
    lines = [f"only in {side}: {cell}" for side, cells in zip("AB", found.only, strict=True) for cell in cells]
    return lines + [f"compared: {a} with {b} of B" for a, b in found.renamed.items()]


def change_lines(changes: Sequence[Change]) -> list[str]:
    """One line per change: its key, both values, and where it was found."""
    rows = [[change.key, value_text(change.a), "->", value_text(change.b), names(change.where)] for change in changes]
    return table(rows) if rows else []


def value_text(value: Any) -> str:
    text = "-" if value is None else f"{value:.5g}" if isinstance(value, float) else in_yaml(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def names(where: Sequence[str]) -> str:
    """Where a change was found: one name, or how many."""
    return where[0] if len(where) == 1 else f"{len(where)} results"


def metric_lines(metrics: Sequence[Metric], *, percent: float) -> list[str]:
    """One line per number that differs: B - A with its error and interval, and whether the interval excludes zero."""
    if not metrics:
        return []
    rows = [["", "", "A", "B", "B - A", f"{percent:g} % interval", "", ""]]
    for before, metric in zip([None, *metrics], metrics, strict=False):
        noise, where = metric.noise, metric.where if before is None or before.where != metric.where else ""
        error, ends = (
            (f" ± {noise.standard_error:.2g}", f"{noise.low:+.3g} to {noise.high:+.3g}") if noise else ("", "")
        )
        values = [f"{metric.a:.5g}", f"{metric.b:.5g}", f"{metric.b - metric.a:+.3g}{error}", ends]
        how = "" if noise is None else "paired by window" if metric.paired else "not paired"
        rows.append([where, metric.name, *values, how, VERDICTS[metric.clear]])
    return ["  ".join(row).rstrip() for row in columns(rows, numbers=[2, 3, 4])]


def structure_lines(item: Restructured) -> Iterator[str]:
    """A model's totals, and its modules by what they were and are."""
    sums = ", ".join(f"{key} {value_text(a)} -> {value_text(b)}" for key, (a, b) in item.totals.items())
    moved = f"retention differs by up to {item.retention:.3g}" if item.retention else ""
    yield ": ".join(filter(None, (item.where, "; ".join(filter(None, (sums, moved))) or "other modules")))
    kinds: dict[tuple[str | None, str | None], list[str]] = {}
    for name, pair in item.modules.items():
        kinds.setdefault(pair, []).append(name)
    for (a, b), modules in kinds.items():
        more = f" and {len(modules) - MOST_NAMES} more" if len(modules) > MOST_NAMES else ""
        yield f"  {a or 'absent'} -> {b or 'absent'}: {', '.join(modules[:MOST_NAMES])}{more}"


def file_lines(files: Mapping[str, Sequence[str]], common: int, *, every: bool) -> list[str]:
    """The first difference of each file, of the first files unless all are asked for."""
    if not files:
        return []
    shown = list(files) if every else list(files)[:MOST_FILES]
    lines = []
    for name in shown:
        more = f" (and {len(files[name]) - 1} more)" if len(files[name]) > 1 else ""
        lines.append(f"{name}: {files[name][0]}{more}")
    rest = f"; {len(files) - len(shown)} are not shown, --files shows all" if len(shown) < len(files) else ""
    return [*lines, f"{len(files)} differ, {common} are in both{rest}"]
