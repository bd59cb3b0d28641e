"""Stages of the report, one a workflow rule: a table, a figure, the page; and all of them at once for a partial one."""

from pathlib import Path

import matplotlib.pyplot as plt

from budgeted_lora.config import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_text
from budgeted_lora.reporting.claims_report import build_claims, build_unknowns
from budgeted_lora.reporting.figures import FIGURES
from budgeted_lora.reporting.grouping import Settings
from budgeted_lora.reporting.html import render
from budgeted_lora.reporting.layout import write_table
from budgeted_lora.reporting.load import Published, Results
from budgeted_lora.reporting.style import context, save
from budgeted_lora.reporting.tables import TABLES


def build_table(
    name: str,
    *,
    results: Path,
    published: Path,
    out: Path,
    settings: str = "default",
    bootstrap: int = 1000,
    confidence: float = 0.95,
    partial: bool = False,
) -> list[Path]:
    """Writes out/tables/<name>.csv, .md and .tex.

    Args:
        name: one of TABLES.
        results: results/<scale>. published: published.csv. out: reports/<scale>.
        settings: compression settings whose scores are shown.
        bootstrap: resamples; confidence: coverage of the intervals.
        partial: show what is there instead of refusing when a result is missing.

    Raises:
        BadInput: unknown table, or a result is missing or unusable.
    """
    if name not in TABLES:
        raise BadInput(f"table {name!r} is unknown; expected one of: {', '.join(TABLES)}")
    opened = Results.open(results, settings=settings, partial=partial)
    table = TABLES[name](opened, Published.open(published), Settings(bootstrap, confidence))
    return write_table(table, Path(out) / "tables")


def build_figure(
    name: str, *, results: Path, out: Path, settings: str = "default", partial: bool = False
) -> list[Path]:
    """Writes out/figures/<name>.png, .svg and .pdf; arguments and errors as in `build_table`, `name` one of FIGURES."""
    if name not in FIGURES:
        raise BadInput(f"figure {name!r} is unknown; expected one of: {', '.join(FIGURES)}")
    opened = Results.open(results, settings=settings, partial=partial)
    with context():
        figure = FIGURES[name].draw(opened)
        try:
            return save(figure, Path(out) / "figures", name)
        finally:
            plt.close(figure)


def build_index(
    *,
    results: Path,
    published: Path,
    out: Path,
    config: Config | None = None,
    settings: str = "default",
    bootstrap: int = 1000,
    confidence: float = 0.95,
    partial: bool = False,
    skipped: tuple[str, ...] = (),
) -> Path:
    """Writes out/index.html with the tables and figures that lie in out/tables and out/figures.

    Args:
        config: the scale's settings: gives the list of constants the paper does not state.
        skipped: what a partial report could not make, one sentence each.
        The others as in `build_table`.
    """
    out = Path(out)
    opened = Results.open(results, settings=settings, partial=partial)
    numbers, how = Published.open(published), Settings(bootstrap, confidence)
    tables = [make(opened, numbers, how) for name, make in TABLES.items() if (out / "tables" / f"{name}.csv").is_file()]
    figures = [
        {"name": name, "title": plot.title, "caption": plot.caption}
        for name, plot in FIGURES.items()
        if (out / "figures" / f"{name}.svg").is_file()
    ]
    page = render(opened, tables=tables, figures=figures, out=out, config=config, skipped=list(skipped))
    write_text(out / "index.html", page)
    return out / "index.html"


def build_report(
    *,
    results: Path,
    published: Path,
    out: Path,
    config: Config | None = None,
    settings: str = "default",
    bootstrap: int = 1000,
    confidence: float = 0.95,
    partial: bool = False,
    claims: Path | None = None,
) -> Path:
    """Every table, every figure and the page; in a partial report what cannot be made is named on the page instead.

    Args:
        claims: claims.yaml; without it, or without `config`, no claim is judged.
        The others as in `build_index`.
    """
    common = {"results": results, "settings": settings, "partial": partial}
    measured = {"published": published, "bootstrap": bootstrap, "confidence": confidence}
    skipped = []
    for name in [*TABLES, *FIGURES]:
        try:
            if name in TABLES:
                build_table(name, out=out, **common, **measured)
            else:
                build_figure(name, out=out, **common)
        except BadInput as error:
            if not partial:
                raise
            skipped.append(f"{name}: {error}")
    if claims is not None and config is not None:
        build_claims(
            results=results, published=published, claims=claims, out=Path(out) / "claims_all.csv", config=config
        )
        build_unknowns(config=config, out=out)
    return build_index(out=out, config=config, skipped=tuple(skipped), **common, **measured)
