"""Beyond the paper: one training for every budget, beside students that were trained for one."""

from collections.abc import Sequence

import pandas as pd

from budgeted_lora.reporting.contents import ELASTIC, TABLES
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results, is_elastic
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only
from budgeted_lora.reporting.tables.ablations import percent
from budgeted_lora.reporting.tables.structure import decisions
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import PPL, Bootstrap, Drawn, add_differences, difference_text, draw, lines

PER_STUDENT, IN_TOTAL = "equal per student", "equal in total"


def elastic_lines(results: Results, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row per training and budget; `elastic` says which are of a training for every budget."""
    frame = lines(results.of(TABLES[ELASTIC]).runs(ELASTIC), drawn)
    frame = frame.assign(elastic=is_elastic(frame))
    return frame.sort_values(["budget", "elastic", "tokens"], kind="stable", ignore_index=True)


def elastic(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Perplexity and structure at every budget, and what the elastic student loses to the one of this budget."""
    drawn = draw(results, results.of(TABLES[ELASTIC]).runs(ELASTIC), bootstrap)
    frame = elastic_lines(results, drawn)
    pairs = [paired(row, frame) for row in frame.to_dict("records")]
    frame["compared"] = [how for how, _ in pairs]
    frame = add_differences(frame, "to_own", drawn, [base["runs"] if base else None for _, base in pairs])
    own = pd.Series([base["ppl"] if base else float("nan") for _, base in pairs], frame.index)
    frame["above_own_pct"] = 100 * (frame["ppl"] / own - 1)
    fixed = frame[~frame["elastic"]]["budget"].nunique()
    return tabulate(results, rows=frame, columns=COLUMNS, fixed=fixed, tolls=tolls_text(frame))


def paired(row: Record, frame: pd.DataFrame) -> tuple[str, Record | None]:
    """The line trained for the F of an elastic one, and by which tokens the two compare; nothing where none does.

    In total: the tokens of all budgets that were trained for one by one, as many of each as of this F.
    """
    fixed = frame[~frame["elastic"]]
    mine = fixed[fixed["budget"] == row["budget"]] if row["elastic"] else fixed[:0]
    for other in mine.to_dict("records"):
        together = other["tokens"] * (fixed["tokens"] == other["tokens"]).sum()
        for how, tokens in ((PER_STUDENT, other["tokens"]), (IN_TOTAL, together)):
            if row["tokens"] == tokens:
                return how, other
    return "", None


def tolls_text(frame: pd.DataFrame) -> str:
    """What an elastic student loses at each F, in a sentence for each way to compare; empty without any."""
    sentences = []
    for how in (PER_STUDENT, IN_TOTAL):
        mine = frame[(frame["compared"] == how) & frame["above_own_pct"].notna()]
        losses = [f"{row.above_own_pct:+.1f} % at F = {row.budget:g}" for row in mine.itertuples()]
        sentences += [f"Tokens {how}: {', '.join(losses)}."] if losses else []
    return " ".join(sentences)


def training_text(row: Record) -> str:
    return "every F" if row["elastic"] else "this F"


COLUMNS: Sequence[Column] = (
    Column("budget", "F", 1),
    Column("elastic", "Trained for", text=training_text),
    Column("tokens", "Tokens", 0),
    Column("seeds"),
    *PPL[:-1],
    Column("ppl_uncompressed", "Uncompressed", 2),
    Column("compared", "Tokens compared", text=lambda row: row["compared"] or ABSENT),
    percent("above_own_pct", "Elastic over own"),
    Column("", "Difference", text=lambda row: difference_text(row["to_own_difference"])),
    Column("kept", "Kept/svd/dropped", text=lambda row: decisions(row, between="/")),
    *csv_only("svd", "dropped", "macs"),
    Column("speedup_vs_dense", "MAC speedup", 2, "×"),
    Column("executed_compute", "Train compute", 2),
    *csv_only("train_seconds", "to_own", "to_own_se", "to_own_sd", "to_own_clear"),
)
