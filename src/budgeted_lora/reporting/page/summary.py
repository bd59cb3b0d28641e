"""The first sentences of the page: what a budget costs, what a smaller dense student does, and what the clock says.

Each is computed from the results under the smallest teacher, and left out where a number is missing.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from budgeted_lora.reporting.contents import CONTROLS, TABLES
from budgeted_lora.reporting.grouping import method_order
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Record, millions, number, unsteady
from budgeted_lora.reporting.tables.controls import NEAR, SMALLER, control_runs
from budgeted_lora.reporting.uncertainty import lines


class Sentence(NamedTuple):
    """One sentence, and the result files that its numbers were read from, below results/<scale>."""

    text: str
    files: tuple[str, ...]


def sentences(results: Results) -> list[Sentence]:
    """At most three sentences; none if no budgeted student was scored."""
    if "table2" not in results.tables:
        return []
    scores = results.of(TABLES["table2"]).runs("table2")
    frame = method_order(lines(scores[scores["teacher"] == scores["teacher"].iloc[0]]))
    frame = frame[frame["ppl"].notna()]
    budgeted = frame[(frame["method"] == "budgeted_lora") & frame["speedup_vs_dense"].notna()].to_dict("records")
    lora = frame[frame["method"] == "kd_lora"].to_dict("records")
    if not budgeted:
        return []
    found = [trade_off(budgeted, lora[0]) if lora else None, against_dense(results, budgeted), on_the_clock(budgeted)]
    return [sentence for sentence in found if sentence]


def sentence(text: str, rows: Iterable[Record]) -> Sentence:
    """A sentence with the files of the rows that it speaks of."""
    return Sentence(text, tuple(dict.fromkeys(path for row in rows for path in row["files"])))


def trade_off(budgeted: list[Record], lora: Record) -> Sentence:
    """What each budget saves, and its perplexity over KD LoRA's."""
    parts = []
    for row in budgeted:
        ratio, speedup = number(row["ppl"] / lora["ppl"], 2), number(row["speedup_vs_dense"], 2)
        parts.append(
            f"F = {number(row['budget'], 1)} needs {speedup} times fewer multiply-accumulates in its projections "
            f"and has {ratio} times the perplexity ({number(row['ppl'], 1)})"
        )
    length = f"After {millions(lora['tokens'])} tokens KD LoRA, as large as a dense student, is at perplexity"
    return sentence(f"{length} {number(lora['ppl'], 1)}; {'; '.join(parts)}.", [lora, *budgeted])


def against_dense(results: Results, budgeted: list[Record]) -> Sentence | None:
    """Budgeted students beside smaller dense ones with nearly the same MACs, which the paper does not show."""
    if CONTROLS not in results.tables:
        return None
    frame = control_runs(results)
    frame = frame[(frame["kind"] == SMALLER) & frame["ppl"].notna() & (frame["tokens"] == budgeted[0]["tokens"])]
    parts, rows = [], []
    for row in budgeted:
        near = frame[(frame["share"] * row["speedup_vs_dense"] - 1.0).abs() < NEAR]
        if near.empty:
            continue
        dense = lines(near).iloc[0].to_dict()
        rows += [dense, row]
        change = 100 * (row["ppl"] / dense["ppl"] - 1)
        parts.append(
            f"{number(dense['ppl'], 1)} beside F = {number(row['budget'], 1)}, whose perplexity is "
            f"{number(abs(change), 0)} % {'higher' if change > 0 else 'lower'}"
        )
    if not parts:
        return None
    text = f"A smaller dense student of the same cost, distilled in full, is at {', and at '.join(parts)}."
    return sentence(text, rows)


def on_the_clock(budgeted: list[Record]) -> Sentence | None:
    """Measured speedups of whole students, which are not the ratio of their MACs."""
    names = ("measured_prefill", "measured_decode")
    timed = [row for row in budgeted if all(pd.notna(row[name]) and not unsteady(row, name) for name in names)]
    parts = [
        f"F = {number(row['budget'], 1)} reads a prompt {number(row['measured_prefill'], 2)} times and generates "
        f"{number(row['measured_decode'], 2)} times as fast as the dense student"
        for row in timed
    ]
    return sentence(f"Measured on this machine, {'; '.join(parts)}.", timed) if parts else None
