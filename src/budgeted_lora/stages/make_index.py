"""Stage make_index: the page, from the tables and figures that lie in the report's folder."""

from pathlib import Path

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import locked, write_json, write_text
from budgeted_lora.reporting.contents import Shown, figures_of, tables_of
from budgeted_lora.reporting.page.render import render
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import Table, write_table
from budgeted_lora.reporting.tables.unknowns import unknowns
from budgeted_lora.reporting.uncertainty import Bootstrap


def make_index(
    *, results: Path, published: Path, config: Config, out: Path, standing: Standing, contents: Path | None = None
) -> None:
    """Write out/index.html and the table of constants that the paper leaves open, out/tables/unknowns.*.

    Args:
        contents: JSON file that gets the names of what the page shows.
    """
    opened = Results.open(results, standing=standing)
    shown = write_page(opened, Published.open(published), out=out, config=config)
    if contents is not None:
        write_json(contents, shown)


def write_page(
    results: Results, published: Published, *, out: Path, config: Config, skipped: list[str] | None = None
) -> dict[str, list[str]]:
    """Write the page with what lies in `out` now. Returns the names of its tables and figures, and what is absent.

    Args:
        skipped: what a partial report could not make, one sentence each.
    """
    (out / "tables").mkdir(parents=True, exist_ok=True)
    # Parts of the page may be added at the same time, each by writing it whole: the last must have seen the others.
    with locked(out):
        write_table(unknowns(config), out / "tables")
        bootstrap = Bootstrap(config.report.bootstrap, config.report.confidence)
        shown = tables_of(results.tables, config.evaluation.asked)
        tables, absent = present_tables(results, published, bootstrap, shown=shown, out=out)
        drawn = [one for one in figures_of(results.tables).values() if (out / "figures" / f"{one.name}.svg").is_file()]
        page = render(
            results, tables=tables, figures=drawn, out=out, config=config, skipped=skipped or [], absent=absent
        )
        write_text(out / "index.html", page)
    names = {"tables": [table.name for table in tables], "figures": [figure.name for figure in drawn]}
    return names | {"absent": absent}


def present_tables(
    results: Results, published: Published, bootstrap: Bootstrap, *, shown: dict[str, Shown], out: Path
) -> tuple[list[Table], list[str]]:
    """Those of `shown` whose files lie in out/tables, and one sentence for each ablation that cannot be shown.

    The page of the main tables must not fail because of an ablation: one that was never made, or whose rows have
    changed since, is named instead.

    Raises:
        BadInput: a result of a main table is missing or unusable.
    """
    tables, absent = [], []
    for name, one in shown.items():
        if not (out / "tables" / f"{name}.csv").is_file():
            absent += [] if one.target == "main" else [f"{name}: not run yet; `snakemake {name}` makes it."]
            continue
        try:
            tables.append(one.make()(results.of(one), published, bootstrap))
        except BadInput as error:
            if one.target == "main":
                raise
            absent.append(f"{name}: it cannot be shown as it was made; `snakemake {name}` makes it again ({error}).")
    return tables, absent
