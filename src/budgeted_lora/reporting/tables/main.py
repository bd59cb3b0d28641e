"""Table 2 and the differences between its rows (method.md 6 and 8)."""

from itertools import combinations

import pandas as pd

from budgeted_lora.reporting.grouping import (
    Settings,
    budget_key,
    caveats,
    groups,
    method_label,
    one_variant,
    parse_budget,
    partial_note,
    setting_of,
    teacher_order,
)
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import SPEEDS, Results
from budgeted_lora.reporting.table import ABSENT, Table, duration, measured, number
from budgeted_lora.reporting.uncertainty import (
    Difference,
    Run,
    draw,
    runs_of,
    several_seeds,
    spread_text,
)


def table2(results: Results, published: Published, settings: Settings) -> Table:
    """The main table: perplexity by teacher, train compute, speedups, parameter reduction."""
    scores = results.scores("table2")
    one_variant(scores, "table2")
    teachers = teacher_order(scores)
    drawn, of_line = draw(results, scores, settings), lines_of(results, scores)
    rows, shown = [], []
    for (method, budget), group in groups(scores):
        row: dict[str, object] = {"method": method, "budget": "" if pd.isna(budget) else str(float(budget))}
        text: dict[str, str] = {"Method": method_label(method, budget)}
        for teacher in teachers:
            mine = group.loc[group["teacher"] == teacher, "ppl"]
            sampled = drawn.mean(of_line.get((method, budget_key(budget), teacher), ()))
            value = float(mine.mean(skipna=False)) if len(mine) else float("nan")
            error = float(sampled[1].std(ddof=1)) if sampled else float("nan")
            row |= {f"ppl_{teacher}": value, f"ppl_{teacher}_se": error}
            row |= {f"ppl_{teacher}_sd": float(mine.std()), f"ppl_{teacher}_seeds": len(mine)}
            text[f"PPL {teacher}"] = spread_text(value, error, float(mine.std()), len(mine))
        row |= costs(group, published, method, budget)
        rows.append(row)
        shown.append(text | cost_text(row))
    notes = [
        "PPL: prose validation set, budgeted rows on the compressed model; ± is a standard error from "
        f"{settings.bootstrap} bootstrap draws of the "
        "validation windows, the same draws for every model; it does not cover the training seed.",
        *several_seeds(count for row in rows for name, count in row.items() if name.endswith("_seeds")),
        "Train compute and MAC speedup are counts of multiply-accumulates, not timings: train compute relative to KD "
        "Full by the schedule, "
        "MAC speedup of the projections against the dense student. Published values stand beside them.",
        "Parameter reduction is against the unmerged dense + LoRA student, the paper's base; KD Full and KD LoRA "
        "(merged) are 0 % by its convention.",
        "Measured speedups are wall-clock ratios on this machine, dense over compressed, timed in turn; KD Full and KD "
        "LoRA are the dense student itself (1 by definition). "
        "Train time is the mean over the teachers, other jobs running beside.",
    ]
    frame = pd.DataFrame(rows, columns=table2_columns(teachers))
    return Table("table2", "Table 2. Main results", frame, pd.DataFrame(shown), notes + caveats(results))


def table2_columns(teachers: list[str]) -> list[str]:
    """Columns of table2.csv, in order."""
    perplexity = [name for teacher in teachers for name in (f"ppl_{teacher}", f"ppl_{teacher}_se")]
    pairs = ("train_compute", "module_speedup", "param_reduction_pct")
    return [
        "method", "budget", *perplexity,
        *(name for base in pairs for name in (base, f"{base}_published")),
        "measured_module_speedup", "measured_prefill_speedup", "measured_decode_speedup", "measured_train_time",
        *(name for teacher in teachers for name in (f"ppl_{teacher}_sd", f"ppl_{teacher}_seeds")),
    ]  # fmt: skip


def costs(group: pd.DataFrame, published: Published, method: str, budget: float) -> dict[str, float]:
    """Counted and measured costs of one row of Table 2, with the published counts."""
    dense = method != "budgeted_lora"
    mean = group.mean(numeric_only=True)
    values = {
        "train_compute": mean.get("train_compute", float("nan")),
        # Merged or trained in full, the student is the dense one: the paper's rows say 1 and 0 %.
        "module_speedup": 1.0 if dense else mean.get("speedup_vs_dense", float("nan")),
        "param_reduction_pct": 0.0 if dense else mean.get("param_reduction_pct", float("nan")),
    }
    for name in list(values):
        values[f"{name}_published"] = published.value("Table 2", name, method, setting=setting_of(budget))
    for part, name in zip(SPEEDS, ("module", "prefill", "decode"), strict=True):
        values[f"measured_{name}_speedup"] = mean.get(f"measured_{part}", float("nan"))
    return values | {"measured_train_time": mean.get("train_seconds", float("nan"))}


def cost_text(row: dict) -> dict[str, str]:
    """The cost columns of Table 2 as people read them."""
    return {
        "Train compute": number(row["train_compute"], 2),
        "Train compute, published": number(row["train_compute_published"], 2),
        "MAC speedup": number(row["module_speedup"], 2, unit="×"),
        "MAC speedup, published": number(row["module_speedup_published"], 2, unit="×"),
        "Param. reduction": number(row["param_reduction_pct"], 1, unit=" %"),
        "Param. reduction, published": number(row["param_reduction_pct_published"], 1, unit=" %"),
        "Measured: modules": number(row["measured_module_speedup"], 2, unit="×"),
        "Measured: prefill": number(row["measured_prefill_speedup"], 2, unit="×"),
        "Measured: decode": number(row["measured_decode_speedup"], 2, unit="×"),
        "Train time": duration(row["measured_train_time"]),
    }


def table2_differences(results: Results, published: Published, settings: Settings) -> Table:
    """Every pair of methods under one teacher: difference in perplexity with a paired bootstrap interval."""
    scores = results.scores("table2", parts=["perplexity"])
    one_variant(scores, "table2")
    drawn, of_line = draw(results, scores, settings), lines_of(results, scores)
    rows = []
    for teacher in teacher_order(scores):
        keys = [key for key, line in of_line.items() if key[2] == teacher and drawn.mean(line)]
        for reference, other in combinations(keys, 2):
            found = drawn.difference(of_line[other], of_line[reference])
            rows.append(difference_row(teacher, other, reference, found, drawn.mean(of_line[reference])[0]))
    columns = [
        "teacher",
        "method",
        "budget",
        "against",
        "against_budget",
        "difference",
        "difference_se",
        "low",
        "high",
        "relative_pct",
        "clear",
        "difference_sd",
        "seeds",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    shown_as = ("difference", "difference_se", "difference_sd", "seeds")
    percent = f"{100 * settings.confidence:g} %"
    shown = pd.DataFrame(
        {
            "Teacher": frame["teacher"],
            "Method": [method_label(m, parse_budget(b)) for m, b in zip(frame["method"], frame["budget"], strict=True)],
            "Against": [
                method_label(m, parse_budget(b)) for m, b in zip(frame["against"], frame["against_budget"], strict=True)
            ],
            "PPL difference": [
                signed(value, sd if seeds > 1 else error, seeds)
                for value, error, sd, seeds in zip(*(frame[name] for name in shown_as), strict=True)
            ],
            f"{percent} interval": [
                f"[{low:+.2f}, {high:+.2f}]" for low, high in zip(frame["low"], frame["high"], strict=True)
            ],
            "Relative": [f"{v:+.1f} %" for v in frame["relative_pct"]],
            "Leaves zero out": ["yes" if clear else "no" for clear in frame["clear"]],
        }
    )
    notes = [
        f"Paired bootstrap, {settings.bootstrap} draws of the validation windows, the same draws for both models. "
        "Positive: the method is worse (higher perplexity). "
        "The interval covers the choice of validation text, not the training seed.",
        *several_seeds(frame["seeds"]),
    ]
    if frame["seeds"].max() > 1:
        notes[-1] += " The interval leaves zero out only if no seed has the other sign."
    title = "Differences in perplexity between the rows of Table 2"
    return Table("table2_differences", title, frame, shown, notes + partial_note(results))


def difference_row(teacher: str, other: tuple, reference: tuple, found: Difference, base: float) -> dict[str, object]:
    """One row of table2_differences.csv."""
    return {
        "teacher": teacher, "method": other[0], "budget": other[1],
        "against": reference[0], "against_budget": reference[1],
        "difference": found.value, "difference_se": found.standard_error, "low": found.low, "high": found.high,
        "relative_pct": 100 * found.value / base, "clear": found.clear,
        "difference_sd": found.sd, "seeds": max(found.seeds, 1),
    }  # fmt: skip


def lines_of(results: Results, scores: pd.DataFrame) -> dict[tuple[str, str, str], tuple[Run, ...]]:
    """The runs of every (method, budget, teacher), in the paper's order."""
    return {
        (method, budget_key(budget), teacher): runs_of(results, group[group["teacher"] == teacher])
        for (method, budget), group in groups(scores)
        for teacher in teacher_order(group)
    }


def signed(value: float, error: float, seeds: int) -> str:
    """A difference with its error: +1.25 ± 0.08, of several seeds with their number."""
    return f"{value:+.2f} ± {error:.2f}{f' ({seeds} seeds)' if seeds > 1 else ''}"


def table1(results: Results, published: Published, settings: Settings) -> Table:
    """Teachers: shape and validation perplexity."""
    teachers = results.teachers()
    wanted = [
        "name",
        "layers",
        "hidden",
        "ffn",
        "heads",
        "kv_heads",
        "parameters",
        "ppl",
        "ppl_se",
        "ppl_functions",
        "icl",
        "icl_se",
        "icl_chance",
    ]
    frame = teachers.reindex(columns=wanted).rename(columns={"name": "teacher"})
    shown = pd.DataFrame(
        {
            "Teacher": frame["teacher"],
            "Layers": [number(v, 0) for v in frame["layers"]],
            "Hidden": [number(v, 0) for v in frame["hidden"]],
            "FFN": [number(v, 0) for v in frame["ffn"]],
            "Heads/KV": [
                f"{number(h, 0)}/{number(k, 0)}" for h, k in zip(frame["heads"], frame["kv_heads"], strict=True)
            ],
            "Parameters (M)": [number(v / 1e6, 2) for v in frame["parameters"]],
            "Val. PPL": [measured(v, e, 2) for v, e in zip(frame["ppl"], frame["ppl_se"], strict=True)],
            "PPL, function documents": [number(v, 2) for v in frame["ppl_functions"]],
            "ICL %": [measured(100 * v, 100 * e, 1) for v, e in zip(frame["icl"], frame["icl_se"], strict=True)],
        }
    )
    standing = results.standing
    named = "the paper's own checkpoint" if standing.models else "named after the one of the paper that it stands for"
    notes = [f"Each teacher is {named}. ± is a standard error over validation windows."]
    if standing.models:
        frame["ppl_published"] = [
            published.value("Table 1", "ppl", "pretrained", teacher=name) for name in frame["teacher"]
        ]
        shown["PPL, published"] = [number(v, 1) for v in frame["ppl_published"]]
    else:
        notes.append(
            "The paper's own teachers and perplexities are in published_perplexities: other corpus, other vocabulary."
        )
    return Table("table1", "Table 1. Teachers", frame, shown, notes + partial_note(results))


def reference(results: Results, published: Published, settings: Settings) -> Table:
    """The rows to read Table 2 against: the smallest teacher itself and the untrained students."""
    teachers, students = results.teachers().head(1), results.students()
    labels = [f"{name} itself" for name in teachers.get("name", [])] + [
        f"untrained student, {name}" for name in students.get("name", [])
    ]
    frame = pd.concat([teachers, students], ignore_index=True).reindex(
        columns=["name", "parameters", "ppl", "ppl_se", "ppl_functions", "icl", "icl_se", "icl_chance"]
    )
    frame.insert(0, "row", labels)
    shown = pd.DataFrame(
        {
            "Reference": labels,
            "PPL": [measured(v, e, 2) for v, e in zip(frame["ppl"], frame["ppl_se"], strict=True)],
            "PPL, function documents": [number(v, 2) for v in frame["ppl_functions"]],
            "ICL %": [measured(100 * v, 100 * e, 1) for v, e in zip(frame["icl"], frame["icl_se"], strict=True)],
            "Chance %": [number(100 * v, 1) for v in frame["icl_chance"]],
        }
    )
    notes = [
        "An untrained student is cut from the smallest teacher (or random, scratch) and scored before any distillation."
    ]
    return Table("reference", "Reference rows", frame.drop(columns="name"), shown, notes + partial_note(results))


def published_perplexities(results: Results, published: Published, settings: Settings) -> Table:
    """The perplexities the paper prints, by themselves."""
    frame = published.frame[published.frame["metric"] == "ppl"].drop(columns="metric").reset_index(drop=True)
    shown = pd.DataFrame(
        {
            "Source": frame["source"],
            "Method": [m if m == "pretrained" else method_label(m) for m in frame["method"]],
            "Teacher": frame["teacher"],
            "Setting": [text or ABSENT for text in frame["setting"]],
            "PPL, published": [number(v, 2) for v in frame["value"]],
            "Note": frame["note"],
        }
    )
    differs = results.standing.print_differs
    title = f"Published perplexities (the paper's{': ' if differs else ''}{differs})"
    how = f"Measured by the authors on the deduplicated Pile with their 32k vocabulary{results.standing.print_note}"
    return Table("published_perplexities", title, frame, shown, [how])
