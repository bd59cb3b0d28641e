"""A table and the three forms it is written in: CSV (raw numbers), Markdown and LaTeX (as a person reads it)."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from budgeted_lora.files import write_text

ABSENT = "–"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "−": r"$-$",
    "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "τ": r"$\tau$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One table of the report.

    Attributes:
        name: file name without ending.
        title: one line above it.
        frame: the numbers, as the CSV holds them.
        shown: the same as text, with headings for people; columns may repeat no name.
        notes: sentences below it.
    """

    name: str
    title: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[bool]:
        """For each shown column whether it holds words (set to the left) rather than numbers."""
        return [any(str(value)[:1].isalpha() for value in self.shown[column]) for column in self.shown.columns]


def number(value: object, digits: int, *, unit: str = "") -> str:
    """A number with fixed digits, a dash when it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return ABSENT
    return f"{float(value):,.{digits}f}{unit}"  # type: ignore[arg-type]


def measured(value: float, error: float, digits: int, *, unit: str = "") -> str:
    """A value with its standard error: 34.51 ± 0.42."""
    text = number(value, digits)
    return text if ABSENT in (text, number(error, digits)) else f"{text} ± {number(error, digits)}{unit}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 48 s, 12.5 min, 3.2 h."""
    if pd.isna(seconds):
        return ABSENT
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def write_table(table: Table, folder: Path) -> list[Path]:
    """Writes <folder>/<name>.csv, .md and .tex, each whole or not at all."""
    paths = [folder / f"{table.name}.{ending}" for ending in ("csv", "md", "tex")]
    texts = [table.frame.to_csv(index=False, float_format="%.8g", lineterminator="\n"), markdown(table), latex(table)]
    for path, text in zip(paths, texts, strict=True):
        write_text(path, text)
    return paths


def markdown(table: Table) -> str:
    """A table as Markdown: title, pipes, notes."""

    def cells(values: list[str]) -> str:
        return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"

    columns = list(table.shown.columns)
    rule = ["---" if words or position == 0 else "---:" for position, words in enumerate(table.words)]
    body = [cells(list(row)) for row in table.shown.itertuples(index=False)]
    lines = [f"**{table.title}**", "", cells(columns), cells(rule), *body]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A table as a LaTeX float with booktabs rules; needs \\usepackage{booktabs}."""
    columns = list(table.shown.columns)
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
        " & ".join(escape(column) for column in columns) + r" \\",
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
