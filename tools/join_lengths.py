"""Tool for maintainers: continues the curves of one shipped run's table `tokens` with the students of a longer run.

    python tools/join_lengths.py evening overnight

reads docs/reference/evening/tokens.csv and docs/reference/overnight/cells.csv. To each student of the first it adds the
students of the second of the same label in Table 2, `controls` and `tokens`, the mean of their seeds; where both have a
length, that of the second stands. Then it fits again, and writes
docs/reference/overnight/tokens_joined.csv and docs/figures/tokens.png. A student of the second run alone is shown if
it has several lengths there.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from budgeted_lora.reporting.figures.style import context
from budgeted_lora.reporting.figures.tokens import lengths_figure
from budgeted_lora.reporting.results import read_lines
from budgeted_lora.reporting.tables.tokens import LengthCurve, curve_rows, fit, label

TABLES = frozenset({"table2", "controls", "tokens"})  # whose students differ in method, shape, length and seed alone
REFERENCE, FIGURE = Path("docs/reference"), Path("docs/figures/tokens.png")


def short_points(table: pd.DataFrame) -> pd.DataFrame:
    """One row per student and length of a table `tokens`: label, tokens, ppl, ppl_se."""
    lengths = [int(found[1]) for name in table.columns if (found := re.fullmatch(r"ppl_(\d+)", name))]
    parts = [
        pd.DataFrame({"label": table["student"], "tokens": count, "ppl": table[f"ppl_{count}"],
                      "ppl_se": table[f"ppl_{count}_se"]})
        for count in lengths
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def long_points(cells: pd.DataFrame, *, teacher: str) -> pd.DataFrame:
    """The same of the students of cells.csv, the mean of their seeds, with method, budget and student_ffn."""
    wanted = cells["tables"].map(lambda names: not TABLES.isdisjoint(names.split()))
    frame = cells[(cells["teacher"] == teacher) & (cells["variant"] == "default") & wanted].drop_duplicates("cell")
    frame = frame.assign(label=[label(row, frame) for row in frame.to_dict("records")])
    chosen = {name: (name, "first") for name in ("method", "budget", "student_ffn")}
    means = {name: (name, "mean") for name in ("ppl", "ppl_se")}
    return frame.groupby(["label", "tokens"], sort=False, as_index=False).agg(**chosen, **means)


def joined_curves(shorter: pd.DataFrame, longer: pd.DataFrame, *, teacher_ppl: float) -> list[LengthCurve]:
    """The curves of the students of the longer run that have several lengths, by their last perplexity."""
    recipes = longer.drop_duplicates("label").set_index("label")[["method", "budget", "student_ffn"]]
    curves = []
    for name, recipe in recipes.iterrows():
        parts = [frame.loc[frame["label"] == name, ["tokens", "ppl", "ppl_se"]] for frame in (shorter, longer)]
        points = pd.concat(parts, ignore_index=True).assign(**recipe.to_dict())
        points = points.drop_duplicates("tokens", keep="last").sort_values("tokens")
        law = fit(points["tokens"].to_numpy(float), points["ppl"].to_numpy(float), teacher_ppl=teacher_ppl)
        if len(points) > 1:
            curves.append(LengthCurve(str(name), points.reset_index(drop=True), law))
    return sorted(curves, key=lambda curve: curve.points["ppl"].iloc[-1])


def join(short: str, long: str) -> Path:
    """Writes the joined table and its figure; returns the table's path."""
    teachers = pd.read_csv(REFERENCE / long / "table1.csv")
    name, ppl = teachers.iloc[0][["teacher", "ppl"]]
    shorter = short_points(pd.read_csv(REFERENCE / short / "tokens.csv"))
    longer = long_points(read_lines(REFERENCE / long, REFERENCE / long / "cells.csv"), teacher=name)
    curves = joined_curves(shorter, longer, teacher_ppl=float(ppl))
    out = REFERENCE / long / "tokens_joined.csv"
    pd.DataFrame(curve_rows(curves)).to_csv(out, index=False, float_format="%.8g")
    with context():
        lengths_figure(curves, teacher=name, teacher_ppl=float(ppl)).savefig(FIGURE, dpi=150)
    return out


if __name__ == "__main__":
    print(join(*sys.argv[1:3]))
