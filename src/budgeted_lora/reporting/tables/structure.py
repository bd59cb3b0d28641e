"""What compression leaves: structures by budget (Table 8), their speed, and other thresholds (section C.3)."""

from functools import partial
from math import isnan, nan

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.grouping import budget_key, files_of, method_label, method_order, one_recipe, setting_of
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import FILES, MIDDLE, SPEEDS, Results
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only, number, timed, unsteady
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import PPL, Bootstrap, add_differences, difference_text, draw, lines

STUDENT = ["budget", "teacher", "schedule", "controller", "rank", "tokens"]
# A column of Table 8: the paper's name of the same quantity.
PRINTED = {
    "kept": "dense_kept", "svd": "dense_svd", "dropped": "dense_dropped", "avg_rank": "avg_rank",
    "param_reduction_pct": "param_reduction_pct",
}  # fmt: skip


def decisions(row: Record, *, end: str = "", between: str = " / ") -> str:
    """Dense paths by what became of them: 9 / 0 / 33."""
    return between.join(number(row[f"{name}{end}"], 0) for name in ("kept", "svd", "dropped"))


def average_rank(row: Record) -> str:
    """Mean rank kept, of the rank trained with: 127.9 (128)."""
    return f"{number(row['avg_rank'], 1)} ({number(row['rank'], 0)})"


def thresholds(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Structure, cost and perplexity of every budget under every pair of thresholds."""
    scores = results.runs()
    drawn = draw(results, scores, bootstrap)
    frame = lines(scores, drawn).rename(columns={"variant": "setting"})
    frame = frame.sort_values("budget", kind="stable", ignore_index=True)
    own = {key: group["runs"].iloc[0] for key, group in frame[frame["setting"] == DEFAULT_VARIANT].groupby(STUDENT)}
    bases = [own.get(tuple(key)) for key in frame[STUDENT].itertuples(index=False)]
    frame = add_differences(frame, "to_default", drawn, bases)

    def to_default(row: Record) -> str:
        return "own" if row["setting"] == DEFAULT_VARIANT else difference_text(row["to_default_difference"])

    columns = [
        Column("budget", "F", text=lambda row: budget_key(row["budget"])),
        Column("teacher", "Teacher" if frame["teacher"].nunique() > 1 else ""),
        Column("rank_threshold", "τ rank", 2),
        Column("svd_threshold", "τ SVD", 2),
        Column("setting"),
        Column("kept", "Kept / SVD / dropped", text=decisions),
        *csv_only("svd", "dropped"),
        Column("avg_rank", "Avg. rank (of r)", text=average_rank),
        Column("macs", "MACs, of dense", text=lambda row: number(row["macs"] / row["dense_macs"], 3)),
        *csv_only("speedup_vs_dense", "tokens"),
        *PPL,
        Column("to_default", "To the scale's own", text=to_default),
        *csv_only("to_default_se", "to_default_low", "to_default_high"),
    ]
    return tabulate(results, rows=frame, columns=columns)


def table8(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Compressed structure of each budget."""
    scores = method_order(results.scores().query("method == 'budgeted_lora'"))
    one_recipe(scores, "table8")
    rows = []
    for (budget, teacher), group in scores.groupby(["budget", "teacher"], sort=False):
        row: Record = group.mean(numeric_only=True).to_dict()
        row |= {"budget": budget_key(budget), "teacher": teacher, "files": files_of(group)}
        row |= {"seeds": len(group), "avg_rank_sd": group["avg_rank"].std()}
        for ours, theirs in PRINTED.items():
            row[f"{ours}_published"] = published.value("Table 8", theirs, "budgeted_lora", setting=setting_of(budget))
        rows.append(row)
    return tabulate(results, rows=rows, columns=TABLE8)


TABLE8 = (
    Column("budget", "F"),
    Column("teacher", "Teacher"),
    Column("kept", "Kept / SVD / dropped", text=decisions),
    Column("kept_published", "Published", text=partial(decisions, end="_published")),
    *csv_only("svd", "svd_published", "dropped", "dropped_published"),
    Column("avg_rank", "Avg. rank (of r)", text=average_rank),
    Column("avg_rank_published", "Avg. rank, published (of 128)", 1),
    Column("param_reduction_pct", "Param. reduction", 1, " %"),
    Column("param_reduction_pct_published", "Param. reduction, published", 1, " %"),
    *csv_only("seeds", "avg_rank_sd"),
    Column("param_reduction_vs_dense_pct", "Against dense alone", 1, " %"),
    *csv_only("macs", "dense_macs"),
    Column("speedup_vs_dense", "MAC speedup, dense", 2, "×"),
    Column("speedup_vs_lora", "MAC speedup, dense + LoRA", 2, "×"),
    Column("rank"),
)


def speed(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Each compressed structure: its MAC ratio beside the times measured on this machine."""
    scores = method_order(results.scores())
    scores = scores[scores["structure"] != ""].drop_duplicates("structure")
    rows = []
    for cell in scores.itertuples():
        timed = results.json(FILES["speed"].format(structure=cell.structure)) or {}
        row: Record = {"structure": cell.structure, "budget": budget_key(cell.budget), "controller": cell.controller}
        row["files"] = cell.files
        row["mac_speedup"] = cell.speedup_vs_dense
        for part in SPEEDS:
            for end in MIDDLE:
                row[f"measured_{part}_speedup{end}"] = timed.get(part, {}).get(f"speedup{end}", nan)
        rows.append(row)
    columns = [
        Column("structure"),
        Column("budget", "F"),
        Column("controller", "Controller"),
        Column("mac_speedup", "MAC ratio (counted)", 2, "×"),
    ]
    for part in SPEEDS:
        columns += measured_speedup(part)
    return tabulate(results, rows=rows, columns=columns)


def int8(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Each compressed student beside itself with int8 projections: size, perplexity and speed."""
    scores = method_order(results.scores())
    scores["int8_loss_pct"] = 100.0 * (scores["int8_ppl"] / scores["ppl"] - 1.0)
    records = [results.json(FILES["int8"].format(cell=cell, variant=DEFAULT_VARIANT)) for cell in scores["cell"]]
    made = [record for record in records if record is not None]
    several = {name: scores[name].nunique() > 1 for name in ("teacher", "seed")}
    columns = [
        *csv_only("cell", "method", "budget"),
        Column("", "Student", text=lambda row: method_label(row["method"], row["budget"])),
        Column("teacher", "Teacher" if several["teacher"] else ""),
        Column("seed", "Seed" if several["seed"] else "", 0),
        Column("plain_bytes", "Weights, MB", 2, factor=1e-6),
        Column("int8_bytes", "int8, MB", 2, factor=1e-6),
        Column("", "Projections", text=lambda row: number(times_smaller(row), 2, unit="× smaller")),
        *csv_only("plain_projection_bytes", "int8_projection_bytes"),
        Column("ppl", "PPL", 2, error="ppl_se"),
        *csv_only("ppl_se"),
        Column("int8_ppl", "int8, PPL", 2, error="int8_ppl_se"),
        *csv_only("int8_ppl_se"),
        Column("int8_loss_pct", "Change", text=change_text),
        timed("measured_int8_prefill", "Measured: prefill"),
        timed("measured_int8_decode", "Measured: decode"),
    ]
    facts = {name: " and ".join(sorted({record[name] for record in made})) for name in ("dtype", "device")}
    version = " and ".join(sorted({record["versions"]["torchao"] for record in made}))
    return tabulate(results, rows=scores, columns=columns, version=version, **facts)


def change_text(row: Record) -> str:
    """By how much int8 changes the perplexity; a dash where one of the two is missing."""
    change = row["int8_loss_pct"]
    return ABSENT if isnan(change) else f"{change:+.2f} %"


def times_smaller(row: Record) -> float:
    """Bytes of the projections over those of their int8 form."""
    return row["plain_projection_bytes"] / row["int8_projection_bytes"]


def measured_speedup(part: str) -> list[Column]:
    """The median speedup of a part of the model, its quartiles in brackets."""
    name = f"measured_{part}_speedup"

    def text(row: Record) -> str:
        quartiles = f"{number(row[f'{name}_q1'], 2)} to {number(row[f'{name}_q3'], 2)}"
        return f"{number(row[name], 2, unit='×')} ({quartiles}{', unsteady' if unsteady(row, name) else ''})"

    return [Column(name, f"Measured: {part}", text=text), *csv_only(f"{name}_q1", f"{name}_q3")]
