"""The sensitivity table: one constant a line, and what moves with it."""

from pathlib import Path

import pandas as pd
import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_ablations import add_cell
from fixtures.synthetic_results import write_results

from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table
from budgeted_lora.reporting.uncertainty import Bootstrap

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Made-up students: at another gate logit F = 0.4 is better than KD LoRA; another rate changes three arms a bit."""
    root = tmp_path_factory.mktemp("sensitivity") / "results" / "mini"
    builder = write_results(root)
    base = {row["method"] + str(row["budget"]): row for row in builder.rows if row["teacher"] == "0.13B"}
    same = {name: base["kd_lora" + str(None)][name] for name in ("tokens", "steps")}
    arms = {"kd_lora": (None, 24.0), "budgeted_lora": (0.4, 24.2)}
    for method, (budget, ppl) in arms.items():
        add_cell(
            builder, f"rate_{method}", "sensitivity", ppl, method=method, budget=budget, learning_rate=0.01, **same
        )
    add_cell(builder, "zero", "sensitivity", 25.0, method="budgeted_lora", budget=0.0, learning_rate=0.01, **same)
    add_cell(builder, "gate", "sensitivity", 12.0, method="budgeted_lora", budget=0.4, gate_logit=4.0, **same)
    for row in builder.rows:
        row.setdefault("learning_rate", 0.005)
        row.setdefault("gate_logit", 2.0 if row["method"] == "budgeted_lora" else None)
    builder.write_cells()
    results = Results.open(root)
    return made_table("sensitivity", results, Published.open(ROOT / "config" / "published.csv"), Bootstrap(100))


def test_a_line_says_what_is_changed_and_nothing_else(table: Table) -> None:
    said = table.frame[["constant", "value", "instead of"]].to_numpy().tolist()
    assert said == [["as configured", "", ""], ["learning rate", "0.01", "0.005"], ["gate logit", "4", "2"]]


def test_arms_that_a_constant_does_not_touch_keep_their_run(table: Table) -> None:
    values = table.frame["PPL KD LoRA value"]
    assert values[2] == values[0]
    assert values[1] == pytest.approx(24.0, rel=0.02)


def test_a_conclusion_moves_where_its_sign_does(table: Table) -> None:
    numbers = table.frame
    assert numbers["moved"][0] == ""
    assert "F = 0.4 less KD LoRA" in numbers["moved"][2]
    assert numbers["moved"][2].split("; ")[0].endswith("-> below")
    assert numbers["F = 0 less F = 0.4 value"][2] == pytest.approx(
        numbers["PPL Budgeted LoRA, F=0.0 value"][0] - 12.0, abs=0.5
    )


def test_untouched_differences_are_left_empty(table: Table) -> None:
    shown: pd.DataFrame = table.shown
    assert not [name for name in shown if name.lower().endswith((" sign", " value", " se"))]
    assert (shown.iloc[0] != "").sum() >= 6
