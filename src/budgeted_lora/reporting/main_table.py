"""Table 2 and the differences between its rows (method.md 6 and 8)."""

import numpy as np
import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.grouping import (
    Settings,
    budget_key,
    caveats,
    groups,
    one_variant,
    parse_budget,
    partial_note,
    teacher_order,
)
from budgeted_lora.reporting.layout import Table, duration, measured, number
from budgeted_lora.reporting.load import SPEEDS, Published, Results, method_label, setting_of
from budgeted_lora.reporting.uncertainty import Interval, interval, perplexities, resampled_perplexities


def table2(results: Results, published: Published, settings: Settings) -> Table:
    """The main table: perplexity by teacher, train compute, speedups, parameter reduction."""
    scores = results.scores("table2")
    one_variant(scores, "table2")
    teachers = teacher_order(scores)
    errors = seed_mean_errors(results, scores, settings)
    rows, shown = [], []
    for (method, budget), group in groups(scores):
        row: dict[str, object] = {"method": method, "budget": "" if pd.isna(budget) else str(float(budget))}
        text: dict[str, str] = {"Method": method_label(method, budget)}
        for teacher in teachers:
            mine = group[group["teacher"] == teacher]
            value = float(mine["ppl"].mean(skipna=False)) if len(mine) else float("nan")
            row |= {
                f"ppl_{teacher}": value,
                f"ppl_{teacher}_se": errors.get((method, budget_key(budget), teacher), float("nan")),
            }
            text[f"PPL {teacher}"] = measured(value, row[f"ppl_{teacher}_se"], 2)
        row |= costs(group, published, method, budget)
        rows.append(row)
        shown.append(text | cost_text(row))
    notes = [
        "PPL: prose validation set, budgeted rows on the compressed model; ± is a standard error from "
        f"{settings.bootstrap} bootstrap draws of the "
        "validation windows, the same draws for every model; it does not cover the training seed.",
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
    rows = []
    for teacher in teacher_order(scores):
        drawn = {
            key: value
            for key, value in draws_by_row(results, scores[scores["teacher"] == teacher], settings).items()
            if value
        }
        keys = list(drawn)
        for first, reference in enumerate(keys):
            for other in keys[first + 1 :]:
                (value, draws), (base, base_draws) = drawn[other], drawn[reference]
                found = interval(value - base, draws - base_draws, confidence=settings.confidence)
                rows.append(difference_row(teacher, other, reference, found, base))
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
    ]
    frame = pd.DataFrame(rows, columns=columns)
    percent = f"{100 * settings.confidence:g} %"
    shown = pd.DataFrame(
        {
            "Teacher": frame["teacher"],
            "Method": [method_label(m, parse_budget(b)) for m, b in zip(frame["method"], frame["budget"], strict=True)],
            "Against": [
                method_label(m, parse_budget(b)) for m, b in zip(frame["against"], frame["against_budget"], strict=True)
            ],
            "PPL difference": [signed(v, e) for v, e in zip(frame["difference"], frame["difference_se"], strict=True)],
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
        "The interval covers the choice of validation text, not the training seed."
    ]
    title = "Differences in perplexity between the rows of Table 2"
    return Table("table2_differences", title, frame, shown, notes + partial_note(results))


def difference_row(teacher: str, other: tuple, reference: tuple, found: Interval, base: float) -> dict[str, object]:
    """One row of table2_differences.csv."""
    return {
        "teacher": teacher, "method": other[0], "budget": other[1],
        "against": reference[0], "against_budget": reference[1],
        "difference": found.value, "difference_se": found.standard_error, "low": found.low, "high": found.high,
        "relative_pct": 100 * found.value / base, "clear": found.clear,
    }  # fmt: skip


def draws_by_row(
    results: Results, scores: pd.DataFrame, settings: Settings
) -> dict[tuple[str, str], tuple[float, np.ndarray] | None]:
    """Perplexity (mean over seeds) and its bootstrap draws [resamples] of every (method, budget) under one teacher.

    None where windows are missing. Every model must have scored the same windows.

    Raises:
        BadInput: two models scored different windows.
    """
    windows = {cell: results.windows(results.compressed(cell)) for cell in scores["cell"]}
    there = {cell: frame for cell, frame in windows.items() if frame is not None}
    if not there:
        return {(method, budget_key(budget)): None for (method, budget), _ in groups(scores)}
    tokens, slices = next(iter(there.values()))["tokens"].to_numpy(), scores.set_index("cell")["slice"]
    for cell, frame in there.items():
        if not np.array_equal(frame["tokens"].to_numpy(), tokens) or slices[cell] != slices[next(iter(there))]:
            raise BadInput(
                f"{results.root / results.compressed(cell)}: scored other validation windows than {next(iter(there))}; "
                "expected the same for every model"
            )
    nll = np.stack([frame["nll"].to_numpy() for frame in there.values()])
    values = dict(zip(there, perplexities(nll, tokens), strict=True))
    draws = resampled_perplexities(nll, tokens, resamples=settings.bootstrap, seed=settings.seed)
    columns = {cell: draws[:, position] for position, cell in enumerate(there)}
    found: dict[tuple[str, str], tuple[float, np.ndarray] | None] = {}
    for (method, budget), group in groups(scores):
        mine = [cell for cell in group["cell"] if cell in there]
        whole = len(mine) == len(group)
        found[method, budget_key(budget)] = (
            (float(np.mean([values[c] for c in mine])), np.mean([columns[c] for c in mine], axis=0)) if whole else None
        )
    return found


def seed_mean_errors(results: Results, scores: pd.DataFrame, settings: Settings) -> dict[tuple[str, str, str], float]:
    """Bootstrap standard error of every (method, budget, teacher)."""
    errors = {}
    for teacher in teacher_order(scores):
        for (method, budget), found in draws_by_row(results, scores[scores["teacher"] == teacher], settings).items():
            if found is not None:
                errors[method, budget, teacher] = float(found[1].std(ddof=1))
    return errors


def signed(value: float, error: float) -> str:
    """A difference with its standard error: +1.25 ± 0.08."""
    return f"{value:+.2f} ± {error:.2f}"
