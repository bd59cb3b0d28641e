"""What the constants that the paper leaves open do: each varied alone, and the conclusions that move with it."""

from typing import Any

import pandas as pd

from budgeted_lora.reporting.grouping import Settings, caveats, method_label
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table, measured
from budgeted_lora.reporting.tables.ablations import FOLLOWS, HEADINGS
from budgeted_lora.reporting.uncertainty import (
    NOT_RECIPE,
    Difference,
    Drawn,
    difference_text,
    draw,
    runs,
    runs_of,
)

PARTS = ("perplexity",)
SENSITIVITY = "sensitivity"
# Conclusions of the paper that are looked at: an arm against another, a positive difference being the second one's win.
CONCLUSIONS = {
    "F = 0.4 less KD LoRA": (("budgeted_lora", 0.4), ("kd_lora", None)),
    "F = 0 less F = 0.4": (("budgeted_lora", 0.0), ("budgeted_lora", 0.4)),
}
SIGNS = {1: "above", 0: "undecided", -1: "below"}
Arm = tuple[str, float | None]


def sensitivity(results: Results, published: Published, settings: Settings) -> Table:
    """One line a constant and value: the arms' perplexities, their differences, and whether a sign is another one.

    The first line has the scale's own values. An arm that a constant does not touch keeps its run from there.
    """
    own = runs(results, "table2", "table8", parts=PARTS)
    tried = runs(results, SENSITIVITY, parts=PARTS)
    own = own[own["teacher"].isin(tried["teacher"]) & own["seed"].isin(tried["seed"])]
    scores = pd.concat([own, tried], ignore_index=True)
    drawn = draw(results, scores, settings)
    base = {arm_of(row): row for _, row in with_runs(results, own).iterrows()}
    groups: dict[tuple[str, str, str], dict[Arm, pd.Series]] = {("as configured", "", ""): {}}
    for _, row in with_runs(results, tried).iterrows():
        groups.setdefault(changed(results, row, base[arm_of(row)]), {})[arm_of(row)] = row
    frame = pd.DataFrame([line(key, arms, base, drawn) for key, arms in groups.items()])
    signs = {name: frame[f"{name} sign"] for name in CONCLUSIONS}
    frame["moved"] = [moved(index, signs) for index in frame.index]
    hidden = [name for name in frame if name.endswith((" sign", " value", " se"))]
    notes = [
        "Each line changes one constant that the paper does not state, and nothing else. ± of a perplexity is its "
        "standard error over validation windows, ± of a difference that of the paired bootstrap; one seed.",
        "A conclusion moves where the sign of a difference, or whether its interval leaves zero out, is another than "
        "with the configured values. Arms that a constant does not touch repeat their configured run.",
    ]
    title = "What the unknown constants do"
    return Table(
        SENSITIVITY, title, frame, frame.drop(columns=hidden).rename(columns=str.capitalize), notes + caveats(results)
    )


def with_runs(results: Results, scores: pd.DataFrame) -> pd.DataFrame:
    """The frame with each row's run, to look up its draws."""
    return scores.assign(run=list(runs_of(results, scores)))


def arm_of(row: pd.Series) -> Arm:
    """Method and budget."""
    return row["method"], None if pd.isna(row["budget"]) else float(row["budget"])


def changed(results: Results, row: pd.Series, base: pd.Series) -> tuple[str, str, str]:
    """Which constant a row changes, to what, and what it was: words for a line."""
    recipe = [name for name in results.cells.columns if name not in NOT_RECIPE | FOLLOWS]
    names = [name for name in recipe if str(row[name]) != str(base[name])]
    if row["setting"] != base["setting"]:
        return "compression", str(row["setting"]), str(base["setting"])
    words = [HEADINGS.get(name, name.replace("_", " ")) for name in names]
    return ", ".join(words), ", ".join(text(row[name]) for name in names), ", ".join(text(base[name]) for name in names)


def text(value: Any) -> str:
    """A value of a recipe as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def line(key: tuple[str, str, str], arms: dict[Arm, pd.Series], base: dict[Arm, pd.Series], drawn: Drawn) -> dict:
    """One line: what is changed, the arms' perplexities and their differences."""
    found = base | arms
    wanted = list(dict.fromkeys(arm for pair in CONCLUSIONS.values() for arm in pair[::-1]))
    wanted += [arm for arm in arms if arm not in wanted]
    row = dict(zip(("constant", "value", "instead of"), key, strict=True))
    for arm in wanted:
        score = found.get(arm)
        name = method_label(*arm)
        row[f"PPL {name}"] = "" if score is None else measured(score["ppl"], score["ppl_se"], 2)
        row[f"PPL {name} value"] = float("nan") if score is None else score["ppl"]
        row[f"PPL {name} se"] = float("nan") if score is None else score["ppl_se"]
    for name, (first, second) in CONCLUSIONS.items():
        touched = not arms or first in arms or second in arms
        difference = None
        if touched and first in found and second in found:
            difference = drawn.difference([found[first]["run"]], [found[second]["run"]])
        row |= {name: difference_text(difference) if touched else "", f"{name} sign": sign(difference)}
        row[f"{name} value"] = difference.value if difference else float("nan")
    return row


def sign(difference: Difference | None) -> int | None:
    """1 or -1 where the interval leaves zero out, else 0; None for no difference."""
    if difference is None:
        return None
    return (1 if difference.value > 0 else -1) if difference.clear else 0


def moved(index: int, signs: dict[str, pd.Series]) -> str:
    """Which conclusions differ from the first line's, and how."""
    found = []
    for name, values in signs.items():
        before, after = values.iloc[0], values.loc[index]
        if pd.notna(before) and pd.notna(after) and before != after:
            found.append(f"{name}: {SIGNS[int(before)]} -> {SIGNS[int(after)]}")
    return "; ".join(found)
