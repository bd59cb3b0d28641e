"""A table, from rows and columns, and its three forms: CSV (raw numbers), Markdown and LaTeX (as a person reads it)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from budgeted_lora.files import write_text

ABSENT = "–"
UNSTEADY = 1.5  # third over first quartile of a ratio of two times, above which it is marked
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "−": r"$-$",
    "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "τ": r"$\tau$",
}  # fmt: skip
Record = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table, once for the CSV and for the text.

    Attributes:
        name: of the rows' value, and of the CSV's column; empty for one that is only shown.
        heading: above the text; empty for one that stands in the CSV only.
        digits: of a number as text; without them the value is shown as it is.
        unit: after the number.
        factor: the text shows the value times this (100 for a share in per cent).
        error: name of the value's standard error, shown after ±.
        text: of a row, where it is more than its value.
    """

    name: str
    heading: str = ""
    digits: int | None = None
    unit: str = ""
    factor: float = 1.0
    error: str = ""
    text: Callable[[Record], str] | None = None

    def shown(self, row: Record) -> str:
        """What a person reads of a row."""
        if self.text is not None:
            return self.text(row)
        value = row[self.name]
        if self.digits is None:
            return value or ABSENT
        if self.error:
            return measured(self.factor * value, self.factor * row[self.error], self.digits, unit=self.unit)
        return number(value, self.digits, unit=self.unit, factor=self.factor)


def csv_only(*names: str) -> list[Column]:
    """Columns that are not shown to people."""
    return [Column(name) for name in names]


@dataclass(frozen=True)
class Table:
    """One table of the report.

    Attributes:
        name: file name without ending.
        title: one line above it.
        frame: the numbers, as the CSV holds them.
        shown: the same as text, with headings for people.
        notes: sentences below it.
        numbers: for each column of `shown` the numbers behind its text, NaN where there are none or it is no column
            of the CSV; what a reader sorts by.
        files: for each row the result files it was made from, below results/<scale>.
    """

    name: str
    title: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    files: list[tuple[str, ...]] = field(default_factory=list)

    @classmethod
    def of(
        cls, name: str, title: str, *, rows: pd.DataFrame, columns: Sequence[Column], notes: Sequence[str] = ()
    ) -> "Table":
        """The table of these rows and columns, empty where the rows lack one; a heading may stand only once.

        Args:
            rows: a column `files` with tuples of paths says what each row was made from.
        """
        names = [column.name for column in columns if column.name]
        records = rows.reindex(columns=[*rows, *(name for name in names if name not in rows)]).to_dict("records")
        headed = [column for column in columns if column.heading]
        shown = pd.DataFrame({column.heading: [column.shown(row) for row in records] for column in headed})
        numbers = pd.DataFrame({one.heading: [as_number(row.get(one.name)) for row in records] for one in headed})
        files = [row["files"] if isinstance(row.get("files"), tuple) else () for row in records]
        return cls(name, title, rows.reindex(columns=names), shown, list(notes), numbers, files)

    @property
    def words(self) -> list[bool]:
        """For each shown column whether it holds words (set to the left) rather than numbers."""
        return [any(str(value)[:1].isalpha() for value in self.shown[column]) for column in self.shown.columns]


def as_number(value: Any) -> float:
    """A value as a number; NaN for text, for truth values and for what is missing."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan


def number(value: Any, digits: int, *, unit: str = "", factor: float = 1.0) -> str:
    """A number with fixed digits, a dash when it is missing."""
    return ABSENT if pd.isna(value) else f"{factor * float(value):,.{digits}f}{unit}"


def timed(name: str, heading: str) -> Column:
    """A column of measured ratios of times, beside whose value a row has the quartiles `<name>_q1` and `<name>_q3`."""
    return Column(name, heading, text=lambda row: ratio_text(row, name))


def ratio_text(row: Record, name: str, *, unit: str = "×") -> str:
    """A measured ratio of times, with a mark where it is unsteady."""
    return number(row[name], 2, unit=unit) + (" (unsteady)" if unsteady(row, name) else "")


def unsteady(row: Record, name: str) -> bool:
    """Whether the rounds of a timing lie so far apart that its median says little."""
    return bool(row.get(f"{name}_q3", nan) > UNSTEADY * row.get(f"{name}_q1", nan))


def measured(value: float, error: float, digits: int, *, unit: str = "") -> str:
    """A value with its standard error: 34.51 ± 0.42."""
    text = number(value, digits)
    return text if ABSENT in (text, number(error, digits)) else f"{text} ± {number(error, digits)}{unit}"


def mean_text(value: float, *, error: float, deviation: float, seeds: int, digits: int = 2) -> str:
    """A mean with its standard error, or, of several seeds, with their standard deviation and number."""
    if seeds > 1:
        text = measured(value, deviation, digits)
        return text if text == ABSENT else f"{text} ({seeds:.0f} seeds)"
    return measured(value, error, digits)


def millions(tokens: float) -> str:
    """Tokens as people say them: 2.55 B, 3.1 M, 40 k."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return f"{tokens:.0f}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 48 s, 12.5 min, 3.2 h."""
    if pd.isna(seconds):
        return ABSENT
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write <folder>/<name>.csv, .md and .tex, each whole or not at all."""
    paths = [folder / f"{table.name}.{ending}" for ending in ("csv", "md", "tex")]
    texts = [table.frame.to_csv(index=False, float_format="%.8g", lineterminator="\n"), markdown(table), latex(table)]
    for path, text in zip(paths, texts, strict=True):
        write_text(path, text)
    return paths


def markdown(table: Table) -> str:
    """A table as Markdown: title, pipes, notes."""

    def cells(values: Iterable[object]) -> str:
        return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"

    rule = ["---" if words or position == 0 else "---:" for position, words in enumerate(table.words)]
    body = [cells(row) for row in table.shown.itertuples(index=False)]
    lines = [f"**{table.title}**", "", cells(table.shown.columns), cells(rule), *body]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A table as a LaTeX float with booktabs rules; needs \\usepackage{booktabs}."""
    rows = [" & ".join(escape(str(value)) for value in row) + r" \\" for row in table.shown.itertuples(index=False)]
    letters = "".join("l" if words or position == 0 else "r" for position, words in enumerate(table.words))
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{letters}}}",
        r"\toprule",
        " & ".join(escape(column) for column in table.shown.columns) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\footnotesize " + " ".join(escape(note) for note in table.notes)] if table.notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text with LaTeX's special characters made printable."""
    return "".join(LATEX.get(character, character) for character in text)
