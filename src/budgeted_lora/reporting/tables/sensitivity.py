"""What the constants that the paper leaves open do: each varied alone, and the conclusions that move with it."""

from math import nan
from typing import Any

import pandas as pd

from budgeted_lora.reporting.grouping import method_label
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import RECIPE, Results
from budgeted_lora.reporting.table import Column, Record, Table, measured
from budgeted_lora.reporting.tables.ablations import FOLLOWS, HEADINGS
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import (
    Bootstrap,
    Difference,
    Drawn,
    Group,
    difference_text,
    draw,
    group_of,
    runs_of,
)

# The paper's conclusions that are looked at: one arm minus another; a positive difference is the second one's win.
CONCLUSIONS = {
    "F = 0.4 less KD LoRA": (("budgeted_lora", 0.4), ("kd_lora", None)),
    "F = 0 less F = 0.4": (("budgeted_lora", 0.0), ("budgeted_lora", 0.4)),
}
SIGNS = {1: "above", 0: "undecided", -1: "below"}
Change = tuple[str, str, str]  # which constant, to what, from what


def sensitivity(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """One line per constant and value: perplexities, differences, and which conclusion moves.

    The first line has the scale's own values. An arm that a constant does not touch keeps its run from there.
    """
    own, tried = results.runs("table2", "table8"), results.runs("sensitivity")
    own = own[own["teacher"].isin(tried["teacher"]) & own["seed"].isin(tried["seed"])]
    drawn = draw(results, pd.concat([own, tried], ignore_index=True), bootstrap)
    own, tried = (frame.assign(run=runs_of(frame)).to_dict("records") for frame in (own, tried))
    base = {group_of(row): row for row in own}
    changes: dict[Change, dict[Group, Record]] = {("as configured", "", ""): {}}
    for row in tried:
        changes.setdefault(changed(row, base[group_of(row)]), {})[group_of(row)] = row
    rows = [line(change, arms, base, drawn) for change, arms in changes.items()]
    for row in rows:
        row["moved"] = moved(row, rows[0])
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [column(name) for name in names if name not in ("moved", "files")]
    return tabulate(results, rows=rows, columns=[*columns, column("moved")])


def column(name: str) -> Column:
    """A column of the table; numbers behind a text stand in the CSV only."""
    if name.endswith((" sign", " value", " se")):
        return Column(name)
    return Column(name, name[:1].upper() + name[1:], text=lambda row: row[name])


def changed(row: Record, base: Record) -> Change:
    """Which constant a row changes, to what, and what it was."""
    if row["variant"] != base["variant"]:
        return "compression", str(row["variant"]), str(base["variant"])
    names = [name for name in row if name in RECIPE - FOLLOWS and str(row[name]) != str(base[name])]
    words = [HEADINGS.get(name, name.replace("_", " ")) for name in names]
    return ", ".join(words), ", ".join(text(row[name]) for name in names), ", ".join(text(base[name]) for name in names)


def text(value: Any) -> str:
    """A value of a recipe as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def line(change: Change, arms: dict[Group, Record], base: dict[Group, Record], drawn: Drawn) -> Record:
    """One line: what is changed, the arms' perplexities and their differences."""
    scores = base | arms
    compared = list(dict.fromkeys(arm for pair in CONCLUSIONS.values() for arm in pair[::-1]))
    row: Record = dict(zip(("constant", "value", "instead of"), change, strict=True))
    row["files"] = tuple(scores[arm]["run"].file for arm in dict.fromkeys([*compared, *arms]) if arm in scores)
    for arm in [*compared, *(arm for arm in arms if arm not in compared)]:
        score, name = scores.get(arm), f"PPL {method_label(*arm)}"
        ppl, error = (nan, nan) if score is None else (score["ppl"], score["ppl_se"])
        row |= {name: "" if score is None else measured(ppl, error, 2), f"{name} value": ppl, f"{name} se": error}
    for name, (first, second) in CONCLUSIONS.items():
        touched = not arms or first in arms or second in arms
        difference = None
        if touched and first in scores and second in scores:
            difference = drawn.difference([scores[first]["run"]], [scores[second]["run"]])
        row |= {name: difference_text(difference) if touched else "", f"{name} sign": sign(difference)}
        row[f"{name} value"] = difference.value if difference else nan
    return row


def sign(difference: Difference | None) -> int | None:
    """1 or -1 where the interval excludes zero, else 0; None for no difference."""
    if difference is None:
        return None
    return (1 if difference.value > 0 else -1) if difference.clear else 0


def moved(row: Record, configured: Record) -> str:
    """Which conclusions differ from those of the configured values, and how."""
    moves = []
    for name in CONCLUSIONS:
        before, after = configured[f"{name} sign"], row[f"{name} sign"]
        if before is not None and after is not None and before != after:
            moves.append(f"{name}: {SIGNS[before]} -> {SIGNS[after]}")
    return "; ".join(moves)
