"""Stage make_figure: one figure of the report."""

from pathlib import Path

from budgeted_lora.reporting.contents import figure_of
from budgeted_lora.reporting.figures.style import write_figure
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing


def make_figure(*, figure: str, results: Path, lines: list[Path], out: Path, standing: Standing) -> None:
    """Write out/figures/<figure>.png, .svg and .pdf.

    Args:
        figure: a name of `contents.figures_of`.
        lines: lists of the cells it shows, results/<scale>/tables/<configured table>.csv.

    Raises:
        BadInput: the figure is unknown, or a result is missing or unusable.
    """
    opened = Results.open(results, lines=lines, standing=standing)
    write_figure(figure_of(opened.tables, figure), opened, out / "figures")
