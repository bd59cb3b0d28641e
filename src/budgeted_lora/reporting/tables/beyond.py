"""Beyond the paper: other starts, orders and ranks at the paper's MACs, beside its rule, the controls and KD LoRA."""

from functools import partial

import pandas as pd

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.contents import BEYOND, TABLES
from budgeted_lora.reporting.grouping import METHODS
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import COLUMNS, RECIPE, SPEEDS, Results
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only, timed
from budgeted_lora.reporting.tables.controls import against_scale, shape_text
from budgeted_lora.reporting.tables.structure import decisions
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import (
    PPL,
    Bootstrap,
    Drawn,
    Run,
    add_differences,
    difference_text,
    draw,
    lines,
)

PAPER = "paper's rule"
UNDISTILLED = "no distillation, SVD"
REFERENCES = {name: METHODS[name] for name in ("kd_full", "kd_lora")}
STARTS = {"svd": "SVD of W", "activation_svd": "SVD of outputs"}
DENSE = {"kept": "kept dense paths train", "all": "dense paths train until they fade"}
ORDERS = {"energy": "order by energy", "activation": "order by outputs", "gradient": "order by gradient"}
# Columns of a recipe that a rule's name says already, or in which its students may differ.
SHARED = frozenset({
    "method", "budget", "low_rank_init", "order", "rank_step", "whole", "train_dense", "dense_learning_rate",
    "statistics_windows", "tokens", "steps", "student_layers", "student_ffn",
})  # fmt: skip
Place = tuple[float, float]  # training tokens and budget


def rules_of(frame: pd.DataFrame) -> list[str]:
    """The rule of each row; where budgeted students differ in anything else, what is not the most common value too."""
    budgeted = frame[frame["method"] == "budgeted_lora"]
    keys = [name for name in frame if name in RECIPE - SHARED]
    usual = {name: budgeted[name].map(str).mode()[0] for name in keys if budgeted[name].map(str).nunique() > 1}
    rules = []
    for row in frame.to_dict("records"):
        own = row["method"] == "budgeted_lora"
        odd = [f"{name.replace('_', ' ')} {row[name]}" for name in usual if own and str(row[name]) != usual[name]]
        rules.append(", ".join([rule_of(row), *odd]))
    return rules


def rule_of(row: Record) -> str:
    """In what a student differs from the paper's, in words."""
    shape = shape_text(row) if pd.notna(row.get("student_ffn")) else None
    if row.get("undistilled"):
        return ", ".join(filter(None, [f"{UNDISTILLED} by {row['truncation']}", shape]))
    if row["method"] in REFERENCES:
        return ", ".join(filter(None, [REFERENCES[row["method"]], shape]))
    words = [STARTS.get(row["low_rank_init"]), ORDERS.get(row["order"])]
    words += ["allocated ranks"] if pd.notna(row["rank_step"]) else []
    words += ["whole dense paths"] if row.get("whole") is True else []
    words += [DENSE.get(row["train_dense"]), shape]
    return " + ".join(word for word in words if word) or PAPER


def beyond_lines(results: Results, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row per rule, budget and length of training (`lines`), with its `rule` and ICL composite `icl`.

    Variants that truncate the undistilled student make rows of their own: `rule` says by what.
    """
    frame = lines(scored(results), drawn)
    return frame.assign(rule=rules_of(frame))


def scored(results: Results) -> pd.DataFrame:
    """Runs of the table with their in-context composites, NaN where none was measured."""
    results = results.of(TABLES[BEYOND])
    scores = against_scale(results, results.runs(BEYOND))
    cut = scores["variant"] != DEFAULT_VARIANT  # undistilled models have no training time, timings or in-context scores
    for name in ("tokens", *(name for name in COLUMNS if COLUMNS[name].file == "speed"), "train_seconds"):
        scores[name] = scores[name].astype(float).mask(cut)
    return scores.assign(budget=scores["budget"].where(~cut, scores["cut_to"]))


def beyond(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Every rule beside the paper's at the same budget and length: perplexity, paired difference, ICL, speed."""
    drawn = draw(results, scored(results), bootstrap)
    frame = beyond_lines(results, drawn)
    frame = frame.sort_values(["tokens", "budget", "ppl"], na_position="last", kind="stable", ignore_index=True)
    paper = {(row.tokens, row.budget): row.runs for row in frame.itertuples() if row.rule == PAPER}
    lowest: dict[Place, tuple[Run, ...]] = {}  # the frame is sorted by perplexity
    usual = frame["student_ffn"].isna()  # F is relative to the student's own size
    for row in frame[(frame["method"] == "budgeted_lora") & frame["ppl"].notna() & usual].itertuples():
        lowest.setdefault((row.tokens, row.budget), row.runs)
    frame = add_differences(frame, "to_paper", drawn, others(frame, paper))
    frame = add_differences(frame, "to_lowest", drawn, others(frame, lowest))
    frame["ppl_first_seed"] = [drawn.values.get(runs[0], float("nan")) for runs in frame["runs"]]
    chances = 100 * frame["icl_chance"].dropna()
    chance = float(chances.iloc[0]) if len(chances) else None
    return tabulate(results, rows=frame, columns=BEYOND_COLUMNS, chance=chance)


def others(frame: pd.DataFrame, bases: dict[Place, tuple[Run, ...]]) -> list[tuple[Run, ...] | None]:
    """For each line the runs of its place in `bases`; None where they are the line's own, or there are none.

    A student of another shape has none: its F is of its own size.
    """
    places = [(row.tokens, row.budget) if pd.isna(row.student_ffn) else None for row in frame.itertuples()]
    pairs = [(runs, bases.get(place)) for runs, place in zip(frame["runs"], places, strict=True)]
    return [None if runs == base else base for runs, base in pairs]


BEYOND_COLUMNS = (
    Column("rule", "Rule"),
    Column("method"),
    Column("budget", "F", text=lambda row: ABSENT if pd.isna(row["budget"]) else f"{row['budget']:g}"),
    Column("tokens", "Tokens", 0),
    Column("seeds"),
    *PPL[:-1],
    Column("ppl_uncompressed", "Uncompressed", 2),
    Column("", "To the paper's rule", text=lambda row: difference_text(row["to_paper_difference"])),
    Column("icl", "ICL %", 1, factor=100.0),
    Column("icl_chance"),
    Column("kept", "Kept/svd/dropped", text=partial(decisions, between="/")),
    *csv_only("svd", "dropped", "macs", "student_layers", "student_ffn"),
    Column("speedup_vs_dense", "MAC speedup", 2, "×"),
    *(timed(f"measured_{part}", f"Measured: {part}") for part in SPEEDS),
    *csv_only("train_seconds", "executed_compute", "ppl_first_seed"),
    *csv_only("to_paper", "to_paper_se", "to_paper_sd", "to_paper_clear"),
    *csv_only("to_lowest", "to_lowest_se", "to_lowest_sd", "to_lowest_clear"),
)
