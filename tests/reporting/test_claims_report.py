"""Verdicts as such, and as files and a section of the page."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_results import write_results
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from budgeted_lora.config.scale import load_config
from budgeted_lora.reporting.claims import verdicts as judged
from budgeted_lora.reporting.claims.evidence import Evidence, Measured, Missing
from budgeted_lora.reporting.claims.file import read_claims
from budgeted_lora.reporting.claims.table import claims_section
from budgeted_lora.reporting.claims.verdicts import Step, judge_number, judge_steps
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import write_table
from budgeted_lora.reporting.tables.unknowns import unknowns
from budgeted_lora.reporting.uncertainty import Bootstrap
from budgeted_lora.stages.judge_claims import judge_claims

ROOT = Path(__file__).resolve().parents[2]
CLAIMS, PUBLISHED = ROOT / "config" / "claims.yaml", ROOT / "config" / "published.csv"
PRINTED = Published.open(PUBLISHED).lines
MINI = load_config(ROOT / "config" / "mini.yaml")


# --- properties of the verdicts

GAPS = st.floats(-10, 10, allow_nan=False)
STEP = st.builds(lambda gap, tolerance: Step("", gap, tolerance, ""), GAPS, st.floats(0, 5))
STEPS_OF = st.lists(STEP, min_size=1, max_size=5)
FACTOR = st.floats(1, 100)


def noisier(steps: list[Step], factor: float) -> list[Step]:
    return [replace(step, tolerance=step.tolerance * factor) for step in steps]


def near(steps: list[Step | Missing]) -> list[Step | Missing]:
    """The same steps with a claim that both sides are equal within 1."""
    return [replace(step, margin=1.0) if isinstance(step, Step) else step for step in steps]


def verdicts(steps: list[Step | Missing]) -> tuple[str, str]:
    return judge_steps(steps), judge_steps(near(steps))


@given(STEPS_OF, FACTOR)
@hypothesis_settings(deadline=None, max_examples=200)
def test_more_noise_never_decides(steps: list[Step], factor: float) -> None:
    """Within noise stays so; a verdict either stays or becomes within noise, and never turns into its contrary."""
    for before, after in zip(verdicts(steps), verdicts(noisier(steps, factor)), strict=True):
        assert after in {before, judged.NOISE}


@given(st.floats(0, 10), st.floats(0, 1), st.floats(0, 5), FACTOR)
@hypothesis_settings(deadline=None, max_examples=200)
def test_more_noise_never_decides_on_a_number(off: float, rounding: float, tolerance: float, factor: float) -> None:
    before = judge_number(off=off, rounding=rounding, tolerance=tolerance)
    after = judge_number(off=off, rounding=rounding, tolerance=tolerance * factor)
    assert after in {before, judged.NOISE}
    assert before != judged.REPRODUCED or after == judged.REPRODUCED


@given(STEPS_OF, FACTOR, st.integers(0, 5))
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_missing_step_is_not_run_whatever_the_noise(steps: list[Step], factor: float, place: int) -> None:
    with_gap = noisier(steps, factor)
    with_gap.insert(place, Missing("no value"))
    assert verdicts(with_gap) == (judged.NOT_RUN, judged.NOT_RUN)


@given(STEPS_OF, st.randoms())
@hypothesis_settings(deadline=None, max_examples=100)
def test_the_order_of_comparisons_does_not_matter(steps: list[Step], random) -> None:
    mixed = list(steps)
    random.shuffle(mixed)
    assert verdicts(mixed) == verdicts(steps)


@given(STEPS_OF)
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_claim_and_its_contrary_are_never_both_reproduced(steps: list[Step]) -> None:
    turned = [replace(step, gap=-step.gap) for step in steps]
    found = {judge_steps(steps), judge_steps(turned)}
    assert found in (
        {judged.REPRODUCED, judged.DIFFERS},
        {judged.DIFFERS},
        {judged.NOISE},
        {judged.NOISE, judged.DIFFERS},
    )
    assert judge_steps(near(turned)) == judge_steps(near(steps))


@given(STEPS_OF)
@hypothesis_settings(deadline=None, max_examples=100)
def test_one_more_comparison_never_turns_differs_into_a_pass(steps: list[Step]) -> None:
    for count in range(1, len(steps)):
        if judge_steps(steps[:count]) == judged.DIFFERS:
            assert judge_steps(steps) == judged.DIFFERS
        if judge_steps(steps) == judged.REPRODUCED:
            assert judge_steps(steps[:count]) == judged.REPRODUCED


def test_equal_levels_have_no_tolerance_of_their_own() -> None:
    """A count is exact: one step up is clear, and none is not."""
    one, two = (Measured("dense_kept", (value,), ("f",), group=("kd_full", None)) for value in (1.0, 2.0))
    evidence = Evidence.__new__(Evidence)
    evidence.bootstrap = Bootstrap()
    assert evidence.tolerance(one, two) == 0.0
    assert judge_steps([Step("", 0.0, 0.0, "")]) == judged.NOISE
    assert judge_steps([Step("", 1.0, 0.0, "")]) == judged.REPRODUCED


# --- the whole file on a whole folder, and the page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with the results of the main tables, and its reports folder with claims.csv."""
    root = tmp_path_factory.mktemp("claims")
    write_results(root / "results" / "mini")
    out = root / "reports" / "mini" / "claims.csv"
    report = MINI.report.model_copy(update={"bootstrap": 100})
    config = MINI.model_copy(update={"report": report})
    paths = {"results": root / "results" / "mini", "published": PUBLISHED, "claims": CLAIMS, "out": out}
    judge_claims(**paths, config=config, standing=Standing())
    write_table(unknowns(config), out.parent / "tables")
    return root, out


def test_claims_csv_has_the_columns_of_the_design_and_every_claim(whole: tuple[Path, Path]) -> None:
    frame = pd.read_csv(whole[1], dtype=str, keep_default_na=False)
    assert list(frame.columns)[:6] == ["claim", "source", "published", "measured", "tolerance", "status"]
    assert set(frame["status"]) <= set(judged.VERDICTS)
    assert frame["id"].is_unique
    wanted = {claim.id for claim in read_claims(CLAIMS, PRINTED).claims}
    assert {name.split("/")[0] for name in frame["id"]} == wanted
    passed = frame[frame["status"].isin([judged.REPRODUCED, judged.NOISE, judged.DIFFERS])]
    assert (passed["measured"] != "").all()
    assert (passed["files"] != "").all()


def test_counts_are_reproduced_and_ablations_not_run(whole: tuple[Path, Path]) -> None:
    status = pd.read_csv(whole[1], dtype=str, keep_default_na=False).set_index("id")["status"]
    counts = [name for name in status.index if name.split("/")[0] in ("table8-kept", "table8-dropped", "table8-svd")]
    counts += [name for name in status.index if name.startswith(("table2-train", "table2-module", "table2-param"))]
    assert len(counts) == 19
    assert set(status[[name for name in counts if "kd_" not in name]]) == {judged.REPRODUCED}
    assert status["table8-swapped"] == judged.INCONSISTENT
    for name in ("warm-beats-scratch", "ppl-falls-with-rank", "short-decay-is-best", "mixed-is-best-lora"):
        assert status[name] == judged.NOT_RUN
    assert status["table2-ppl/kd_full/1B"] == judged.NOT_JUDGED


def test_the_markdown_says_the_same(whole: tuple[Path, Path]) -> None:
    frame = pd.read_csv(whole[1], dtype=str, keep_default_na=False)
    text = whole[1].with_suffix(".md").read_text()
    for verdict, count in frame["status"].value_counts().items():
        assert f"{verdict} {count}" in text.splitlines()[0]
        assert text.count(f"| {judged.VERDICTS[verdict]} {verdict} |") == count


def test_the_page_puts_contradicted_claims_first_and_names_files(whole: tuple[Path, Path]) -> None:
    out = whole[1]
    section = claims_section(out.parent)
    places = [list(judged.VERDICTS).index(row["status"]) for row in section["rows"]]
    assert places == sorted(places)
    assert section["rows"][0]["status"] == judged.DIFFERS
    assert section["rows"][0]["verdict"] == "✗ differs"
    assert sum(count for _, count in section["counts"]) == len(section["rows"])
    files = [path for row in section["rows"] for path in row["files"]]
    assert len(files) > 50
    assert all((whole[0] / "results" / "mini" / path).is_file() for path in files)


def test_verdicts_on_all_tables_are_shown_unless_they_are_older(tmp_path: Path) -> None:
    assert claims_section(tmp_path) is None
    for name in ("claims.csv", "claims_all.csv"):
        (tmp_path / name).write_text("claim,status\nx,not run\n")
        os.utime(tmp_path / name, (100, 100))
    assert claims_section(tmp_path)["file"] == "claims_all.csv"
    os.utime(tmp_path / "claims.csv", (101, 101))
    assert claims_section(tmp_path)["file"] == "claims.csv"


def test_unknown_constants_are_listed_with_the_value_used(whole: tuple[Path, Path]) -> None:
    frame = pd.read_csv(whole[1].parent / "tables" / "unknowns.csv", dtype=str).set_index("key")
    assert frame.loc["budget.smoothing", "value"] == "0.9"
    assert frame.loc["compression.r_max", "value"] == "8"
    assert frame.loc["training.learning_rate.kd_lora", "value"] == "0.005"
    assert not {"training.temperature", "training.weight_decay", "report.bootstrap"} & set(frame.index)
    assert not frame["meaning"].str.contains(re.escape("[U]")).any()
