"""The numbers that the paper prints (published.csv)."""

import csv
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

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
    note: str = ""

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
        fields: dict[str, Any] = {"method": self.method, "teacher": self.teacher or None}
        for part in self.setting.split():
            key, _, value = part.partition("=")
            if key in SETTING:
                name, kind = SETTING[key]
                fields[name] = kind(value)
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Published:
    """All printed numbers, in the file's order."""

    lines: tuple[Line, ...]

    @classmethod
    def open(cls, path: Path | str) -> "Published":
        """Read published.csv.

        Raises:
            BadInput: the file is missing.
        """
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected the published numbers (config/published.csv)")
        names = ("source", "metric", "method", "teacher", "setting", "note")
        with path.open(newline="", encoding="utf-8") as stream:
            return cls(tuple(Line(**{k: row[k] for k in names}, text=row["value"]) for row in csv.DictReader(stream)))

    def value(self, source: str, metric: str, method: str, *, teacher: str = "", setting: str = "") -> float:
        """One printed number, NaN where the paper prints none."""
        wanted = (source, metric, method, teacher, setting)
        for line in self.lines:
            if (line.source, line.metric, line.method, line.teacher, line.setting) == wanted:
                return line.value
        return nan
