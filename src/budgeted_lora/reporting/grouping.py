"""What tables and figures share: rows by method and budget, their labels, and the checks before values are averaged."""

import pandas as pd

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.results import FILES, RECIPE, Results

METHODS = {"kd_full": "KD Full", "kd_lora": "KD LoRA", "budgeted_lora": "Budgeted LoRA"}  # in the paper's order
ONE_VALUE = sorted(RECIPE - {"teacher", "method", "budget"})  # what the runs of one line agree in


def groups(scores: pd.DataFrame) -> list[tuple[tuple[str, float], pd.DataFrame]]:
    """Rows by (method, budget), in the paper's order; each group holds teachers and seeds."""
    ordered = method_order(scores)
    return [(key, group) for key, group in ordered.groupby(["method", "budget"], sort=False, dropna=False)]


def teacher_order(scores: pd.DataFrame) -> list[str]:
    """Teachers as the cells first name them: the ladder's order."""
    return list(dict.fromkeys(scores["teacher"]))


def sorted_teachers(results: Results, scores: pd.DataFrame) -> list[str]:
    """Teachers that the cells name, smallest first."""
    named = teacher_order(scores)
    ordered = [name for name in results.teachers().get("name", []) if name in named]
    return ordered + [name for name in named if name not in ordered]


def one_recipe(scores: pd.DataFrame, table: str) -> None:
    """Check that cells which are averaged differ in teacher and seed alone.

    Raises:
        BadInput: a row of the table would mix students of different making.
    """
    for key, group in groups(scores):
        for name in ONE_VALUE:
            values = group[name].astype(str).unique() if name in group else ()
            if len(values) > 1:
                raise BadInput(
                    f"{table}: {method_label(*key)} lists cells with several values of {name} "
                    f"({', '.join(values)}); expected one"
                )


def icl_scores(results: Results) -> pd.DataFrame:
    """The shown cells with their whole icl.json as column `icl` (None if missing), in the paper's order of methods."""
    listed = results.listed(*results.shown.cells)
    paths = [FILES["icl"].format(cell=cell, variant=DEFAULT_VARIANT) for cell in listed["cell"]]
    records = [results.json(path) for path in paths]
    files = [() if record is None else (path,) for path, record in zip(paths, records, strict=True)]
    return method_order(listed.assign(icl=records, files=files))


def files_of(group: pd.DataFrame) -> tuple[str, ...]:
    """The result files that the rows of a frame were made from (its column `files`), each once."""
    return tuple(dict.fromkeys(path for files in group["files"] for path in files))


def budget_key(budget: float) -> str:
    """A budget as the CSV files write it: empty, 0.4, 0.0."""
    return "" if pd.isna(budget) else str(float(budget))


def setting_of(budget: float) -> str:
    """A budget as published.csv writes it: F=0.4; empty without one."""
    return "" if pd.isna(budget) else f"F={float(budget)}"


def method_label(method: str, budget: float | str | None = None) -> str:
    """How a method is called in tables and figures; the budget as a number, or as `budget_key` writes it."""
    known = budget != "" and pd.notna(budget)
    return f"{METHODS[method]}, F={float(budget)}" if known else METHODS[method]


def method_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows as the paper orders them: KD Full, KD LoRA, then budgets from large to small."""
    key = frame["method"].map(list(METHODS).index) * 10 - frame["budget"].fillna(0.0)
    return frame.assign(_key=key).sort_values("_key", kind="stable").drop(columns="_key").reset_index(drop=True)
