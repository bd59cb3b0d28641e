"""Ablation tables, controls and seeds on synthetic result files: numbers, orders, pairing, the page."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_ablations import INITS, SCHEDULES, write_all

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.reporting.contents import CONTROLS, FIGURES, TABLES
from budgeted_lora.reporting.figures.pareto import MAC_SPEEDUP, MEASURED_SPEEDUP, pareto_points
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import Table, mean_text, write_table
from budgeted_lora.reporting.tables.controls import SMALLER, TRUNCATED, control_runs
from budgeted_lora.reporting.texts import texts
from budgeted_lora.reporting.uncertainty import Bootstrap, Drawn, Run, draw, lines
from budgeted_lora.stages.make_index import make_index

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Published.open(ROOT / "config" / "published.csv")
FAST = Bootstrap(100)
ABLATIONS = [name for name, shown in TABLES.items() if shown.target == "ablations"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablations") / "results" / "mini"
    write_all(folder, seeds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def results(root: Path) -> Results:
    return Results.open(root)


@pytest.fixture(scope="module")
def tables(results: Results) -> dict[str, Table]:
    names = [*ABLATIONS, CONTROLS, "my_sweep"]
    return {name: made_table(name, results, PUBLISHED, FAST) for name in names}


# Seeds


def two_lines() -> tuple[Drawn, list[Run], list[Run]]:
    """Two lines of seeds 0 and 1, the second one 1.0 and 1.2 above the first, and 100 above in a seed of its own."""
    first, second = ([Run(name, "default", seed) for seed in (0, 1)] for name in "ab")
    lone = Run("b", "default", 7)
    values = {first[0]: 10.0, first[1]: 11.0, second[0]: 11.0, second[1]: 12.2, lone: 110.0}
    noise = np.random.default_rng(0).normal(0.0, 1.0, 500)
    draws = {run: value + noise + 0.01 * i * noise for i, (run, value) in enumerate(values.items())}
    return Drawn(values, draws, 0.95), first, [*second, lone]


def test_a_difference_is_paired_by_seed_and_window() -> None:
    drawn, first, second = two_lines()
    found = drawn.difference(second, first)
    assert found is not None
    assert found.value == pytest.approx(1.1)
    assert found.sd == pytest.approx(np.std([1.0, 1.2], ddof=1))
    assert (found.seeds, found.same_sign, found.clear) == (2, True, True)
    assert found.standard_error < 0.05  # what the windows have in common cancels
    opposite = drawn.difference(first, second)
    assert opposite is not None
    assert opposite.value == pytest.approx(-found.value)


def test_seeds_of_two_signs_are_not_told_apart() -> None:
    drawn, first, second = two_lines()
    drawn.values[second[1]] = 10.9
    found = drawn.difference(second[:2], first)
    assert found is not None
    assert not found.same_sign
    assert not found.clear


def test_lines_without_a_common_seed_are_compared_by_their_means() -> None:
    drawn, first, second = two_lines()
    found = drawn.difference([second[2]], first)
    assert found is not None
    assert (found.value, found.seeds) == (pytest.approx(99.5), 0)
    assert np.isnan(found.sd)
    assert drawn.difference([Run("x", "default", 0)], first) is None


def test_one_seed_keeps_the_error_over_windows_and_several_show_their_spread(results: Results) -> None:
    scores = results.of(TABLES["table4"]).runs("my_sweep")
    frame = lines(scores, draw(results, scores, FAST))
    assert list(frame["seeds"]) == [2, 2]
    for _, line in frame.iterrows():
        mine = scores[scores["rank"] == line["rank"]]["ppl"]
        assert line["ppl"] == pytest.approx(mine.mean())
        assert line["ppl_sd"] == pytest.approx(mine.std(ddof=1))
        assert (line["ppl_low"], line["ppl_high"]) == (mine.min(), mine.max())
    assert mean_text(20.0, error=0.5, deviation=float("nan"), seeds=1) == "20.00 ± 0.50"
    assert mean_text(20.0, error=0.5, deviation=0.25, seeds=2) == "20.00 ± 0.25 (2 seeds)"


def test_table_2_says_how_many_seeds_and_how_far_apart(results: Results) -> None:
    table = made_table("table2", results, PUBLISHED, FAST)
    scores = results.of(TABLES["table2"]).scores().query("method == 'kd_full' and teacher == '0.13B'")
    row = table.frame.iloc[0]
    assert row["ppl_0.13B_seeds"] == 2
    assert row["ppl_0.13B_sd"] == pytest.approx(scores["ppl"].std(ddof=1))
    assert table.shown["PPL 0.13B"][0].endswith(" (2 seeds)")
    differences = made_table("table2_differences", results, PUBLISHED, FAST).frame
    assert set(differences["seeds"]) == {2}
    assert differences["difference_sd"].notna().all()


# Ablations


def test_orders_and_distances_stand_beside_the_paper_and_perplexities_do_not(tables: dict[str, Table]) -> None:
    for name, table in tables.items():
        assert not [c for c in table.frame.columns if c.startswith("ppl") and "published" in c], name
    frame = tables["table4"].frame.set_index("init")
    assert frame["order"].to_dict() == {"mixed": 1, "middle": 2, "last": 3, "first": 4}
    assert frame["order_published"].to_dict() == frame["order"].to_dict()
    assert frame.loc["first", "above_best_pct_published"] == pytest.approx(100 * (34.08 / 28.13 - 1))
    assert frame.loc["mixed", "to_best"] == 0.0
    assert frame.loc["last", "above_best_pct"] == pytest.approx(
        100 * frame.loc["last", "ppl"] / frame["ppl"].min() - 100
    )


def test_at_paper_scale_the_perplexities_stand_there_too(root: Path) -> None:
    shorter, paper = (Results.open(root, standing=Standing(models=True, length=length)) for length in (False, True))
    table = made_table("lora_construction", shorter, PUBLISHED, FAST)
    assert "ppl_published" not in table.frame, "the paper's corpus, a fraction of its tokens"
    table = made_table("lora_construction", paper, PUBLISHED, FAST)
    found = table.frame.set_index("init")["ppl_published"].to_dict()
    assert found == {"mixed": 31.14, "middle": 41.52, "last": 44.72, "first": 48.09}
    assert list(table.shown["Start"]) == list(INITS)


def test_a_table_says_how_far_its_order_is_the_papers(tables: dict[str, Table]) -> None:
    """Made so that T = 2 and T = 3 of the mixed student stand the other way round, too close to be told apart."""
    said = " ".join(tables["table5"].notes)
    assert "Of 15 pairs of rows 14 stand in the published order." in said
    apart, same = map(int, re.findall(r"tells (\d+) pairs apart; of these (\d+) stand", said)[0])
    assert same <= apart <= 15
    assert "Every student read 153,600 tokens." in said


def test_a_rank_is_paired_with_the_published_one_of_equal_share(tables: dict[str, Table]) -> None:
    frame = tables["table6"].frame
    assert list(frame["rank"]) == [2, 4, 8, 16]
    assert list(frame["rank_published"]) == [16, 32, 64, 128]
    assert list(frame["order_published"]) == [4, 3, 2, 1]


def test_table_7_has_train_compute_as_scheduled_as_executed_and_as_printed(tables: dict[str, Table]) -> None:
    frame = tables["table7"].frame.set_index("schedule")
    assert list(frame.index) == ["none", "short", "long"]
    for schedule, (_, cost) in SCHEDULES.items():
        assert frame.loc[schedule, "train_compute"] == cost
        assert frame.loc[schedule, "train_compute_executed"] == pytest.approx(cost + 0.01)
    assert frame["train_compute_published"].to_dict() == {"none": 0.25, "short": 0.38, "long": 0.58}
    assert frame["avg_rank_published"].to_dict() == {"none": 120, "short": 128, "long": 124}


def test_thresholds_compare_a_student_with_itself(tables: dict[str, Table], results: Results) -> None:
    frame = tables["thresholds"].frame
    assert len(frame) == 3 * 4
    assert set(zip(frame["rank_threshold"], frame["svd_threshold"], strict=True)) == {
        (rank, svd) for rank in (0.5, 0.9) for svd in (0.5, 0.75)
    }
    default = frame[frame["setting"] == "default"]
    assert (default["to_default"] == 0).all()
    row = frame[(frame["setting"] == "gate0.9") & (frame["budget"] == 0.4)].iloc[0]
    own = default[default["budget"] == 0.4].iloc[0]
    assert row["to_default"] == pytest.approx(row["ppl"] - own["ppl"])
    assert row["to_default_se"] < 0.5 * row["ppl_se"]


def test_a_table_that_no_code_knows_shows_what_its_rows_differ_in(tables: dict[str, Table]) -> None:
    table = tables["my_sweep"]
    assert list(table.frame["rank"]) == [3, 5]
    assert {"r", "PPL", "Order"} <= set(table.shown.columns)
    assert not [column for column in [*table.frame.columns, *table.shown.columns] if "published" in column]


# Controls


def test_controls_are_counted_against_the_scales_dense_student(results: Results) -> None:
    frame = control_runs(results).set_index("student_ffn")
    small = frame.loc[320]
    assert small["kind"] == SMALLER
    assert small["train_compute"] == pytest.approx(small["share"]) == pytest.approx(0.575, abs=1e-4)
    assert small["speedup_vs_dense"] == pytest.approx(1 / 0.575, rel=1e-4)
    truncated = frame[frame["kind"] == TRUNCATED]
    assert set(truncated["variant"]) == {"macsF0.4", "macsF0.0"}
    assert set(truncated["train_compute"]) == {1.0}


def test_a_control_is_compared_with_the_budget_of_its_macs(tables: dict[str, Table]) -> None:
    frame = tables["controls"].frame
    assert list(frame["kind"]) == [
        "KD Full", "KD LoRA", "Budgeted LoRA, F=0.4", TRUNCATED, SMALLER, "Budgeted LoRA, F=0.0", TRUNCATED, SMALLER,
    ]  # fmt: skip
    assert list(frame["beside"].iloc[2:]) == [0.4] * 3 + [0.0] * 3
    assert frame["to_budgeted"].isna().tolist() == [True] * 3 + [False] * 2 + [True] + [False] * 2
    assert frame.loc[3, "to_budgeted"] > 0 > frame.loc[4, "to_budgeted"]


def test_the_pareto_plots_show_controls(results: Results) -> None:
    points = pareto_points(results.of(FIGURES["pareto_mac_speedup"]), MAC_SPEEDUP)
    assert (points["kind"] == SMALLER).sum() == (points["kind"] == TRUNCATED).sum() == 2
    keys = ["method", "teacher", "budget", "kind", "controller", "variant"]
    assert points.groupby(keys, dropna=False).size().max() == 2
    timed = pareto_points(results.of(FIGURES["pareto_measured_speedup"]), MEASURED_SPEEDUP)
    assert set(timed["kind"]) == {""}
    assert set(timed[timed["method"] == "kd_full"]["seeds"]) == {2}


# The page


def page_of(results: Path, out: Path, *, contents: Path | None = None) -> str:
    """The page of what lies in `out`."""
    published, config = ROOT / "config" / "published.csv", load_config(ROOT / "config" / "mini.yaml")
    make_index(results=results, published=published, config=config, out=out, standing=Standing(), contents=contents)
    return (out / "index.html").read_text()


def test_the_page_folds_what_is_there_and_names_what_is_not(root: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(root, tmp_path / "results" / "mini"))
    out = tmp_path / "reports" / "mini"
    for name in ("table2", "table6", "thresholds", "controls"):
        write_table(made_table(name, Results.open(copied), PUBLISHED, FAST), out / "tables")
    contents = out / "contents" / "all.json"
    page = page_of(copied, out, contents=contents)
    assert "table5: not run yet" in page
    assert page.index('id="controls"') < page.index('id="table6"') < page.index('id="thresholds"')
    assert page.count('<details class="fold"') == 2  # of ablations
    assert page.count("<details") == page.count("</details>")
    local = [a for a in re.findall(r'href="([^"#]+)"', page) if not a.startswith("data:")]
    assert [a for a in local if not (out / a).is_file()] == []
    assert any("compressed/gate0.9_svd0.75/compression.json" in a for a in local)
    assert '"thresholds"' in contents.read_text()

    cell = next(iter(sorted((copied / "cells").glob("t6_*"))))
    (cell / "compressed" / "default" / "perplexity.json").unlink()
    assert "table6: it cannot be shown as it was made" in page_of(copied, out)
    for path in (copied / "cells").glob("kd-lora_1B*/compressed/default/perplexity.json"):
        path.unlink()
    with pytest.raises(BadInput, match=r"kd-lora_1B.*perplexity\.json: no such result"):
        page_of(copied, out)


def test_a_partial_ablation_shows_dashes(root: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(root, tmp_path / "mini"))
    for cell in (copied / "cells").glob("t6_8_*"):
        shutil.rmtree(cell / "compressed")
    for cell in (copied / "cells").glob("c2_*"):
        shutil.rmtree(cell)
    opened = Results.open(copied, partial=True)
    table = made_table("table6", opened, PUBLISHED, FAST)
    assert np.isnan(table.frame.set_index("rank").loc[8, "ppl"])
    assert table.frame.set_index("rank").loc[16, "order"] == 1
    empty = made_table("lora_construction", opened, PUBLISHED, FAST)
    assert set(empty.shown["PPL"]) == {"–"}
    assert any("t6_8_" in path for path in opened.missing)


def test_a_partial_mean_is_of_the_seeds_that_are_there(root: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(root, tmp_path / "mini"))
    assert list(made_table("my_sweep", Results.open(copied), PUBLISHED, FAST).frame["seeds"]) == [2, 2]
    for cell in (*(copied / "cells").glob("own_5_s1*"), *(copied / "cells").glob("own_3_*")):
        shutil.rmtree(cell / "compressed")
    opened = Results.open(copied, partial=True)
    table = made_table("my_sweep", opened, PUBLISHED, FAST).frame.set_index("rank")
    assert list(table["seeds"]) == [2, 1]
    left = next(copied.glob("cells/own_5_s0*/compressed/default/perplexity.json"))
    assert table.loc[5, "ppl"] == read_json(left)["value"]
    assert np.isnan(table.loc[3, "ppl"])
    assert any("own_5_s1" in path for path in opened.missing)
    with pytest.raises(BadInput, match="no such result"):
        made_table("my_sweep", Results.open(copied), PUBLISHED, FAST)


def test_every_table_has_a_title() -> None:
    assert {*TABLES} <= set(texts())


def test_every_numeric_column_is_raw(tables: dict[str, Table]) -> None:
    for name, table in tables.items():
        assert pd.api.types.is_numeric_dtype(table.frame["ppl"]), name
        assert len(table.frame) == len(table.shown), name
