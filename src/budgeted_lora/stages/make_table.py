"""Stage make_table: one table of the report."""

from pathlib import Path

from budgeted_lora.reporting.contents import tables_of
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import write_table
from budgeted_lora.reporting.uncertainty import Bootstrap


def make_table(
    *,
    table: str,
    results: Path,
    lines: list[Path],
    published: Path,
    out: Path,
    standing: Standing,
    bootstrap: int,
    confidence: float,
) -> None:
    """Write out/tables/<table>.csv, .md and .tex.

    Args:
        table: a name of `contents.tables_of`.
        results: results/<scale>. lines: the cells it shows, results/<scale>/tables/<configured table>.csv.
        published: published.csv. out: reports/<scale>.
        standing: what the scale shares with the paper.
        bootstrap: resamples. confidence: coverage of the intervals.

    Raises:
        BadInput: a result is missing or unusable.
    """
    opened = Results.open(results, lines=lines, standing=standing)
    shown = tables_of(opened.tables)[table]
    made = shown.make()(opened.of(shown), Published.open(published), Bootstrap(bootstrap, confidence))
    write_table(made, out / "tables")
