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
from budgeted_lora.reporting.uncertainty import Bootstrap

ROOT = Path(__file__).resolve().parents[2]
START = {"method": "budgeted_lora", "low_rank_init": "activation_svd", "order": "gradient"}
DIALLED = {"elastic_budgets": "[0.0, 0.4, 0.8]", "schedule": "", "controller": "greedy"}
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
        elastic = START | DIALLED | {"seed": seed}
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
    note = next(note for note in table.notes if note.startswith("Tokens equal per student (154 k):"))
    assert "at F = 0, " in note
    assert "Tokens equal in total (307 k): " in note
    assert "what 2 students, each for one F, read together" in " ".join(table.notes)


def test_nothing_to_compare_says_nothing(results: Results, table: Table) -> None:
    alone = results.lines[results.lines["elastic_budgets"].ne("")]
    only = Results(results.root, alone, partial=True)
    made = made_table(ELASTIC, only, Published.open(ROOT / "config" / "published.csv"), Bootstrap(100))
    assert made.frame["compared"].eq("").all()
    assert not any(note.startswith("Tokens equal") for note in made.notes)
    assert not any("Equal in total" in note for note in made.notes)


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


def world(root: Path, *students: dict[str, object]) -> Results:
    """Made-up results whose table lists these students; `settings` of one are the perplexities of its variants."""
    builder = write_results(root / "results" / "mini")
    for name in ("F0.4", "F0.0", "F0.4_multiple2", "F0.0_multiple2", "multiple2"):
        builder.variants[name] = {"budget": float(name[1:4])} if name[0] == "F" else {}
    for number, student in enumerate(students):
        add_cell(builder, f"student{number}", ELASTIC, 30.0 + number, **({"tokens": ONE} | START | student))
    builder.write_cells()
    return Results.open(root / "results" / "mini", partial=True)


def table_of(results: Results) -> Table:
    return made_table(ELASTIC, results, Published.open(ROOT / "config" / "published.csv"), Bootstrap(20))


@pytest.mark.parametrize(
    "other",
    [
        {"order": "energy"}, {"low_rank_init": "svd"}, {"rank": 8}, {"teacher": "1B"}, {"rank_step": 8},
        {"controller": "uniform"}, {"kd_weight": 0.5}, {"settings": {"multiple2": 30.0}},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_a_student_by_another_rule_is_not_compared(tmp_path: Path, other: dict[str, object]) -> None:
    dial = DIALLED | {"settings": {"F0.4": 33.0}}
    frame = table_of(world(tmp_path, {"budget": 0.4} | other, dial)).frame
    assert frame["compared"].eq("").all()
    assert frame["above_own_pct"].isna().all()
    assert len(frame) == 2
    [name] = other
    assert frame[{"settings": "setting"}.get(name, name)].nunique(dropna=False) == 2, "a column says why"


def test_the_total_counts_each_f_of_the_same_rule_once(tmp_path: Path) -> None:
    fixed = [{"budget": 0.4}, {"budget": 0.4, "schedule": "long"}, {"budget": 0.0}, {"budget": 0.8, "order": "energy"}]
    dials = [DIALLED | {"tokens": times * ONE, "settings": {"F0.4": 33.0}} for times in (1, 2, 3, 4)]
    made = table_of(world(tmp_path, *fixed, *dials))
    frame = made.frame[made.frame["elastic"]]
    assert frame["compared"].tolist() == ["equal per student", "equal in total", "", ""]
    assert made.frame["schedule"].tolist().count("long") == 1
    assert frame["above_own_pct"].iloc[0] == pytest.approx(10.0, abs=1), "to the first schedule"
    assert "what 2 students, each for one F" in " ".join(made.notes)


def test_equal_tokens_per_student_go_before_equal_in_total(tmp_path: Path) -> None:
    fixed = [{"budget": budget, "tokens": tokens} for budget in (0.4, 0.0) for tokens in (ONE, 2 * ONE)]
    frame = table_of(world(tmp_path, *fixed, DIALLED | {"tokens": 2 * ONE, "settings": {"F0.4": 33.0}})).frame
    assert frame.loc[frame["elastic"], "compared"].tolist() == ["equal per student"]


@pytest.fixture
def varied(tmp_path: Path) -> Results:
    """Two trainings for several F, of which one is compressed in two ways, and a student for one F in both ways."""
    both = {"F0.0": 44.0, "F0.4": 33.0, "F0.0_multiple2": 45.0, "F0.4_multiple2": 34.0}
    other = DIALLED | {"elastic_budgets": "[0.0, 0.4]", "settings": {"F0.0": 43.0, "F0.4": 32.0}}
    fixed = {"budget": 0.4, "settings": {"default": 30.0, "multiple2": 31.0}}
    return world(tmp_path, DIALLED | {"settings": both}, other, fixed)


def test_columns_tell_lines_apart(varied: Results) -> None:
    made = table_of(varied)
    names = ["budget", "elastic", "elastic_budgets", "setting"]
    assert {"Compression", "Trained for F of"} <= set(made.shown)
    assert not made.frame[names].duplicated().any()
    assert not {"schedule", "smoothing", "rank"} & set(made.frame)
    own = made.frame.set_index(["budget", "elastic_budgets", "setting"])["above_own_pct"]
    assert own[0.4, "[0.0, 0.4, 0.8]", "default"] == pytest.approx(100 * (33 / 30 - 1), abs=1)
    assert own[0.4, "[0.0, 0.4, 0.8]", "multiple2"] == pytest.approx(100 * (34 / 31 - 1), abs=1)
    [note] = [note for note in made.notes if note.startswith("Tokens equal")]
    assert "(154 k, Compression multiple2, Trained for F of [0.0, 0.4, 0.8]): " in note
    assert note.count("at F = 0.4") == 3


def test_each_training_and_compression_has_a_curve_of_its_own(varied: Results) -> None:
    with context():
        figure = elastic_figure(varied.of(FIGURES[ELASTIC]))
        [axes] = figure.axes
        drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
        figure.canvas.draw()
        box, [legend] = figure.bbox, figure.legends
        within = legend.get_window_extent()
        assert box.x0 <= within.x0 < within.x1 <= box.x1
        plt.close(figure)
    every, this = "one training for every F, 154 k tokens", "a training for this F, 154 k tokens"
    assert drawn == {
        f"{this}, Compression default": [0.4],
        f"{this}, Compression multiple2": [0.4],
        f"{every}, Compression default, Trained for F of [0.0, 0.4, 0.8]": [0.0, 0.4],
        f"{every}, Compression multiple2, Trained for F of [0.0, 0.4, 0.8]": [0.0, 0.4],
        f"{every}, Compression default, Trained for F of [0.0, 0.4]": [0.0, 0.4],
    }
