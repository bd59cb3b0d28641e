"""Controls at equal MACs: what a reader would do instead of a budget; the paper has none of them.

A smaller KD Full student (fewer layers, narrower feed-forwards) is trained with the MACs that a budget leaves; a plain
truncated SVD brings the KD Full student there without training. Both are counted against the scale's dense student.
"""

import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.grouping import Settings, caveats, method_label, method_order
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import ABSENT, Table, number
from budgeted_lora.reporting.uncertainty import (
    difference_text,
    draw,
    lines,
    ppl_texts,
    runs,
    several_seeds,
)

SMALLER, TRUNCATED = "smaller KD Full", "KD Full cut by SVD"
PARTS = ("perplexity", "train", "structure")


def control_runs(results: Results) -> pd.DataFrame:
    """One row a control run (`seeds.runs`), with costs relative to the scale's dense student.

    Further columns: `kind`, `share` (MACs of the projections over those of the dense student), `own_share` (the same
    before compression). `train_compute` and `speedup_vs_dense`, relative to the control itself in its result files,
    are made relative to the scale's KD Full and dense student.
    """
    scores = runs(results, "controls", parts=PARTS)
    dense = scale_dense_macs(results)
    scores["kind"] = [TRUNCATED if pd.isna(ffn) else SMALLER for ffn in scores["student_ffn"]]
    scores["share"], scores["own_share"] = scores["macs"] / dense, scores["dense_macs"] / dense
    for name in ("train_compute", "executed_compute"):
        scores[name] = scores[name] * scores["own_share"]
    scores["speedup_vs_dense"] = 1 / scores["share"]
    return scores


def scale_dense_macs(results: Results) -> float:
    """MACs of the projections of the scale's dense student, from the first result of Table 2 that is there."""
    for cell in results.listed("table2").itertuples():
        macs = results.score(cell, parts=["structure"])["dense_macs"]
        if pd.notna(macs):
            return float(macs)
    if not results.partial:
        raise BadInput(f"{results.root / 'cells.csv'}: no cell of table2; controls are read against its students")
    return float("nan")


def compared_runs(results: Results, teachers: list[str]) -> pd.DataFrame:
    """The students of Table 2 that controls are read against, of the same teachers, with `kind` and `share`."""
    scores = method_order(runs(results, "table2", parts=PARTS))
    scores = scores[scores["teacher"].isin(teachers)].reset_index(drop=True)
    scores["kind"] = [method_label(row.method, row.budget) for row in scores.itertuples()]
    scores["share"] = scores["macs"] / scores["dense_macs"]
    return scores


def controls(results: Results, published: Published, settings: Settings) -> Table:
    """Controls beside the budgeted students with the same MACs, and KD Full and KD LoRA with all of them."""
    found = control_runs(results)
    scores = pd.concat([compared_runs(results, list(found["teacher"].unique())), found], ignore_index=True)
    drawn = draw(results, scores, settings)
    frame = lines(results, scores, drawn)
    budgets = frame[frame["method"] == "budgeted_lora"]
    frame["beside"] = [nearest_budget(row, budgets) for row in frame.itertuples()]
    place = frame["beside"].fillna(2.0)  # KD Full and KD LoRA first, then budgets from large to small
    frame = frame.assign(_place=-place).sort_values("_place", kind="stable").drop(columns="_place")
    frame = frame.reset_index(drop=True)
    differences = [
        drawn.difference(row.runs, base) if (base := base_runs(row, frame)) is not None else None
        for row in frame.itertuples()
    ]
    numbers = frame[["kind", "beside", "teacher", "student_layers", "student_ffn", "share", "train_compute", "tokens"]]
    numbers = numbers.assign(**{name: frame[name] for name in ("ppl", "ppl_se", "ppl_sd", "seeds")})
    for name, end in (("value", ""), ("standard_error", "_se"), ("low", "_low"), ("high", "_high")):
        numbers[f"to_budgeted{end}"] = [getattr(entry, name) if entry else float("nan") for entry in differences]
    shown = pd.DataFrame(
        {
            "Student": [student_text(row) for row in frame.itertuples()],
            **({"Teacher": frame["teacher"]} if frame["teacher"].nunique() > 1 else {}),
            "MACs of": [ABSENT if pd.isna(value) else f"F = {float(value)}" for value in frame["beside"]],
            "PPL": ppl_texts(frame),
            "To Budgeted LoRA": [difference_text(entry) for entry in differences],
            "MACs, of dense": [number(value, 3) for value in frame["share"]],
            "Train compute": [number(value, 2) for value in frame["train_compute"]],
        }
    )
    notes = [
        "What a reader would do instead; the paper has none of these. Smaller: KD Full of a student with fewer layers "
        "and narrower feed-forwards. Cut by SVD: every projection of the KD Full student by truncated SVD, without "
        "retraining, so its train compute is KD Full's.",
        "MACs are those of the projections, relative to the scale's dense student; train compute is relative to its "
        "KD Full. The last column is the paired difference to the budgeted student of the same MACs: positive means "
        "that the budget does better.",
        *several_seeds(frame["seeds"]),
    ]
    return Table("controls", "Controls at equal MACs", numbers, shown, notes + caveats(results))


def nearest_budget(row: object, budgets: pd.DataFrame) -> float:
    """Budget whose student has the MACs nearest to a row's; NaN for KD Full and KD LoRA as they are."""
    if row.kind not in (SMALLER, TRUNCATED):
        return row.budget
    away = (budgets["share"] - row.share).abs()
    return float(budgets.loc[away.idxmin(), "budget"]) if away.notna().any() else float("nan")


def base_runs(row: object, frame: pd.DataFrame) -> tuple | None:
    """Runs of the budgeted student that a control is read against."""
    if row.kind not in (SMALLER, TRUNCATED):
        return None
    same = frame[(frame["method"] == "budgeted_lora") & (frame["budget"] == row.beside)]
    same = same[same["teacher"] == row.teacher]
    return same["runs"].iloc[0] if len(same) else None


def student_text(row: object) -> str:
    """A student of the table in words."""
    if row.kind != SMALLER:
        return row.kind
    return f"{row.kind}, {number(row.student_layers, 0)} layers, FFN {number(row.student_ffn, 0)}"
