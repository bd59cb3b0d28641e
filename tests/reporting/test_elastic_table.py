"""The table and figure of one training for every budget, on made-up results."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_ablations import add_cell
from fixtures.synthetic_results import write_results

from budgeted_lora.reporting.contents import ELASTIC, FIGURES
from budgeted_lora.reporting.figures.elastic import elastic_figure
from budgeted_lora.reporting.figures.style import context
from budgeted_lora.reporting.page.origins import Origins
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table
from budgeted_lora.reporting.tables.elastic import tolls_text
from budgeted_lora.reporting.uncertainty import Bootstrap

ROOT = Path(__file__).resolve().parents[2]
START = {"method": "budgeted_lora", "low_rank_init": "activation_svd", "order": "gradient"}
ONE = 153600
DIAL = {"F0.0": 44.0, "F0.4": 33.0, "F0.8": 30.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three seeds of two budgets one by one and of a training for three, this also at twice the tokens, one seed."""
    root = tmp_path_factory.mktemp("elastic") / "results" / "mini"
    builder = write_results(root)
    builder.variants |= {name: {"budget": float(name[1:])} for name in DIAL}
    for seed in (0, 1, 2):
        for budget, ppl in ((0.0, 40.0), (0.4, 30.0)):
            add_cell(builder, f"own_{budget}", ELASTIC, ppl + seed, budget=budget, seed=seed, tokens=ONE, **START)
        scores = {name: ppl + 2 * seed for name, ppl in DIAL.items()}
        elastic = START | {"elastic_budgets": "[0.0, 0.4, 0.8]", "schedule": "", "seed": seed}
        add_cell(builder, "dial", ELASTIC, 0.0, settings=scores, tokens=ONE, **elastic)
    scores = {name: 0.9 * ppl for name, ppl in DIAL.items()}
    add_cell(builder, "longer", ELASTIC, 0.0, settings=scores, tokens=2 * ONE, **(elastic | {"seed": 0}))
    builder.write_cells()
    return Results.open(root, partial=True)


@pytest.fixture(scope="module")
def table(results: Results) -> Table:
    return made_table(ELASTIC, results, Published.open(ROOT / "config" / "published.csv"), Bootstrap(100))


def test_one_student_has_a_line_for_each_budget(table: Table) -> None:
    places = list(zip(table.frame["budget"], table.frame["elastic"], table.frame["tokens"], strict=True))
    assert places == [
        (0.0, False, ONE), (0.0, True, ONE), (0.0, True, 2 * ONE), (0.4, False, ONE), (0.4, True, ONE),
        (0.4, True, 2 * ONE), (0.8, True, ONE), (0.8, True, 2 * ONE),
    ]  # fmt: skip
    assert table.frame["seeds"].tolist() == [3, 3, 1, 3, 3, 1, 3, 1]
    assert table.shown["Trained for"].tolist()[:2] == ["this F", "every F"]
    assert table.shown["MAC speedup"].ne("–").all()


def test_a_toll_is_to_the_student_of_this_budget_by_equal_tokens(table: Table) -> None:
    frame = table.frame.set_index(["budget", "tokens"])[lambda rows: rows["elastic"]]
    compared = {(0.0, ONE): "equal per student", (0.0, 2 * ONE): "equal in total", (0.8, ONE): ""}
    assert {place: frame.loc[place, "compared"] for place in compared} == compared
    assert frame.loc[(0.4, ONE), "above_own_pct"] == pytest.approx(100 * (35 / 31 - 1), abs=2)
    assert frame.loc[(0.4, ONE), "to_own"] == pytest.approx(4.0, abs=1)
    assert frame.loc[(0.0, 2 * ONE), "above_own_pct"] == pytest.approx(100 * (39.6 / 41 - 1), abs=2)
    assert frame.loc[[(0.8, ONE), (0.8, 2 * ONE)], "above_own_pct"].isna().all()
    note = next(note for note in table.notes if note.startswith("Tokens equal per student:"))
    assert "at F = 0, " in note
    assert "Tokens equal in total: " in note
    assert "the 2 students for one F" in " ".join(table.notes)


def test_nothing_to_compare_says_nothing(results: Results, table: Table) -> None:
    alone = results.lines[results.lines["elastic_budgets"].ne("")]
    only = Results(results.root, alone, partial=True)
    made = made_table(ELASTIC, only, Published.open(ROOT / "config" / "published.csv"), Bootstrap(100))
    assert made.frame["compared"].eq("").all()
    assert not any(note.startswith("Tokens equal") for note in made.notes)
    assert tolls_text(made.frame) == ""


def test_cells_of_several_budgets_have_none_of_their_own(results: Results, tmp_path: Path) -> None:
    cells = results.listed(ELASTIC).set_index("cell")["budget"]
    assert cells.filter(like="dial").isna().all()
    assert set(cells.filter(like="own")) == {0.0, 0.4}
    named = {row["cell"]: row["method"] for row in Origins.of(results, tmp_path).cells()}
    assert named["dial_s0-5e6f7a8b"] == "Budgeted LoRA, elastic"
    assert named["own_0.4_s0-5e6f7a8b"] == "Budgeted LoRA, F=0.4"


def test_the_figure_has_a_curve_for_each_training(results: Results) -> None:
    with context():
        figure = elastic_figure(results.of(FIGURES[ELASTIC]))
        [axes] = figure.axes
        drawn = {line.get_label(): (line.get_linestyle(), len(line.get_xdata())) for line in axes.lines}
        plt.close(figure)
    assert drawn == {
        "a training for this F, 154 k tokens": ("None", 2),
        "one training for every F, 154 k tokens": ("-", 3),
        "one training for every F, 307 k tokens": ("--", 3),
    }
