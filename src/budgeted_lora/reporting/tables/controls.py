"""Controls at equal MACs: what a reader would do instead of a budget; the paper has none of them.

A smaller KD Full student (narrower feed-forwards, fewer layers) is trained with the MACs that a budget leaves; a plain
truncated SVD brings the KD Full student there without training. Both are counted against the scale's dense student.
"""

from dataclasses import replace
from math import nan

import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.contents import CONTROLS, COSTS, TABLES, Reads
from budgeted_lora.reporting.grouping import method_label, method_order
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only, number
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import PPL, Bootstrap, add_differences, difference_text, draw, lines

NEAR = 0.1  # relative difference of MACs below which two students count as equally large
SMALLER, TRUNCATED = "smaller KD Full", "KD Full cut by SVD"


def control_runs(results: Results, *, reads: tuple[Reads, ...] = COSTS) -> pd.DataFrame:
    """One row per control run (`Results.runs`) with what `reads` names, costs relative to the scale's dense student.

    Further columns: `kind`, `share` (MACs of the projections over those of the dense student). `train_compute` and
    `speedup_vs_dense`, relative to the control itself in its result files, are made relative to the scale's KD Full
    and dense student.
    """
    results = results.of(replace(TABLES[CONTROLS], reads=reads))
    scores = against_scale(results, results.runs(CONTROLS))
    scores["kind"] = [kind_of(row) for row in scores.to_dict("records")]
    return scores.assign(share=1 / scores["speedup_vs_dense"])


def kind_of(row: Record) -> str:
    """What a row of the controls is; one that is neither cut nor of another shape is KD Full itself."""
    if pd.notna(row["cut_to"]):
        return TRUNCATED
    return method_label(row["method"], row["budget"]) if pd.isna(row["student_ffn"]) else SMALLER


def against_scale(results: Results, scores: pd.DataFrame) -> pd.DataFrame:
    """The same with the costs of students of another shape relative to the scale's KD Full and dense student."""
    other = scores["student_ffn"].notna()
    if not other.any():
        return scores
    beside = scores.loc[~other, "dense_macs"].dropna()
    dense = float(beside.iloc[0]) if len(beside) else scale_dense_macs(results)
    costs = {"speedup_vs_dense": dense / scores["macs"]}
    for name in ("train_compute", "executed_compute"):
        costs[name] = scores[name] * (scores["dense_macs"] / dense)
    return scores.assign(**{name: scores[name].where(~other, values) for name, values in costs.items()})


def scale_dense_macs(results: Results) -> float:
    """MACs of the projections of the scale's dense student, from the first result of Table 2 that is present."""
    macs = results.scores("table2")["dense_macs"].dropna() if "table2" in results.tables else []
    if len(macs):
        return float(macs.iloc[0])
    if not results.partial:
        raise BadInput(f"{results.root / 'tables.csv'}: no cell of table2; controls are read against its students")
    return nan


def controls(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Controls beside the budgeted students with the same MACs, and KD Full and KD LoRA with all of them."""
    tried = control_runs(results, reads=TABLES[CONTROLS].reads)
    compared = method_order(results.runs("table2"))
    compared = compared[compared["teacher"].isin(tried["teacher"])].reset_index(drop=True)
    compared["kind"] = [method_label(row.method, row.budget) for row in compared.itertuples()]
    compared["share"] = compared["macs"] / compared["dense_macs"]
    scores = pd.concat([compared, tried], ignore_index=True)
    drawn = draw(results, scores, bootstrap)
    frame = lines(scores, drawn)
    budgeted = frame[frame["method"] == "budgeted_lora"]
    frame["is_control"] = frame["kind"].isin([SMALLER, TRUNCATED])

    def nearest_budget(share: float) -> float:
        away = (budgeted["share"] / share - 1.0).abs()
        return float(budgeted.loc[away.idxmin(), "budget"]) if away.min() < NEAR else nan

    frame["beside"] = [nearest_budget(row.share) if row.is_control else row.budget for row in frame.itertuples()]
    # KD Full and KD LoRA first, then budgets from large to small.
    frame = frame.sort_values("beside", ascending=False, na_position="first", kind="stable", ignore_index=True)
    own = {(row.budget, row.teacher): row.runs for row in budgeted.drop_duplicates(["budget", "teacher"]).itertuples()}
    bases = [own.get((row.beside, row.teacher)) if row.is_control else None for row in frame.itertuples()]
    frame = add_differences(frame, "to_budgeted", drawn, bases)
    columns = [
        Column("kind", "Student", text=student_text),
        Column("beside"),
        Column("teacher", "Teacher" if frame["teacher"].nunique() > 1 else ""),
        Column("", "MACs of", text=lambda row: ABSENT if pd.isna(row["beside"]) else f"F = {float(row['beside'])}"),
        *csv_only("student_layers", "student_ffn", "share", "train_compute", "tokens"),
        *PPL,
        Column("to_budgeted", "To Budgeted LoRA", text=lambda row: difference_text(row["to_budgeted_difference"])),
        *csv_only("to_budgeted_se", "to_budgeted_low", "to_budgeted_high"),
        Column("icl", "ICL %", 1, factor=100.0),
        Column("", "MACs, of dense", text=lambda row: number(row["share"], 3)),
        Column("", "Train compute", text=lambda row: number(row["train_compute"], 2)),
    ]
    return tabulate(results, rows=frame, columns=columns)


def student_text(row: Record) -> str:
    return row["kind"] if row["kind"] != SMALLER else f"{SMALLER}, {shape_text(row)}"


def shape_text(row: Record) -> str:
    """The shape of a student that is not of the scale's."""
    return f"{number(row['student_layers'], 0)} layers, FFN {number(row['student_ffn'], 0)}"
