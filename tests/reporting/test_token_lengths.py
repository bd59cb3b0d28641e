"""The table and figure of several lengths of training, on made-up results, and the power law behind them."""

from math import isnan, log
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_ablations import add_cell
from fixtures.synthetic_results import write_results
from hypothesis import given
from hypothesis import strategies as st

from budgeted_lora.reporting.contents import FIGURES, TOKENS
from budgeted_lora.reporting.figures.style import context
from budgeted_lora.reporting.figures.tokens import tokens_figure
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table, millions
from budgeted_lora.reporting.tables.tokens import NEAREST, PowerLaw, fit, length_curves, meeting_text
from budgeted_lora.reporting.uncertainty import Bootstrap

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (153600, 4 * 153600, 16 * 153600)
TEACHER = 16.0
LORA, BUDGETED = PowerLaw(a=100.0, b=0.5, floor=log(TEACHER)), PowerLaw(a=4000.0, b=0.7, floor=log(TEACHER))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """KD LoRA and the paper's rule on known power laws, another rule at one length, a smaller KD Full at two."""
    root = tmp_path_factory.mktemp("tokens") / "results" / "mini"
    builder = write_results(root)
    builder.perplexity("teachers/0.13B", TEACHER)
    for tokens in LENGTHS:
        add_cell(builder, f"lora_{tokens}", TOKENS, LORA.perplexity(tokens), method="kd_lora", tokens=tokens)
        ppl = BUDGETED.perplexity(tokens)
        add_cell(builder, f"paper_{tokens}", TOKENS, ppl, method="budgeted_lora", budget=0.4, tokens=tokens)
    add_cell(builder, "svd", TOKENS, 30.0, method="budgeted_lora", budget=0.4, low_rank_init="svd", tokens=LENGTHS[0])
    for tokens in LENGTHS[:2]:
        smaller = {"student_layers": 4, "student_ffn": 320}
        add_cell(builder, f"small_{tokens}", TOKENS, 24.0, method="kd_full", tokens=tokens, **smaller)
    builder.write_cells()
    return Results.open(root, partial=True)


@pytest.fixture(scope="module")
def table(results: Results) -> Table:
    return made_table(TOKENS, results, Published.open(ROOT / "config" / "published.csv"), Bootstrap(100))


def test_one_line_per_student_and_one_column_per_length(table: Table) -> None:
    names = ["smaller KD Full, 4 layers, FFN 320", "KD LoRA", "Budgeted LoRA, F=0.4", "Budgeted LoRA, F=0.4: SVD of W"]
    assert list(table.frame["student"]) == names
    headings = [f"PPL, {millions(count)}" for count in LENGTHS]
    assert [name for name in table.shown if name.startswith("PPL")] == headings
    lora = table.frame.set_index("student").loc["KD LoRA"]
    assert [lora[f"ppl_{count}"] for count in LENGTHS] == pytest.approx(
        [LORA.perplexity(count) for count in LENGTHS],
        rel=0.02,  # made-up windows scatter
    )


def test_exponents_and_meeting_follow_from_the_perplexities_shown(table: Table, results: Results) -> None:
    lines = table.frame.set_index("student")
    floor = results.teachers().set_index("name").loc["0.13B", "ppl"]
    laws = []
    for name in ("KD LoRA", "Budgeted LoRA, F=0.4"):
        shown = np.array([lines.loc[name, f"ppl_{count}"] for count in LENGTHS])
        law = fit(np.array(LENGTHS, dtype=float), shown, teacher_ppl=floor)
        assert law is not None
        assert lines.loc[name, "exponent"] == pytest.approx(law.b)
        laws.append(law)
    assert laws[0].b < laws[1].b
    meeting = lines.loc["Budgeted LoRA, F=0.4", "meets_kd_lora"]
    assert meeting == pytest.approx(laws[1].meets(laws[0]))
    assert meeting > LENGTHS[-1]
    assert "extrapolated" in table.shown.iloc[2]["Meets KD LoRA at"]


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (float("nan"), "–"), (100_000.0, "before the shortest"), (1_000_000.0, "1 M"),
        (74e6, "74 M (extrapolated)"), (1e30, "never in reach"),
    ],
)  # fmt: skip
def test_a_meeting_outside_the_lengths_is_not_shown_as_measured(place: float, shown: str) -> None:
    assert meeting_text({"meets_kd_lora": place}, lengths=[300_000, 4_900_000]) == shown


def test_too_few_lengths_or_no_excess_are_not_fitted(table: Table) -> None:
    assert table.frame["exponent"].isna().tolist() == [True, False, False, True]
    better_than_teacher = np.array([20.0, 17.0, 15.9])
    assert fit(np.array(LENGTHS, dtype=float), better_than_teacher, teacher_ppl=TEACHER) is None
    nearly_the_teacher = np.array([20.0, 17.0, 16.01])
    assert fit(np.array(LENGTHS, dtype=float), nearly_the_teacher, teacher_ppl=TEACHER) is None


@given(st.floats(0.1, 1e4), st.floats(0.05, 1.5), st.floats(1.0, 100.0))
def test_any_power_law_is_found_again(a: float, b: float, teacher: float) -> None:
    law = PowerLaw(a=a, b=b, floor=log(teacher))
    tokens = np.array([1e5, 1e6, 1e7, 3e7])
    excess = a * tokens**-b
    if excess.max() > 100 or abs(excess.min() - NEAREST) < 1e-9:  # beyond float64, or on the edge of what is fitted
        return
    found = fit(tokens, teacher * np.exp(excess), teacher_ppl=teacher)
    assert (found is None) == (excess.min() < NEAREST)
    if found is None:
        return
    assert found.b == pytest.approx(law.b, abs=1e-4)


@given(st.floats(0.1, 1e3), st.floats(0.1, 1e3), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_two_laws_are_equal_where_they_meet(a: float, c: float, b: float, d: float) -> None:
    one, other = PowerLaw(a=a, b=b, floor=0.0), PowerLaw(a=c, b=d, floor=0.0)
    place = one.meets(other)
    if isnan(place):
        assert b == d or abs(log(a / c)) >= 99 * abs(b - d)
    else:
        assert log(a) - b * log(place) == pytest.approx(log(c) - d * log(place), abs=1e-6)


def test_the_figure_has_a_point_per_student_and_length(results: Results) -> None:
    with context():
        figure = tokens_figure(results.of(FIGURES[TOKENS]))
        axes = figure.axes[0]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        counts = [len(bars.lines[0].get_xdata()) for bars in axes.containers]
        plt.close(figure)
    assert labels == ["teacher 0.13B", "a fitted law, continued", *(curve.label for curve in length_curves(results))]
    assert counts == [len(curve.points) for curve in length_curves(results)]
