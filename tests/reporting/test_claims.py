"""Verdicts on made-up results: each is reached, and none where it must not be."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.claim_world import World

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.claims import verdicts as judged
from budgeted_lora.reporting.claims.evidence import Evidence
from budgeted_lora.reporting.claims.file import Order, Printed, Selection, Slip, Swapped, read_claims
from budgeted_lora.reporting.claims.verdicts import judge
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.standing import paper_proportions

ROOT = Path(__file__).resolve().parents[2]
CLAIMS, PUBLISHED = ROOT / "config" / "claims.yaml", ROOT / "config" / "published.csv"
PRINTED = Published.open(PUBLISHED).lines
MINI, SMOKE = (load_config(ROOT / "config" / f"{name}.yaml") for name in ("mini", "smoke"))
PAPER = load_config(ROOT / "config" / "paper.yaml", {"calibration": {"teachers": False}})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def order(**fields: object) -> Order:
    base = {"id": "x", "claim": "x", "source": "x", "kind": "order", "judged": "trends", "metric": "ppl"}
    base |= {"direction": "falling", "of": {"table": "table2", "method": "kd_full"}}
    base |= {"steps": [{"teacher": name} for name in ("0.13B", "0.5B", "1B")]}
    return Order.model_validate(base | fields)


def only(claim, evidence: Evidence) -> judged.Row:
    [row] = judge(claim, evidence, PRINTED)
    return row


# --- every verdict, from results


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((30.0, 28.0, 26.0), judged.REPRODUCED),
        ((30.0, 28.0, 28.001), judged.NOISE),
        ((30.0, 30.0, 30.0), judged.NOISE),
        ((30.0, 28.0, 29.0), judged.DIFFERS),
        ((30.0, 31.0, 20.0), judged.DIFFERS),
    ],
)
def test_a_trend_over_teachers(world: World, values: tuple[float, ...], verdict: str) -> None:
    for teacher, ppl in zip(("0.13B", "0.5B", "1B"), values, strict=True):
        world.cell("table2", "kd_full", ppl, teacher=teacher)
    row = only(order(), world.evidence(MINI))
    assert row.status == verdict
    assert re.fullmatch(
        r"validation windows, paired: [\d.]+( to [\d.]+)? %; training seeds: KD Full not measured", row.noise
    )
    assert "0.13B → 0.5B" in row.measured
    assert len(row.files.split()) == 3


def test_windows_that_agree_make_a_small_difference_clear(world: World) -> None:
    """Their common difficulty cancels: the spread of the perplexities themselves is far larger."""
    for teacher, ppl in zip(("0.13B", "0.5B", "1B"), (30.0, 29.9, 29.8), strict=True):
        world.cell("table2", "kd_full", ppl, teacher=teacher, noise=0.001)
    assert only(order(), world.evidence(MINI)).status == judged.REPRODUCED


def test_the_spread_of_seeds_takes_a_clear_trend_back(world: World) -> None:
    values = {"0.13B": (29.0, 30.0, 31.0), "0.5B": (29.5,), "1B": (29.0,)}
    for teacher, runs in values.items():
        for seed, ppl in enumerate(runs):
            world.cell("table2", "kd_full", ppl, teacher=teacher, seed=seed, noise=0.001)
    row = only(order(), world.evidence(MINI))
    assert row.status == judged.NOISE
    assert row.noise.endswith("; training seeds: KD Full 3.4 % (3 runs, t 4.3)")


def test_nothing_is_said_of_seeds_between_models_that_were_not_trained_here(world: World) -> None:
    for name, ppl in (("0.13B", 30.0), ("0.5B", 28.0)):
        world.model(f"teachers/{name}", ppl)
    world.cell("table2", "kd_full", 29.0)
    claim = order(of={}, steps=[{"model": "teachers/0.13B"}, {"model": "teachers/0.5B"}])
    row = only(claim, world.evidence(MINI))
    assert row.status == judged.REPRODUCED
    assert "seeds" not in row.noise


@pytest.mark.parametrize("what", ["cell", "perplexity.json", "perplexity_windows.parquet"])
def test_nothing_passes_on_a_missing_cell(world: World, what: str) -> None:
    folders = [world.cell("table2", "kd_full", ppl, teacher=t) for t, ppl in (("0.13B", 30), ("0.5B", 28), ("1B", 26))]
    if what == "cell":
        world.rows.pop()
    else:
        (world.root / folders[2] / what).unlink()
    row = only(order(), world.evidence(MINI))
    assert row.status == judged.NOT_RUN
    assert row.reason
    assert "0.13B → 0.5B" in row.measured


def test_a_table_that_the_scale_lacks_is_not_run(world: World) -> None:
    world.cell("table2", "kd_full", 30.0)
    assert only(order(of={"table": "table4"}), world.evidence(MINI)).reason == "this scale has no table4"


def test_students_of_different_making_are_not_averaged(world: World) -> None:
    for teacher in ("0.13B", "0.5B", "1B"):
        for weight in (0.5, 0.8):
            world.cell("table2", "kd_full", 30.0, teacher=teacher, kd_weight=weight)
    row = only(order(), world.evidence(MINI))
    assert row.status == judged.NOT_RUN
    assert "they differ in kd_weight" in row.reason


def test_other_validation_windows_are_refused(world: World) -> None:
    folders = [world.cell("table2", "kd_full", 30.0, teacher=name) for name in ("0.13B", "0.5B", "1B")]
    world.json(f"{folders[1]}/perplexity.json", {"value": 30.0, "conditions": {"validation_sha256": "cd"}})
    with pytest.raises(BadInput, match="other validation windows"):
        only(order(), world.evidence(MINI))


def test_trends_are_not_judged_at_smoke(world: World) -> None:
    for teacher, ppl in (("0.13B", 30), ("0.5B", 28), ("1B", 26)):
        world.cell("table2", "kd_full", ppl, teacher=teacher)
    assert only(order(), world.evidence(SMOKE)).status == judged.NOT_JUDGED
    assert only(order(), world.evidence(MINI)).status == judged.REPRODUCED


@pytest.mark.parametrize(
    ("change", "noise", "verdict"),
    [
        (1.001, 0.001, judged.REPRODUCED),
        (0.999, 0.001, judged.REPRODUCED),
        (1.001, 0.2, judged.NOISE),
        (1.012, 0.1, judged.NOISE),
        (1.05, 0.001, judged.DIFFERS),
        (0.95, 0.001, judged.DIFFERS),
    ],
)
def test_two_that_should_be_equal(world: World, change: float, noise: float, verdict: str) -> None:
    world.cell("table2", "kd_lora", 30.0, noise=noise)
    world.cell("table2", "budgeted_lora", 30.0 * change, noise=noise, budget=0.4)
    claim = next(claim for claim in read_claims(CLAIMS, PRINTED).claims if claim.id == "budget04-matches-lora")
    assert only(claim.model_copy(update={"each": [Selection(teacher="0.13B")]}), world.evidence(MINI)).status == verdict


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [((0.2, 0.3, 0.4), judged.REPRODUCED), ((0.2, 0.3, 0.29), judged.NOISE), ((0.4, 0.3, 0.5), judged.DIFFERS)],
)
def test_in_context_scores_have_the_spread_of_their_queries(
    world: World, scores: tuple[float, ...], verdict: str
) -> None:
    for teacher, score in zip(("0.13B", "0.5B", "1B"), scores, strict=True):
        world.cell("table2", "kd_full", 30.0, teacher=teacher, icl=score)
    row = only(order(metric="icl", direction="rising"), world.evidence(MINI))
    assert row.status == verdict
    assert row.tolerance == f"± {1.96 * math.sqrt(2):.2g} points"
    assert "guessing" not in row.reason


def test_scores_below_chance_are_said_to_be_so(world: World) -> None:
    for teacher, score in (("0.13B", 0.01), ("0.5B", 0.05), ("1B", 0.09)):
        world.cell("table2", "kd_full", 30.0, teacher=teacher, icl=score)
    assert "no better than guessing: all" in only(order(metric="icl", direction="rising"), world.evidence(MINI)).reason


def number_claim(metric: str = "ppl", source: str = "Table 2", **fields: object) -> Printed:
    base = {"id": "n", "claim": "n", "source": source, "kind": "printed", "judged": "paper", "table": "table2"}
    lines = {"source": source, "metric": metric, "method": "kd_lora"} | ({"teacher": "1B"} if metric == "ppl" else {})
    return Printed.model_validate(base | {"lines": lines} | fields)


@pytest.mark.parametrize(
    ("ppl", "noise", "verdict"),
    [(26.504, 0.0, judged.REPRODUCED), (26.6, 0.1, judged.NOISE), (27.5, 0.001, judged.DIFFERS)],
)
def test_a_printed_perplexity_at_the_papers_scale(world: World, ppl: float, noise: float, verdict: str) -> None:
    world.hardness *= noise
    world.cell("table2", "kd_lora", ppl, noise=noise, teacher="1B")
    assert only(number_claim(), world.evidence(PAPER)).status == verdict


def test_no_perplexity_stands_beside_the_papers_at_another_scale(world: World) -> None:
    world.cell("table2", "kd_lora", 26.5, teacher="1B")
    row = only(number_claim(), world.evidence(MINI))
    assert (row.status, row.published, row.measured) == (judged.NOT_JUDGED, "26.50", "")


@pytest.mark.parametrize(
    ("record", "verdict"),
    [({"as_published": True}, judged.REPRODUCED), ({"as_published": False}, judged.NOT_JUDGED), (None, judged.NOT_RUN)],
)
def test_numbers_of_students_wait_for_those_of_the_teachers(world: World, record: dict | None, verdict: str) -> None:
    world.hardness *= 0.0
    world.cell("table2", "kd_lora", 26.5, teacher="1B", noise=0.0)
    world.model("teachers/0.13B", 21.8, noise=0.0)
    if record is not None:
        world.json("calibration.json", record)
    calibrated = load_config(ROOT / "config" / "paper.yaml")
    row = only(number_claim(), world.evidence(calibrated))
    assert row.status == verdict
    assert ("calibration.json" in row.reason) == (verdict != judged.REPRODUCED)
    assert (row.measured == "26.50") == (verdict == judged.REPRODUCED)
    teachers = next(claim for claim in read_claims(CLAIMS, PRINTED).claims if claim.id == "table1-ppl")
    assert judge(teachers, world.evidence(calibrated), PRINTED)[0].status == judged.REPRODUCED
    trend = order(of={"table": "table2"}, steps=[{"method": "kd_lora"}, {"model": "teachers/0.13B"}])
    assert only(trend, world.evidence(calibrated)).status == judged.REPRODUCED


@pytest.mark.parametrize(
    ("compute", "config", "verdict"),
    [
        ((0.9138, 0.9138), MINI, judged.REPRODUCED),
        ((0.9138, 0.92), MINI, judged.DIFFERS),  # the mean would pass
        ((0.9138, None), MINI, judged.NOT_RUN),
        ((0.9138, 0.9138), SMOKE, judged.NOT_JUDGED),
    ],
)
def test_counts_need_the_papers_proportions_and_every_run(
    world: World, compute: tuple[float | None, ...], config, verdict: str
) -> None:
    for teacher, value in zip(("0.13B", "1B"), compute, strict=True):
        world.cell("table2", "kd_lora", 30.0, teacher=teacher, compute=value)
    claim = number_claim("train_compute", judged="proportions")
    row = only(claim, world.evidence(config))
    assert row.status == verdict
    assert verdict != judged.REPRODUCED or row.tolerance == "± 0.005"


def test_only_scales_with_the_papers_shapes_have_its_proportions() -> None:
    assert [paper_proportions(config) for config in (MINI, PAPER, SMOKE)] == [True, True, False]
    wider = MINI.model_copy(update={"lora": MINI.lora.model_copy(update={"rank": 8})})
    assert not paper_proportions(wider)


def test_ranks_are_the_papers_share_of_the_scales_rank(world: World) -> None:
    for rank, ppl in ((2, 40.0), (4, 36.0), (8, 33.0), (16, 31.0)):
        world.cell("table6", "kd_lora", ppl, rank=rank)
    claim = next(claim for claim in read_claims(CLAIMS, PRINTED).claims if claim.id == "ppl-falls-with-rank")
    assert only(claim, world.evidence(MINI)).status == judged.REPRODUCED
    world.rows = [row | {"rank": 2 * row["rank"]} for row in world.rows]
    assert only(claim, world.evidence(MINI)).status == judged.NOT_RUN


@pytest.mark.parametrize(
    ("kept", "dropped", "verdict"),
    [
        (17, 24, judged.INCONSISTENT),
        (24, 17, judged.REPRODUCED),
        (18, 23, judged.DIFFERS),
        (17, 17, judged.DIFFERS),
        (None, 24, judged.NOT_RUN),
    ],
)
def test_the_swapped_row(world: World, kept: int | None, dropped: int, verdict: str) -> None:
    totals = {"dropped": dropped} | ({} if kept is None else {"kept": kept})
    world.cell("table8", "budgeted_lora", 30.0, budget=0.8, totals=totals)
    claim = next(claim for claim in read_claims(CLAIMS, PRINTED).claims if isinstance(claim, Swapped))
    assert only(claim, world.evidence(MINI)).status == verdict
    assert only(claim, world.evidence(SMOKE)).status == judged.NOT_JUDGED


def test_slips_are_read_off_the_printed_numbers(world: World) -> None:
    world.cell("table2", "kd_full", 30.0)
    slips = [claim for claim in read_claims(CLAIMS, PRINTED).claims if isinstance(claim, Slip)]
    assert {only(claim, world.evidence(MINI)).status for claim in slips} == {judged.INCONSISTENT}
    [mixed] = [claim for claim in slips if claim.id == "slip-mixed"]
    corrected = [replace(line, text="28.11") if line.text == "28.13" else line for line in PRINTED]
    [row] = judge(mixed, world.evidence(MINI), corrected)
    assert row.status == judged.REPRODUCED


def test_what_the_paper_leaves_open_gets_no_verdict_on_the_measured_value(world: World) -> None:
    world.cell("table2", "budgeted_lora", 30.0, budget=0.4, teacher="1B", icl=0.056)
    claim = next(claim for claim in read_claims(CLAIMS, PRINTED).claims if claim.id == "figure2-budgets")
    rows = {row.published: row for row in judge(claim, world.evidence(PAPER), PRINTED)}
    assert {row.status for row in rows.values()} == {judged.OPEN}
    assert (rows["5.6"].measured, rows["5.0"].measured) == ("5.6 %", "")
    assert {row.measured for row in judge(claim, world.evidence(MINI), PRINTED)} == {""}
