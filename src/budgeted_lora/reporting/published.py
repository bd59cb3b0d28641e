"""The paper's printed numbers (published.csv)."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from budgeted_lora.errors import BadInput

SETTING = {
    "F": ("budget", float), "init": ("init", str), "T": ("temperature", float), "a": ("kd_weight", float),
    "r": ("rank", int), "schedule": ("schedule", str),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One printed number; `text` has its digits."""

    source: str
    metric: str
    method: str
    teacher: str
    setting: str
    text: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit."""
        return 0.5 * 10.0 ** -len(self.text.partition(".")[2])

    @property
    def fields(self) -> dict[str, Any]:
        """Method, teacher and setting as fields of a selection; alpha goes with the rank and is left out."""
        found = {"method": self.method, "teacher": self.teacher or None}
        for part in self.setting.split():
            key, _, value = part.partition("=")
            if key in SETTING:
                name, kind = SETTING[key]
                found[name] = kind(value)
        return {name: value for name, value in found.items() if value is not None}


def read_lines(path: Path | str) -> list[Line]:
    """The printed numbers, with their digits as printed.

    Raises:
        BadInput: the file is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; expected the published numbers (config/published.csv)")
    with path.open(newline="", encoding="utf-8") as stream:
        names = ("source", "metric", "method", "teacher", "setting")
        return [Line(*(row[name] for name in names), text=row["value"]) for row in csv.DictReader(stream)]


@dataclass(frozen=True)
class Published:
    """The numbers the paper prints (published.csv)."""

    frame: pd.DataFrame

    @classmethod
    def open(cls, path: Path | str) -> "Published":
        """Reads published.csv.

        Raises:
            BadInput: the file is missing.
        """
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected the published numbers (config/published.csv)")
        return cls(pd.read_csv(path, dtype=str, keep_default_na=False).astype({"value": float}))

    def value(self, source: str, metric: str, method: str, *, teacher: str = "", setting: str = "") -> float:
        """One published number, NaN where the paper prints none."""
        frame = self.frame
        found = frame[
            (frame["source"] == source) & (frame["metric"] == metric) & (frame["method"] == method)
            & (frame["teacher"] == teacher) & (frame["setting"] == setting)
        ]  # fmt: skip
        return float(found["value"].iloc[0]) if len(found) else float("nan")
