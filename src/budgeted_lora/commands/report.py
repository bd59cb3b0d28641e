"""`budgeted-lora report`: everything that the results of a scale allow, in one process."""

import shutil
from dataclasses import replace
from pathlib import Path

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.claims.table import judge_all, write_claims
from budgeted_lora.reporting.contents import figures_of, tables_of
from budgeted_lora.reporting.figures.style import write_figure
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import write_table
from budgeted_lora.reporting.uncertainty import Bootstrap
from budgeted_lora.stages.make_index import write_page


def write_report(
    results: Path, *, published: Path, claims: Path, out: Path, config: Config, standing: Standing, partial: bool
) -> Path:
    """Write every table, every figure, the verdicts and the page. Returns the page.

    Args:
        partial: name on the page what cannot be made; an ablation that was not run is named there in any case.

    Raises:
        BadInput: a main table or figure lacks a result and the report is not partial; or a file is unusable.
    """
    printed, bootstrap = Published.open(published), Bootstrap(config.report.bootstrap, config.report.confidence)
    opened = Results.open(results, standing=standing, partial=partial)
    if partial:  # what an earlier call could make and this one cannot must not stand on the page
        shutil.rmtree(out, ignore_errors=True)
    skipped = []
    tables = tables_of(opened.tables, config.evaluation.asked)
    for shown in [*tables.values(), *figures_of(opened.tables).values()]:
        mine = replace(opened, shown=shown, missing=[])
        try:
            if shown.is_figure:
                write_figure(shown, mine, out / "figures")
            else:
                write_table(shown.make()(mine, printed, bootstrap), out / "tables")
        except BadInput as error:
            if not partial and shown.target == "main":
                raise
            skipped += [f"{shown.name}: {error}"] if partial else []
        opened.missing.extend(path for path in mine.missing if path not in opened.missing)
    judged = replace(opened, partial=True, missing=[])
    frame = judge_all(judged, claims=claims, published=printed, config=config)
    write_claims(frame, out / "claims_all.csv", scale=config.scale)
    write_page(opened, printed, out=out, config=config, skipped=skipped)
    return out / "index.html"
