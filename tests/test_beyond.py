"""The table and figure of other rules than the paper's, on made-up results."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from fixtures.synthetic_ablations import add_cell
from fixtures.synthetic_results import write_results

from budgeted_lora.reporting import build
from budgeted_lora.reporting.beyond import BEYOND, PAPER, beyond_figure, beyond_lines
from budgeted_lora.reporting.grouping import Settings
from budgeted_lora.reporting.layout import Table
from budgeted_lora.reporting.load import Published, Results
from budgeted_lora.reporting.style import context
from budgeted_lora.reporting.tables import tables_of

ROOT = Path(__file__).resolve().parents[1]
SVD, OUTPUTS = {"low_rank_init": "svd"}, {"low_rank_init": "activation_svd", "order": "activation"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The paper's rule at F = 0.4 and 0, two others, one with two seeds, one with four times the tokens."""
    root = tmp_path_factory.mktemp("beyond") / "results" / "mini"
    builder = write_results(root)
    budgeted = {"method": "budgeted_lora"}
    for budget, ppl in ((0.4, 100.0), (0.0, 70.0)):
        add_cell(builder, f"paper_{budget}", BEYOND, ppl, budget=budget, **budgeted)
        add_cell(builder, f"paper4_{budget}", BEYOND, 0.6 * ppl, budget=budget, tokens=4 * 153600, **budgeted)
        add_cell(builder, f"svd_{budget}", BEYOND, 0.6 * ppl, budget=budget, **SVD, **budgeted)
    for seed, ppl in enumerate((30.0, 32.0)):
        add_cell(builder, "outputs", BEYOND, ppl, budget=0.4, seed=seed, **OUTPUTS, **budgeted)
    cut = {"macsF0.4_undistilled-True": 500.0, "macsF0.4_by-outputs_undistilled-True": 200.0}
    add_cell(builder, "full", BEYOND, 25.0, settings=cut)
    for row in builder.rows:
        for name in ("low_rank_init", "order", "rank_step"):
            row.setdefault(name, None)
    builder.write_cells()
    return Results.open(root, partial=True)


@pytest.fixture(scope="module")
def table(results: Results) -> Table:
    return tables_of(results)[BEYOND](results, Published.open(ROOT / "config" / "published.csv"), Settings(100))


def test_rules_have_names_and_their_own_lines(results: Results) -> None:
    frame = beyond_lines(results)
    found = frame.groupby("rule").size().to_dict()
    assert found == {
        PAPER: 4,
        "SVD of W": 2,
        "SVD of outputs + order by outputs": 1,
        "no distillation, SVD by weights": 1,
        "no distillation, SVD by outputs": 1,
    }


def test_differences_are_to_the_papers_rule_of_the_same_budget_and_length(table: Table) -> None:
    frame = table.frame.set_index(["rule", "budget", "tokens"]).sort_index()
    assert frame.loc[("SVD of W", 0.4, 153600), "to_paper"] == pytest.approx(-40, abs=3)
    assert frame.loc[("SVD of W", 0.0, 153600), "to_paper"] == pytest.approx(-28, abs=3)
    assert frame.loc[(PAPER, slice(None), slice(None)), "to_paper"].isna().all()
    of_seeds = frame.loc[("SVD of outputs + order by outputs", 0.4, 153600)]
    assert of_seeds["seeds"] == 2
    assert of_seeds["ppl"] == pytest.approx(31.0, rel=0.02)
    assert frame.loc["no distillation, SVD by outputs", "to_paper"].isna().all()


def test_the_figure_has_a_line_a_rule_and_says_what_is_dashed(results: Results, tmp_path: Path) -> None:
    with context():
        figure = beyond_figure(results)
        axes = figure.axes[0]
        labels = axes.get_legend_handles_labels()[1]
        plt.close(figure)
    assert labels[:3] == [PAPER, "SVD of W", "SVD of outputs + order by outputs"]
    assert {"KD Full", "KD LoRA"} <= set(labels)
    assert [text.get_text() for text in axes.texts] == ["dashed: 4 times the tokens"]
    written = build.build_figure(BEYOND, results=results.root, out=tmp_path, partial=True)
    assert {path.suffix for path in written} == {".png", ".svg", ".pdf"}


def test_notes_say_what_differs(table: Table) -> None:
    assert any("paired by window" in note for note in table.notes)
    assert isinstance(table.shown, pd.DataFrame)
    assert "To the paper's rule" in table.shown
