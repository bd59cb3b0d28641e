"""Stages of the report, one a workflow rule: a table, a figure, the page; and all of them at once for a partial one."""

import fcntl
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_json, write_text
from budgeted_lora.reporting.claims.table import build_claims
from budgeted_lora.reporting.contents import FIGURES, figures_of
from budgeted_lora.reporting.contents_tables import TABLES, tables_of
from budgeted_lora.reporting.figures.style import context, save
from budgeted_lora.reporting.grouping import Settings
from budgeted_lora.reporting.page.render import render
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table, write_table
from budgeted_lora.reporting.tables.unknowns import build_unknowns


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
    rows: dict[str, Any] | None = None,
) -> list[Path]:
    """Writes out/tables/<name>.csv, .md and .tex.

    Args:
        name: one of `tables_of` these results.
        results: results/<scale>. published: published.csv. out: reports/<scale>.
        settings: compression settings whose scores are shown.
        bootstrap: resamples; confidence: coverage of the intervals.
        partial: show what is there instead of refusing when a result is missing.
        rows: lines of cells.csv to show instead of all, see `Results.open`.

    Raises:
        BadInput: unknown table, or a result is missing or unusable.
    """
    opened = Results.open(results, settings=settings, partial=partial, rows=rows)
    known = tables_of(opened)
    if name not in known:
        raise BadInput(f"table {name!r} is unknown; expected one of: {', '.join(known)}")
    table = known[name](opened, Published.open(published), Settings(bootstrap, confidence))
    return write_table(table, Path(out) / "tables")


def build_figure(
    name: str,
    *,
    results: Path,
    out: Path,
    settings: str = "default",
    partial: bool = False,
    rows: dict[str, Any] | None = None,
) -> list[Path]:
    """Writes out/figures/<name>.png, .svg and .pdf; arguments, errors as in `build_table`, `name` of `figures_of`."""
    opened = Results.open(results, settings=settings, partial=partial, rows=rows)
    known = figures_of(opened)
    if name not in known:
        raise BadInput(f"figure {name!r} is unknown; expected one of: {', '.join(known)}")
    with context():
        figure = known[name].draw(opened)
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
    contents: Path | None = None,
) -> Path:
    """Writes out/index.html with the tables and figures that lie in out/tables and out/figures.

    Args:
        config: the scale's settings: gives the list of constants the paper does not state.
        skipped: what a partial report could not make, one sentence each.
        contents: JSON file that gets the names of what the page shows.
        The others as in `build_table`.
    """
    out = Path(out)
    opened = Results.open(results, settings=settings, partial=partial)
    numbers, how = Published.open(published), Settings(bootstrap, confidence)
    out.mkdir(parents=True, exist_ok=True)
    # Parts of the page may be added side by side, each by writing it whole: the last one must have seen the others.
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _write_index(opened, numbers, how, out=out, config=config, skipped=skipped, contents=contents)
    finally:
        os.close(lock)


def _write_index(
    opened: Results,
    numbers: Published,
    how: Settings,
    *,
    out: Path,
    config: Config | None,
    skipped: tuple[str, ...],
    contents: Path | None,
) -> Path:
    """The page from what lies in `out` now."""
    tables, absent = present_tables(opened, numbers, how, out)
    figures = [
        {"name": name, "title": plot.title, "caption": plot.caption}
        for name, plot in figures_of(opened).items()
        if (out / "figures" / f"{name}.svg").is_file()
    ]
    page = render(opened, tables=tables, figures=figures, out=out, config=config, skipped=list(skipped), absent=absent)
    write_text(out / "index.html", page)
    if contents is not None:
        shown = {"tables": [table.name for table in tables], "figures": [figure["name"] for figure in figures]}
        write_json(contents, shown | {"absent": absent})
    return out / "index.html"


def present_tables(
    opened: Results, published: Published, settings: Settings, out: Path
) -> tuple[list[Table], list[str]]:
    """The tables whose files lie in out/tables, and one sentence for each ablation that cannot be shown.

    The page of the main tables must not fail for want of an ablation: one that was never made, or whose rows have
    changed since, is named instead.

    Raises:
        BadInput: a result of a main table is missing or unusable.
    """
    tables, absent = [], []
    for name, make in tables_of(opened).items():
        if not (out / "tables" / f"{name}.csv").is_file():
            absent += [] if name in TABLES else [f"{name}: not run yet; `snakemake {name}` makes it."]
            continue
        try:
            tables.append(make(opened, published, settings))
        except BadInput:
            if name in TABLES:
                raise
            absent.append(f"{name}: its rows have changed since it was made; `snakemake {name}` makes it anew.")
    return tables, absent


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
    opened = Results.open(results)
    tables = tables_of(opened)
    for name in [*tables, *figures_of(opened)]:
        try:
            if name in tables:
                build_table(name, out=out, **common, **measured)
            else:
                build_figure(name, out=out, **common)
        except BadInput as error:
            if not partial and (name in TABLES or name in FIGURES):
                raise
            skipped += [f"{name}: {error}"] if partial else []  # an ablation that was not run is named on the page
    if claims is not None and config is not None:
        build_claims(
            results=results, published=published, claims=claims, out=Path(out) / "claims_all.csv", config=config
        )
        build_unknowns(config=config, out=out)
    return build_index(out=out, config=config, skipped=tuple(skipped), **common, **measured)
