"""The first sentences of the page, on made-up results."""

import re
from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_ablations import write_all
from fixtures.synthetic_results import write_results

from budgeted_lora.reporting.contents import TABLES
from budgeted_lora.reporting.figures.pareto import brought_near
from budgeted_lora.reporting.page.summary import sentences
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.tables.controls import SMALLER, control_runs


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("summary") / "results" / "mini"
    write_all(root, seeds=(0,))
    return Results.open(root)


def scored(results: Results, method: str, budget: float | None = None) -> dict[str, float]:
    frame = results.of(TABLES["table2"]).scores("table2")
    mine = (frame["method"] == method) & (frame["teacher"] == "0.13B")
    mine &= frame["budget"].isna() if budget is None else frame["budget"] == budget
    return frame[mine].iloc[0].to_dict()


def test_the_trade_off_is_that_of_table_2(results: Results) -> None:
    lora, budgeted = scored(results, "kd_lora"), scored(results, "budgeted_lora", 0.4)
    first = sentences(results)[0].text
    assert f"KD LoRA, as large as a dense student, is at perplexity {lora['ppl']:.1f};" in first
    assert f"F = 0.4 needs {budgeted['speedup_vs_dense']:.2f} times fewer" in first
    assert f"has {budgeted['ppl'] / lora['ppl']:.2f} times the perplexity ({budgeted['ppl']:.1f})" in first
    assert first.index("F = 0.4") < first.index("F = 0.0")


def test_a_smaller_dense_student_stands_beside_the_budget_of_its_macs(results: Results) -> None:
    controls = control_runs(results)
    smaller = controls[(controls["kind"] == SMALLER) & (controls["student_ffn"] == 320)].iloc[0]
    budgeted = scored(results, "budgeted_lora", 0.4)
    change = 100 * (budgeted["ppl"] / smaller["ppl"] - 1)
    said = re.search(
        r"([\d.]+) beside F = 0\.4, whose perplexity is (\d+) % (higher|lower)", sentences(results)[1].text
    )
    assert said is not None
    assert said.groups() == (f"{smaller['ppl']:.1f}", f"{abs(change):.0f}", "higher" if change > 0 else "lower")


def test_what_was_measured_is_said_as_measured(results: Results) -> None:
    budgeted = scored(results, "budgeted_lora", 0.0)
    last = sentences(results)[-1].text
    assert last.startswith("Measured on this machine, F = 0.4 reads")
    assert f"generates {budgeted['measured_decode']:.2f} times as fast" in last


def test_a_sentence_without_its_numbers_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "results" / "mini"
    write_results(root)  # no controls
    for path in (root / "speed").glob("*.json"):
        path.unlink()
    for path in (root / "cells").glob("budgeted-lora_0.13B_*F0*/compressed/default/perplexity.json"):
        path.unlink()
    partial = Results.open(root, partial=True)
    assert sentences(partial) == []


def test_a_point_far_above_the_others_is_drawn_at_the_edge_with_its_value() -> None:
    columns = {"ppl_se": 1.0, "ppl_sd": 0.5, "ppl_low": 1.0, "ppl_high": 3000.0}
    points = pd.DataFrame([{"ppl": ppl} | columns for ppl in (17.0, 24.0, 2370.0)])
    near = brought_near(points)
    assert near["ppl"].tolist() == [17.0, 24.0, pytest.approx(1.3 * 24.0)]
    assert near["far"].isna().tolist() == [True, True, False]
    assert near["far"].iloc[2] == 2370.0
    assert near["ppl_high"].iloc[2] == near["ppl"].iloc[2]
