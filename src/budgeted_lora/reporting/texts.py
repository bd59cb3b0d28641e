"""Titles, captions and notes of the report, from texts.yaml, and tables with theirs."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Column, Record, Table, unsteady


@cache
def texts() -> dict[str, Any]:
    """The file, by name of table."""
    return yaml.safe_load((files(__package__) / "texts.yaml").read_text(encoding="utf-8"))


def describe(results: Results, **values: Any) -> tuple[str, list[str]]:
    """Title and notes of the table that is made; `values` fill the texts and choose between notes."""
    name, standing = results.shown.name, results.standing
    text = texts().get(name) or texts()["any_table"]
    values |= {"name": name, "models": standing.models, "setup": texts()["setups"][standing.setup]}
    values |= {"cuts": standing.rank_cuts == "possible", "shots": standing.shots}
    values |= {"cuts_none": standing.rank_cuts == "none", "cuts_later": standing.rank_cuts == "out of reach"}
    notes = [note for note in text["notes"] if isinstance(note, str) or stands(note, values)]
    if text.get("counts") and not standing.proportions:
        notes.append(texts()["notes"]["counts"])
    if values.pop("unsteady", False):
        notes.append(texts()["notes"]["unsteady"])
    if results.missing:
        notes.append(texts()["notes"]["partial"])
        values["missing"] = len(results.missing)
    if dirty := results.uncommitted():
        notes.append(texts()["notes"]["uncommitted"])
        values |= {"dirty": len(dirty), "named": ", ".join(dirty[:3]) + (" ..." if len(dirty) > 3 else "")}
    sentences = [note if isinstance(note, str) else note["text"] for note in notes]
    return text["title"].format(**values), [sentence.format(**values) for sentence in sentences]


def stands(note: dict[str, str], values: dict[str, Any]) -> bool:
    return bool(values.get(note["if"])) if "if" in note else not values.get(note["unless"])


def tabulate(
    results: Results, *, rows: pd.DataFrame | Sequence[Record], columns: Sequence[Column], **values: Any
) -> Table:
    """The table that is made, of these rows and columns, with its title and notes."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    counts = frame[[name for name in frame if name == "seeds" or str(name).endswith("_seeds")]]
    timings = {column.name for column in columns if f"{column.name}_q3" in frame}
    values["unsteady"] = any(unsteady(row, name) for name in timings for row in frame.to_dict("records"))
    title, notes = describe(results, several_seeds=bool((counts > 1).any(axis=None)), **values)
    return Table.of(results.shown.name, title, rows=frame, columns=columns, notes=notes)
