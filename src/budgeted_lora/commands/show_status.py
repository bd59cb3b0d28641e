"""Status, explanations and leftovers as plain text, in columns that fit what they hold."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import typer

from budgeted_lora.commands.prune import Leftover
from budgeted_lora.commands.status import CellStatus, merged, mixed
from budgeted_lora.commands.text import columns, size
from budgeted_lora.config.rows import Row
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import recipe

IN_THE_ID = frozenset({"teacher", "init", "student_layers", "student_ffn", "seed"})  # said by every id, word for word
COLORS = {"done": typer.colors.GREEN, "missing": typer.colors.YELLOW, "stale": typer.colors.RED}


def state(text: str) -> str:
    """A state in its colour, which `typer.echo` takes away where the output is no terminal."""
    return typer.style(text, fg=COLORS.get(text.strip()))


def render_cells(found: Sequence[CellStatus]) -> str:
    """A line a cell, then how many stand how; the first thing to say of each, and how many more there are."""
    rows = [["cell", "status", "tables", "differs in", ""]]
    for item in found:
        said = [*(["training now"] if item.running else []), *item.detail]
        more = f" (and {len(said) - 1} more: why {item.cell})" if len(said) > 1 else ""
        differs = " ".join(f"{name}={word(value)}" for name, value in item.differs.items() if name not in IN_THE_ID)
        rows.append([item.cell, item.state, " ".join(item.tables), differs, (said[0] if said else "") + more])
    padded = columns(rows)
    lines = ["  ".join(padded[0]).rstrip()]
    lines += ["  ".join([name, state(status), *rest]).rstrip() for name, status, *rest in padded[1:]]
    counts = Counter(item.state for item in found)
    named = ", ".join(f"{counts[kind]} {kind}" for kind in COLORS if counts[kind])
    lines.append(f"{len(found)} cells: {named}" if found else "no cells: the scale's tables list none")
    mixes = mixed(merged([item.libraries for item in found]))
    if mixes:
        lines.append(f"results of mixed library versions, which rerun nothing: {'; '.join(mixes)}")
    return "\n".join(lines)


def render_why(graph: Graph, item: CellStatus) -> str:
    """A cell's tables, its recipe beside the scale's defaults, and its stages with what is wrong with each."""
    lines = [f"{item.cell}: {state(item.state)}{', training now' if item.running else ''}"]
    for settings, tables in graph.cells[item.cell].variants.items():
        lines.append(f"compression {settings}: asked for by {', '.join(tables) or 'no table, made with the others'}")
    lines += ["", *recipe_lines(graph, item.cell), ""]
    for status in item.stages:
        name = f"{status.stage.name}{'' if status.stage.own else ' (shared)'}"
        lines.append(f"{name}: {state(status.state)}  {status.folder}/")
        lines += [f"    {reason}" for reason in status.reasons]
        lines += [f"    note: {note}" for note in status.notes]
    mixes = mixed(item.libraries)
    if mixes:
        lines += ["", f"mixed library versions, which rerun nothing: {'; '.join(mixes)}"]
    return "\n".join(lines)


def recipe_lines(graph: Graph, cell: str) -> list[str]:
    """The recipe, a line a value; what differs from the scale's default is marked, with the default beside it."""
    mine = graph.recipe_of(cell)
    row = Row(method=mine.method, budget=mine.budget)
    default = recipe(graph.config, row).model_dump(mode="json")
    values = {name: value for name, value in mine.model_dump(mode="json").items() if value is not None}
    rows = []
    for name, value in values.items():
        differs = value != default[name]
        rows.append([f"  {'*' if differs else ' '} {name}", word(value), f"(default {word(default[name])})" * differs])
    marked = sum(bool(row[2]) for row in rows)
    what = f"{marked} values differ from the scale's defaults" if marked else "as the scale's defaults"
    head = f"recipe, {what} for {mine.method}{f' at F = {mine.budget:g}' if mine.budget is not None else ''}:"
    return [head, *("  ".join(row).rstrip() for row in columns(rows))]


def word(value: Any) -> str:
    return "none" if value is None else str(value)


def render_leftovers(found: Sequence[Leftover]) -> str:
    """A line a leftover, size first, and their sum."""
    total = sum(item.bytes for item in found)
    rows = [[size(item.bytes), str(item.path), item.why] for item in found]
    rows.append([size(total), f"in {len(found)} places", ""])
    wide = max(len(row[0]) for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in columns([[row[0].rjust(wide), *row[1:]] for row in rows]))
