"""Tables 1 and 2, the differences between the rows of Table 2, the reference rows, and the published perplexities."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from math import nan

import pandas as pd

from budgeted_lora.reporting.grouping import (
    METHODS,
    budget_key,
    files_of,
    groups,
    method_label,
    one_recipe,
    setting_of,
    teacher_order,
)
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import MIDDLE, SPEEDS, Results
from budgeted_lora.reporting.table import Column, Record, Table, csv_only, duration, mean_text, number, timed
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import Bootstrap, Difference, Run, difference_text, draw, runs_of

Key = tuple[str, str, str]  # method, budget as in the CSV, teacher
MEASURED = {part: f"measured_{part.removesuffix('s')}_speedup" for part in SPEEDS}
COSTS = (
    Column("train_compute", "Train compute", 2),
    Column("train_compute_published", "Train compute, published", 2),
    Column("module_speedup", "MAC speedup", 2, "×"),
    Column("module_speedup_published", "MAC speedup, published", 2, "×"),
    Column("param_reduction_pct", "Param. reduction", 1, " %"),
    Column("param_reduction_pct_published", "Param. reduction, published", 1, " %"),
    *(timed(name, f"Measured: {part}") for part, name in MEASURED.items()),
    Column("measured_train_time", "Train time", text=lambda row: duration(row["measured_train_time"])),
)
ENERGY = (  # only where trainings measured it, on GPUs
    Column("measured_train_energy_wh", "Train energy", 1, " Wh"),
    Column("measured_gpu_busy_pct", "GPU busy", 0, " %"),
)
METHOD = Column("", "Method", text=lambda row: method_label(row["method"], row["budget"]))


def table2(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """The main table: perplexity by teacher, train compute, speedups, parameter reduction."""
    scores = results.scores()
    one_recipe(scores, "table2")
    teachers = teacher_order(scores)
    drawn, runs = draw(results, scores, bootstrap), runs_of_rows(scores)
    rows = []
    for (method, budget), group in groups(scores):
        row: Record = {"method": method, "budget": budget_key(budget), "files": files_of(group)}
        for teacher in teachers:
            mine = group.loc[group["teacher"] == teacher, "ppl"]
            mean = drawn.mean(runs.get((method, budget_key(budget), teacher), ()))
            row[f"ppl_{teacher}"] = float(mine.mean(skipna=False)) if len(mine) else nan
            row[f"ppl_{teacher}_se"] = float(mean[1].std(ddof=1)) if mean else nan
            row |= {f"ppl_{teacher}_sd": float(mine.std()), f"ppl_{teacher}_seeds": len(mine)}
            row[f"bits_per_byte_{teacher}"] = float(group.loc[group["teacher"] == teacher, "bits_per_byte"].mean())
        rows.append(row | costs(group, published, method, budget))
    energy = [column for column in ENERGY if any(not pd.isna(row[column.name]) for row in rows)]
    columns = table2_columns(teachers, energy)
    return tabulate(results, rows=rows, columns=columns, resamples=bootstrap.resamples, energy=bool(energy))


def table2_columns(teachers: list[str], energy: Sequence[Column] = ()) -> list[Column]:

    def perplexity(teacher: str) -> Column:
        name = f"ppl_{teacher}"

        def text(row: Record) -> str:
            error, deviation = row[f"{name}_se"], row[f"{name}_sd"]
            return mean_text(row[name], error=error, deviation=deviation, seeds=row[f"{name}_seeds"])

        return Column(name, f"PPL {teacher}", text=text)

    columns = [*csv_only("method", "budget"), METHOD]
    for teacher in teachers:
        columns += [perplexity(teacher), Column(f"ppl_{teacher}_se")]
    columns += [*COSTS, *energy]
    for teacher in teachers:
        columns += csv_only(f"ppl_{teacher}_sd", f"ppl_{teacher}_seeds")
    return columns + csv_only(*(f"bits_per_byte_{teacher}" for teacher in teachers))


def costs(group: pd.DataFrame, published: Published, method: str, budget: float) -> dict[str, float]:
    """Counted and measured costs of one row of Table 2, with the published counts."""
    mean = group.mean(numeric_only=True)
    # Merged or trained in full, the student is the dense one: the paper's rows say 1 and 0 %.
    dense = method != "budgeted_lora"
    values = {
        "train_compute": mean["train_compute"],
        "module_speedup": 1.0 if dense else mean["speedup_vs_dense"],
        "param_reduction_pct": 0.0 if dense else mean["param_reduction_pct"],
    }
    for name in list(values):
        values[f"{name}_published"] = published.value("Table 2", name, method, setting=setting_of(budget))
    return values | {
        **{f"{MEASURED[part]}{end}": mean[f"measured_{part}{end}"] for part in SPEEDS for end in MIDDLE},
        "measured_train_time": mean["train_seconds"],
        "measured_train_energy_wh": group["train_joules"].mean(skipna=False) / 3600,
        "measured_gpu_busy_pct": 100 * group["gpu_utilisation"].mean(skipna=False),
    }


def runs_of_rows(scores: pd.DataFrame) -> dict[Key, tuple[Run, ...]]:
    """The runs of every (method, budget, teacher), in the paper's order."""
    return {
        (method, budget_key(budget), teacher): runs_of(group[group["teacher"] == teacher])
        for (method, budget), group in groups(scores)
        for teacher in teacher_order(group)
    }


def table2_differences(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Every pair of methods under one teacher: difference in perplexity with a paired bootstrap interval."""
    scores = results.scores()
    one_recipe(scores, "table2")
    drawn, runs = draw(results, scores, bootstrap), runs_of_rows(scores)
    rows = []
    for teacher in teacher_order(scores):
        keys = [key for key in runs if key[2] == teacher]
        for base, other in combinations(keys, 2):
            difference, mean = drawn.difference(runs[other], runs[base]), drawn.mean(runs[base])
            if difference and mean:
                files = tuple(run.file for run in (*runs[other], *runs[base]))
                row = difference_row(other, base, difference, 100 * difference.value / mean[0])
                rows.append(row | {"files": files})
    interval = Column(
        "", f"{100 * bootstrap.confidence:g} % interval", text=lambda row: f"[{row['low']:+.2f}, {row['high']:+.2f}]"
    )
    columns = [
        Column("teacher", "Teacher"),
        *csv_only("method", "budget"),
        METHOD,
        *csv_only("against", "against_budget"),
        Column("", "Against", text=lambda row: method_label(row["against"], row["against_budget"])),
        Column("difference", "PPL difference", text=lambda row: row["text"]),
        *csv_only("difference_se", "low", "high"),
        interval,
        Column("relative_pct", "Relative", text=lambda row: f"{row['relative_pct']:+.1f} %"),
        Column("clear", "Leaves zero out", text=lambda row: "yes" if row["clear"] else "no"),
        *csv_only("difference_sd", "seeds"),
    ]
    return tabulate(results, rows=rows, columns=columns, resamples=bootstrap.resamples)


def difference_row(other: Key, base: Key, difference: Difference, relative_pct: float) -> Record:
    """One row of Table 2 minus another."""
    return {
        "teacher": other[2], "method": other[0], "budget": other[1], "against": base[0], "against_budget": base[1],
        "difference": difference.value, "difference_se": difference.standard_error, "text": difference_text(difference),
        "low": difference.low, "high": difference.high, "relative_pct": relative_pct,
        "clear": difference.clear, "difference_sd": difference.sd, "seeds": max(difference.seeds, 1),
    }  # fmt: skip


def model_columns(ppl: str) -> list[Column]:
    """Scores of a teacher or an untrained student, its perplexity under this heading."""
    return [
        Column("ppl", ppl, 2, error="ppl_se"),
        Column("ppl_se"),
        Column("bits_per_byte", "Bits per byte", 3),
        Column("ppl_functions", "PPL, function documents", 2),
        Column("icl", "ICL %", 1, factor=100.0, error="icl_se"),
        Column("icl_se"),
    ]


def table1(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Teachers: shape and validation perplexity."""
    frame = results.teachers().rename(columns={"name": "teacher"})
    columns = [
        Column("teacher", "Teacher"),
        Column("layers", "Layers", 0),
        Column("hidden", "Hidden", 0),
        Column("ffn", "FFN", 0),
        Column("heads", "Heads/KV", text=lambda row: f"{number(row['heads'], 0)}/{number(row['kv_heads'], 0)}"),
        Column("kv_heads"),
        Column("parameters", "Parameters (M)", 2, factor=1e-6),
        *model_columns("Val. PPL"),
        Column("icl_chance"),
    ]
    if results.standing.models:
        printed = [published.value("Table 1", "ppl", "pretrained", teacher=name) for name in frame["teacher"]]
        frame = frame.assign(ppl_published=printed)
        columns.append(Column("ppl_published", "PPL, published", 1))
    return tabulate(results, rows=frame, columns=columns)


def reference(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """The rows to read Table 2 against: the smallest teacher itself and the untrained students."""
    teachers, students = results.teachers().head(1), results.students()
    rows = [f"{name} itself" for name in teachers.get("name", [])]
    rows += [f"untrained student, {name}" for name in students.get("name", [])]
    columns = [
        Column("row", "Reference"),
        Column("parameters"),
        *model_columns("PPL"),
        Column("icl_chance", "Chance %", 1, factor=100.0),
    ]
    frame = pd.concat([teachers, students], ignore_index=True).assign(row=rows)
    return tabulate(results, rows=frame, columns=columns)


def published_perplexities(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """The perplexities that the paper prints, by themselves."""
    rows = [asdict(line) | {"value": line.value} for line in published.lines if line.metric == "ppl"]
    columns = [
        Column("source", "Source"),
        Column("method", "Method", text=lambda row: METHODS.get(row["method"], row["method"])),
        Column("teacher", "Teacher", text=lambda row: row["teacher"]),
        Column("setting", "Setting"),
        Column("value", "PPL, published", 2),
        Column("note", "Note", text=lambda row: row["note"]),
    ]
    return tabulate(results, rows=rows, columns=columns)
