"""How each method's perplexity falls with training tokens, and what a fitted power law says about longer runs.

The paper trains every student on one number of tokens. Here the excess of a student's loss over its teacher's,
e(N) = nll(N) - nll_teacher in nats per token, is fitted as a N^-b by least squares of its logarithm. Two numbers from a
few lengths describe what was measured; beyond the longest run they are an extrapolation, and are called so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, nan

import numpy as np
import pandas as pd

from budgeted_lora.reporting.contents import TABLES, TOKENS
from budgeted_lora.reporting.grouping import files_of, method_label, method_order
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only, millions
from budgeted_lora.reporting.tables.beyond import PAPER, rule_of
from budgeted_lora.reporting.tables.controls import SMALLER, shape_text, student_text
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import Bootstrap, draw, lines

FEWEST_LENGTHS = 3  # two points always lie on a power law
NEAREST = 0.02  # nats above the teacher, about the standard error of a loss; the logarithm of less is noise


@dataclass(frozen=True)
class PowerLaw:
    """Excess loss a N^-b over the teacher's loss `floor` (nats per token) after N training tokens."""

    a: float
    b: float
    floor: float

    def perplexity(self, tokens: float) -> float:
        """Perplexity after `tokens` training tokens, > 0."""
        return exp(self.floor + self.a * tokens**-self.b)

    def meets(self, other: "PowerLaw") -> float:
        """Tokens at which both have the same excess; NaN where the curves run side by side, or beyond all numbers."""
        if self.b == other.b:
            return nan
        exponent = log(self.a / other.a) / (self.b - other.b)
        return exp(exponent) if abs(exponent) < 100 else nan


def fit(tokens: np.ndarray, ppl: np.ndarray, *, teacher_ppl: float) -> PowerLaw | None:
    """The power law through the excess over a teacher; tokens and ppl are [lengths].

    None with fewer than `FEWEST_LENGTHS` lengths, or where a student comes near its teacher: the law cannot pass it.
    """
    excess = np.log(ppl) - log(teacher_ppl)
    if len(tokens) < FEWEST_LENGTHS or not np.all(excess > NEAREST):
        return None
    slope, intercept = np.polyfit(np.log(tokens), np.log(excess), 1)
    return PowerLaw(a=exp(intercept), b=-float(slope), floor=log(teacher_ppl))


@dataclass(frozen=True)
class LengthCurve:
    """One student at several lengths of training.

    Attributes:
        label: method, budget and, if it is not the paper's, rule.
        points: `tokens`, `ppl`, `ppl_se`, `method` and `budget`, ascending in tokens, [lengths].
        law: what was fitted; None if that was not possible.
    """

    label: str
    points: pd.DataFrame
    law: PowerLaw | None


def length_curves(results: Results, bootstrap: Bootstrap | None = None) -> list[LengthCurve]:
    """The students of the table under its smallest teacher, in the paper's order."""
    scores = results.of(TABLES[TOKENS]).runs(TOKENS)
    frame = method_order(lines(scores, draw(results, scores, bootstrap) if bootstrap else None))
    teachers = results.teachers().set_index("name")["ppl"]
    frame["label"] = [label(row, frame) for row in frame.to_dict("records")]
    curves = []
    for name, group in frame.groupby("label", sort=False):
        points = group.sort_values("tokens", ignore_index=True)
        teacher_ppl = float(teachers[points["teacher"][0]])
        there = points[points["ppl"].notna()]
        law = fit(there["tokens"].to_numpy(float), there["ppl"].to_numpy(float), teacher_ppl=teacher_ppl)
        curves.append(LengthCurve(str(name), points, law))
    return curves


def label(row: Record, frame: pd.DataFrame) -> str:
    """What a curve is called."""
    name = method_label(row["method"], row["budget"])
    if pd.notna(row["student_ffn"]) and row["method"] == "kd_full":
        name = student_text(row | {"kind": SMALLER})
    elif row["method"] == "budgeted_lora" and rule_of(row) != PAPER:
        name = f"{name}: {rule_of(row)}"
    elif pd.notna(row["student_ffn"]):
        name = f"{name}, {shape_text(row)}"
    return name if frame["teacher"].nunique() == 1 else f"{name}, {row['teacher']}"


def tokens(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """One line per student, one column per length, the fitted exponent, and where its curve meets KD LoRA's."""
    curves = length_curves(results, bootstrap)
    lengths = sorted({int(count) for curve in curves for count in curve.points["tokens"]})
    rows = [row | {"files": files_of(curve.points)} for row, curve in zip(curve_rows(curves), curves, strict=True)]
    columns = [Column("student", "Student")]
    for count in lengths:
        columns.append(Column(f"ppl_{count}", f"PPL, {millions(count)}", 2, error=f"ppl_{count}_se"))
        columns += csv_only(f"ppl_{count}_se")
    columns += [
        Column("exponent", "Exponent b", 2),
        *csv_only("amplitude"),
        Column("meets_kd_lora", "Meets KD LoRA at", text=lambda row: meeting_text(row, lengths=lengths)),
    ]
    return tabulate(results, rows=rows, columns=columns, longest=millions(lengths[-1]))


def curve_rows(curves: Sequence[LengthCurve]) -> list[Record]:
    """Of each student its perplexities and their errors, the fitted law, and where that meets KD LoRA's."""
    lora = next((curve.law for curve in curves if curve.points["method"][0] == "kd_lora"), None)
    rows = []
    for curve in curves:
        row: Record = {"student": curve.label}
        for point in curve.points.itertuples():
            row |= {f"ppl_{int(point.tokens)}": point.ppl, f"ppl_{int(point.tokens)}_se": point.ppl_se}
        row |= {"exponent": nan, "amplitude": nan, "meets_kd_lora": nan}
        if curve.law is not None:
            row |= {"exponent": curve.law.b, "amplitude": curve.law.a}
            row["meets_kd_lora"] = nan if lora in (None, curve.law) else curve.law.meets(lora)
        rows.append(row)
    return rows


def meeting_text(row: Record, *, lengths: list[int]) -> str:
    """Where the fitted curve meets KD LoRA's; marked where that lies outside the lengths that were run."""
    place = row["meets_kd_lora"]
    if pd.isna(place):
        return ABSENT
    if place < lengths[0]:
        return "before the shortest"
    if place <= lengths[-1]:
        return millions(place)
    return f"{millions(place)} (extrapolated)" if place < 1e12 else "never in reach"
