"""Beyond the paper: one training for every budget, beside students that were trained for one."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.contents import ELASTIC, TABLES
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import RECIPE, Results, is_elastic
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only, millions
from budgeted_lora.reporting.tables.ablations import HEADINGS, percent, recipe_text, varying
from budgeted_lora.reporting.tables.structure import decisions
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import PPL, Bootstrap, Drawn, add_differences, difference_text, draw, lines

PER_STUDENT, IN_TOTAL = "equal per student", "equal in total"
# Columns of a recipe that say whether it is for one budget or several, and those that have a column of their own.
ONE_OR_SEVERAL = frozenset({"elastic_budgets", "schedule", "schedule_start", "schedule_end", "smoothing"})
SHOWN = frozenset({"budget", "tokens", "steps"})


def elastic_lines(results: Results, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row per training, compression and budget.

    Columns beside those of `lines`: `elastic`, whether the training was for every budget; `setting`, the variant
    without the F that an elastic student is cut to; `rule`, text that is equal where recipe and setting are but for
    the tokens and for what says one budget or several; `training`, the same with this and the tokens.
    """
    frame = lines(results.of(TABLES[ELASTIC]).runs(ELASTIC), drawn)
    frame = frame.assign(elastic=is_elastic(frame))
    frame["setting"] = [setting_of(row) for row in frame.to_dict("records")]
    keys = [name for name in frame if name in RECIPE - ONE_OR_SEVERAL - SHOWN]
    frame["rule"] = as_text(frame, [*keys, "setting"])
    frame["training"] = as_text(frame, ["rule", *(name for name in frame if name in ONE_OR_SEVERAL), "tokens"])
    return frame.sort_values(["budget", "elastic", "tokens"], kind="stable", ignore_index=True)


def setting_of(row: Record) -> str:
    """The variant of a line, without the F that begins the name of an elastic one's."""
    if not row["elastic"]:
        return row["variant"]
    return row["variant"].removeprefix(f"F{float(row['budget'])}").removeprefix("_") or DEFAULT_VARIANT


def as_text(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The values of each row of a frame in these columns, as one text."""
    return ["; ".join(map(str, row)) for row in frame[list(names)].itertuples(index=False)]


def differing(frame: pd.DataFrame) -> list[str]:
    """Columns that tell lines apart, beside F, tokens and whether a training is for one budget or several."""
    several = frame.groupby("elastic")
    return [
        name
        for name in varying(frame)
        if name not in SHOWN and (name not in ONE_OR_SEVERAL or several[name].nunique(dropna=False).max() > 1)
    ]


def remarks(frame: pd.DataFrame) -> list[str]:
    """What tells each line apart, in words that follow others; empty where nothing does."""
    names = differing(frame)
    rows = [[(HEADINGS.get(name, name), recipe_text(name, row)) for name in names] for row in frame.to_dict("records")]
    return ["".join(f", {heading} {text}" for heading, text in row if text != ABSENT) for row in rows]


def elastic(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Perplexity and structure at every budget, and what the elastic student loses to the one of this budget."""
    drawn = draw(results, results.of(TABLES[ELASTIC]).runs(ELASTIC), bootstrap)
    frame = elastic_lines(results, drawn)
    pairs = [paired(row, frame) for row in frame.to_dict("records")]
    bases = [base for *_, base in pairs]
    frame["compared"] = [how for how, *_ in pairs]
    frame["remark"] = remarks(frame)
    frame = add_differences(frame, "to_own", drawn, [base["runs"] if base else None for base in bases])
    own = pd.Series([base["ppl"] if base else float("nan") for base in bases], frame.index)
    frame["above_own_pct"] = 100 * (frame["ppl"] / own - 1)
    together = " or ".join(map(str, sorted({count for how, count, _ in pairs if how == IN_TOTAL})))
    return tabulate(results, rows=frame, columns=columns(frame), together=together, tolls=tolls_text(frame))


def paired(row: Record, frame: pd.DataFrame) -> tuple[str, int, Record | None]:
    """By which tokens an elastic line compares, with the students of how many F, and the line of its own F.

    All are trained by the rule of the elastic one. In total: the tokens of every F that was trained for alone, as many
    of each as of this F. Of several schedules for this F the first one is taken. ("", 0, None) where nothing compares,
    and for a line that is not elastic.
    """
    fixed = frame[~frame["elastic"] & (frame["rule"] == row["rule"])]
    mine = fixed[fixed["budget"] == row["budget"]] if row["elastic"] else fixed[:0]
    for how in (PER_STUDENT, IN_TOTAL):
        for other in mine.to_dict("records"):
            count = 1 if how == PER_STUDENT else fixed[fixed["tokens"] == other["tokens"]]["budget"].nunique()
            if row["tokens"] == count * other["tokens"]:
                return how, count, other
    return "", 0, None


def tolls_text(frame: pd.DataFrame) -> str:
    """What each elastic student loses at each F, in a sentence for each way to compare; empty without any."""
    sentences = []
    compared = frame[frame["above_own_pct"].notna()]
    for how in (PER_STUDENT, IN_TOTAL):
        mine = compared[compared["compared"] == how]
        for (_, tokens, remark), one in mine.groupby(["training", "tokens", "remark"], sort=False):
            losses = [f"{row.above_own_pct:+.1f} % at F = {row.budget:g}" for row in one.itertuples()]
            sentences.append(f"Tokens {how} ({millions(tokens)}{remark}): {', '.join(losses)}.")
    return " ".join(sentences)


def training_text(row: Record) -> str:
    return "every F" if row["elastic"] else "this F"


def columns(frame: pd.DataFrame) -> list[Column]:
    """F, training and tokens, what else tells the lines apart, then the numbers."""
    own = [Column(name, HEADINGS.get(name, name), text=partial(recipe_text, name)) for name in differing(frame)]
    return [*PLACE, *own, *NUMBERS]


PLACE = (Column("budget", "F", 1), Column("elastic", "Trained for", text=training_text), Column("tokens", "Tokens", 0))
NUMBERS = (
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
