"""What tables and figures share: rows by method and budget, and the checks before values are averaged."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.results import Results

VARIANTS = ("init", "schedule", "controller", "rank", "low_rank_init", "order", "rank_step")
MISSING_NOTE = "Partial: {} result files are missing; a dash stands where they are needed."


@dataclass(frozen=True)
class Settings:
    """How the uncertainty is worked out: bootstrap resamples, coverage of intervals, seed of the draws."""

    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0


def groups(scores: pd.DataFrame) -> list[tuple[tuple[str, float], pd.DataFrame]]:
    """Rows by (method, budget), in the paper's order; each group holds teachers and seeds."""
    ordered = method_order(scores)
    return [(key, group) for key, group in ordered.groupby(["method", "budget"], sort=False, dropna=False)]


def teacher_order(scores: pd.DataFrame) -> list[str]:
    """Teachers as the cells first name them: the ladder's order."""
    return list(dict.fromkeys(scores["teacher"]))


def sorted_teachers(results: Results, scores: pd.DataFrame) -> list[str]:
    """Teachers that the cells name, smallest first."""
    known = results.teachers()
    named = set(teacher_order(scores))
    ordered = [name for name in known.get("name", []) if name in named]
    return ordered + [name for name in teacher_order(scores) if name not in ordered]


def one_variant(scores: pd.DataFrame, table: str) -> None:
    """Refuses to average cells that differ in more than teacher and seed.

    Raises:
        BadInput: a row of the table would mix students of different making.
    """
    for key, group in groups(scores):
        for name in VARIANTS:
            if name in group and group[name].nunique(dropna=False) > 1:
                raise BadInput(
                    f"{table}: {method_label(*key)} lists cells with several values of {name} "
                    f"({', '.join(map(str, group[name].unique()))}); expected one"
                )


def budget_key(budget: float) -> str:
    """A budget as the CSV files write it: empty, 0.4, 0.0."""
    return "" if pd.isna(budget) else str(float(budget))


def parse_budget(text: str) -> float:
    """The reverse of `budget_key`."""
    return float(text) if text else float("nan")


def icl_tables(results: Results) -> tuple[str, ...]:
    """The tables whose cells have in-context scores: table9 or figure2 where the scale lists them, else table2."""
    own = [name for name in ("table9", "figure2") if len(results.listed(name))]
    return tuple(own) or ("table2",)


def icl_scores(results: Results, *tables: str) -> pd.DataFrame:
    """The listed cells with their whole icl.json as column `icl` (None if missing), in the paper's order of methods."""
    listed = results.listed(*tables)
    listed = listed.assign(icl=[results.json(f"{results.compressed(cell)}/icl.json") for cell in listed["cell"]])
    return method_order(listed)


def partial_note(results: Results) -> list[str]:
    """A sentence when results are missing."""
    return [MISSING_NOTE.format(len(results.missing))] if results.missing else []


def caveats(results: Results) -> list[str]:
    """What must be said below a table that shows counts beside published ones, and the note of a partial report."""
    shape = (
        "This scale's student has not the paper's proportions: its counts are not expected to be the published ones."
    )
    return [*([shape] if results.standing.proportions is False else []), *partial_note(results)]


METHODS = ("kd_full", "kd_lora", "budgeted_lora")


def setting_of(budget: float) -> str:
    """A budget as published.csv writes it: F=0.4; empty without one."""
    return "" if pd.isna(budget) else f"F={float(budget)}"


def method_label(method: str, budget: float = float("nan")) -> str:
    """How a method is called in tables and figures."""
    name = {"kd_full": "KD Full", "kd_lora": "KD LoRA", "budgeted_lora": "Budgeted LoRA"}[method]
    return name if pd.isna(budget) else f"{name}, F={float(budget)}"


def student_label(row: Any) -> str:
    """Short name of a student beside its point: KD LoRA · 1B, F=0.4 · 1B, F=0.0 uniform · 0.13B."""
    method = method_label(row.method, row.budget).removeprefix("Budgeted LoRA, ")
    return f"{method}{' uniform' if row.controller == 'uniform' else ''} · {row.teacher}"


def method_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows as the paper orders them: KD Full, KD LoRA, then budgets from large to small."""
    key = frame["method"].map(METHODS.index) * 10 - frame["budget"].fillna(0.0)
    return frame.assign(_key=key).sort_values("_key", kind="stable").drop(columns="_key").reset_index(drop=True)
