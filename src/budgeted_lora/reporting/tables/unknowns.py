"""The table of constants that the paper leaves open."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from budgeted_lora.config.scale import Config
from budgeted_lora.files import canonical_json
from budgeted_lora.reporting.table import Table, write_table


def build_unknowns(*, config: Config, out: Path) -> list[Path]:
    """Writes out/tables/unknowns.csv, .md and .tex: every constant the paper leaves open, with the value used."""
    rows = [row for row in constants(config) if row["tag"] == "U"]
    frame = pd.DataFrame(rows, columns=["key", "value", "meaning"])
    shown = frame.rename(columns={"key": "Key", "value": "Value used", "meaning": "Meaning"})
    notes = ["Unknown outside the authors: the values are ours, and each is a key of the configuration."]
    return write_table(Table("unknowns", "Constants the paper does not state", frame, shown, notes), out / "tables")


TAG = re.compile(r"\s*\[(S|D|U|ours)\]")


def constants(config: Config) -> list[dict[str, str]]:
    """Every setting whose value the paper does not state ([U]) or that is derived ([D]): key, value, tag, meaning."""
    unused = () if config.corpus.source == "hub" else ("corpus.hub.",)
    return [row for row in walk(config, "") if row["tag"] in ("U", "D") and not row["key"].startswith(unused)]


def walk(model: BaseModel, prefix: str) -> Iterator[dict[str, str]]:
    """All tagged leaves of a settings model, depth first; the rows of the tables are no constants and are left out."""
    for name, field in type(model).model_fields.items():
        value: Any = getattr(model, name)
        text = field.description or ""
        below = {"": value} if isinstance(value, BaseModel) else value if isinstance(value, dict) else {}
        models = {key: entry for key, entry in below.items() if isinstance(entry, BaseModel)}
        for key, entry in models.items():
            yield from walk(entry, f"{prefix}{name}.{key}." if key else f"{prefix}{name}.")
        tags = TAG.findall(text)
        if tags and not models and name != "tables":
            shown = value if isinstance(value, str) else canonical_json(value)
            yield {"key": f"{prefix}{name}", "value": shown, "tag": tags[0], "meaning": TAG.sub("", text).strip()}
