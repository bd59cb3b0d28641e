"""Stage make_table: one table of the report."""

from pathlib import Path

from budgeted_lora.config.sections import Report
from budgeted_lora.reporting.contents import table_of
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import write_table
from budgeted_lora.reporting.uncertainty import Bootstrap


def make_table(
    *, table: str, results: Path, lines: list[Path], published: Path, out: Path, standing: Standing, report: Report
) -> None:
    """Write out/tables/<table>.csv, .md and .tex.

    Args:
        table: a name of `contents.tables_of`.
        lines: lists of the cells it shows, results/<scale>/tables/<configured table>.csv.
        report: resamples and coverage of the intervals.

    Raises:
        BadInput: the table is unknown, or a result is missing or unusable.
    """
    opened = Results.open(results, lines=lines, standing=standing)
    shown = table_of(opened.tables, table)
    made = shown.make()(opened.of(shown), Published.open(published), Bootstrap(report.bootstrap, report.confidence))
    write_table(made, out / "tables")
