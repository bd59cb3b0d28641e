"""Status, explanations and leftovers as text, in columns."""

from collections import Counter
from collections.abc import Sequence

import typer

from budgeted_lora.commands.prune import Leftover
from budgeted_lora.commands.status import CellStatus, merged, mixed
from budgeted_lora.commands.text import columns, size, table
from budgeted_lora.config.messages import in_yaml
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import default_of

IN_THE_ID = frozenset({"teacher", "init", "student_layers", "student_ffn", "seed"})  # every id contains them
COLORS = {"done": typer.colors.GREEN, "missing": typer.colors.YELLOW, "stale": typer.colors.RED}


def colored(state: str) -> str:
    """A state in its colour; `typer.echo` removes the colour if the output is not a terminal."""
    return typer.style(state, fg=COLORS.get(state.strip()))


def render_cells(cells: Sequence[CellStatus]) -> str:
    """One line per cell with its first detail, then the counts of each state."""
    rows = [["cell", "status", "tables", "differs in", ""]]
    for item in cells:
        details = [*(["training now"] if item.running else []), *item.detail, ""]
        more = f" (and {len(details) - 2} more: why {item.cell})" if len(details) > 2 else ""
        differs = " ".join(f"{name}={in_yaml(value)}" for name, value in item.differs.items() if name not in IN_THE_ID)
        rows.append([item.cell, item.state, " ".join(item.tables), differs, details[0] + more])
    lines = ["  ".join([name, colored(state), *rest]).rstrip() for name, state, *rest in columns(rows)]
    counts = Counter(item.state for item in cells)
    counted = ", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state])
    lines.append(f"{len(cells)} cells: {counted}" if cells else "no cells: the scale's tables list none")
    mixes = mixed(merged(item.libraries for item in cells))
    if mixes:
        lines.append(f"results of mixed library versions, which rerun nothing: {'; '.join(mixes)}")
    return "\n".join(lines)


def render_why(graph: Graph, item: CellStatus) -> str:
    """A cell's tables, its recipe beside the scale's defaults, and its stages with the problems of each."""
    lines = [f"{item.cell}: {colored(item.state)}{', training now' if item.running else ''}"]
    for variant, tables in graph.cells[item.cell].variants.items():
        lines.append(f"compression {variant}: listed by {', '.join(tables) or 'no table, made with the others'}")
    lines += ["", *recipe_lines(graph, item.cell), ""]
    for status in item.stages:
        name = f"{status.stage.name}{'' if status.stage.own else ' (shared)'}"
        lines.append(f"{name}: {colored(status.state)}  {status.folder}/")
        lines += [f"    {reason}" for reason in status.reasons]
        lines += [f"    note: {note}" for note in status.notes]
    mixes = mixed(item.libraries)
    if mixes:
        lines += ["", f"mixed library versions, which rerun nothing: {'; '.join(mixes)}"]
    return "\n".join(lines)


def recipe_lines(graph: Graph, cell: str) -> list[str]:
    """The recipe, one value per line; a value that differs from the scale's default is marked and followed by it."""
    mine = graph.recipe_of(cell)
    default = default_of(graph.config, mine).model_dump(mode="json")
    values = {name: value for name, value in mine.model_dump(mode="json").items() if value is not None}
    differing = {name for name, value in values.items() if value != default[name]}
    rows = [
        [f"  * {name}", in_yaml(value), f"(default {in_yaml(default[name])})"]
        if name in differing
        else [f"    {name}", in_yaml(value), ""]
        for name, value in values.items()
    ]
    what = (
        f"{len(differing)} value{'s differ' if len(differing) > 1 else ' differs'} from the scale's defaults"
        if differing
        else "as the scale's defaults"
    )
    budget = f" at F = {mine.budget:g}" if mine.budget is not None else ", elastic" if mine.elastic else ""
    return [f"recipe, {what} for {mine.method}{budget}:", *table(rows)]


def render_leftovers(leftovers: Sequence[Leftover]) -> str:
    """One line per leftover, size first, and their sum."""
    rows = [[size(item.bytes), str(item.path), item.why] for item in leftovers]
    rows.append([size(sum(item.bytes for item in leftovers)), f"in {len(leftovers)} places", ""])
    return "\n".join(table(rows, numbers=[0]))
