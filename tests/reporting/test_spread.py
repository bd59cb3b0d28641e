"""Tolerances against a reference worked out by hand, and whose seeds they come from."""

import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from fixtures.claim_world import World
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from budgeted_lora.config.scale import load_config
from budgeted_lora.reporting.claims import verdicts as judged
from budgeted_lora.reporting.claims.evidence import Evidence, Measured
from budgeted_lora.reporting.claims.file import Near, Order, Selection
from budgeted_lora.reporting.claims.verdicts import judge
from budgeted_lora.reporting.uncertainty import Group, quantile, spread_of, spread_text

MINI = load_config(Path(__file__).resolve().parents[2] / "config" / "mini.yaml")
# Ten times and more apart, as measured at mini.
FULL, LORA = (21.80, 21.82, 21.84), (23.16, 23.19, 23.25)
BUDGETS = {0.4: (98.0, 104.0, 111.0), 0.0: (68.9, 70.0, 71.1)}
T2 = 4.302652729749464  # Student's t of two degrees of freedom at 0.975: sqrt(2 * 0.95^2 / (1 - 0.95^2))
Z = statistics.NormalDist().inv_cdf(0.975)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three seeds of every method under the smallest teacher, one under the largest; windows make no difference."""
    made = World(tmp_path)
    made.hardness *= 0.0
    for seed in range(3):
        made.cell("table2", "kd_full", FULL[seed], seed=seed, noise=0.0)
        made.cell("table2", "kd_lora", LORA[seed], seed=seed, noise=0.0)
        for budget, values in BUDGETS.items():
            made.cell("table2", "budgeted_lora", values[seed], seed=seed, budget=budget, noise=0.0)
    made.cell("table2", "kd_full", 24.60, teacher="1B", noise=0.0)
    made.cell("table2", "kd_lora", 24.90, teacher="1B", noise=0.0)
    return made


def find(evidence: Evidence, method: str, teacher: str = "0.13B", table: str = "table2", **fields: object) -> Measured:
    found = evidence.find(Selection(table=table, method=method, teacher=teacher, **fields), "ppl")
    assert isinstance(found, Measured)
    return found


def deviation(*recipes: tuple[float, ...]) -> float:
    """Pooled standard deviation of ln PPL, by the textbook and without numpy."""
    logs = [[math.log(value) for value in runs] for runs in recipes]
    squares = sum(statistics.variance(runs) * (len(runs) - 1) for runs in logs)
    return math.sqrt(squares / sum(len(runs) - 1 for runs in logs))


def test_t_is_students() -> None:
    assert pytest.approx(math.sqrt(2 * 0.95**2 / (1 - 0.95**2)), rel=1e-12) == T2
    assert quantile(2, 0.95) == pytest.approx(T2, rel=1e-12)
    assert quantile(1, 0.95) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)  # Cauchy's
    assert quantile(math.inf, 0.95) == Z
    assert quantile(1e9, 0.95) == pytest.approx(Z, rel=1e-6)


def test_each_side_of_a_comparison_has_the_spread_of_its_own_method(world: World) -> None:
    evidence = world.evidence(MINI)
    lora, sparse, full = (
        find(evidence, "kd_lora"), find(evidence, "budgeted_lora", budget=0.4), find(evidence, "kd_full", "1B"),
    )  # fmt: skip
    reference = T2 * math.sqrt(deviation(LORA) ** 2 / 3 + deviation(BUDGETS[0.4]) ** 2 / 3)
    assert evidence.tolerance(lora, sparse) == pytest.approx(reference, rel=1e-9)
    assert evidence.tolerance(sparse, lora) == evidence.tolerance(lora, sparse)
    reference = T2 * math.sqrt(deviation(LORA) ** 2 / 3 + deviation(FULL) ** 2)  # one run under the larger teacher
    assert evidence.tolerance(lora, full) == pytest.approx(reference, rel=1e-9)
    reference = T2 * deviation(LORA) * math.sqrt(1 + 1 / 3)
    assert evidence.tolerance_to_print(lora) == pytest.approx(reference, rel=1e-9)


def test_windows_and_seeds_add_in_quadrature(world: World) -> None:
    for method, ppl in (("kd_full", 24.6), ("kd_lora", 24.9)):
        world.cell("table2", method, ppl, teacher="0.5B", noise=0.05)
    evidence = world.evidence(MINI)
    full, lora = find(evidence, "kd_full", "0.5B"), find(evidence, "kd_lora", "0.5B")
    windows = statistics.stdev((full.draws - lora.draws).tolist())
    assert windows > 0.001
    reference = math.sqrt((Z * windows) ** 2 + (T2 * deviation(FULL)) ** 2 + (T2 * deviation(LORA)) ** 2)
    assert evidence.tolerance(full, lora) == pytest.approx(reference, rel=1e-9)


def test_in_context_scores_have_the_spread_of_their_method_and_of_their_queries(world: World) -> None:
    scores = {"kd_full": (0.30, 0.31, 0.32), "kd_lora": (0.20, 0.25, 0.30)}
    for method, values in scores.items():
        for seed, score in enumerate(values):
            world.cell("table8", method, 30.0, seed=seed, kd_weight=0.5, icl=score)
    evidence = world.evidence(MINI)
    full, lora = (evidence.find(Selection(table="table8", method=method), "icl") for method in scores)
    spreads = (100 * statistics.stdev(values) for values in scores.values())
    reference = math.sqrt(2 * (Z * 1.0) ** 2 + sum((T2 * spread) ** 2 / 3 for spread in spreads))
    assert evidence.tolerance(full, lora) == pytest.approx(reference, rel=1e-9)


def test_a_quiet_method_gets_a_sharp_verdict_beside_a_noisy_one(world: World) -> None:
    """2 % between KD Full and KD LoRA, and 2 % between two students of F = 0.4."""
    world.cell("table2", "kd_full", 24.60, teacher="0.5B", noise=0.0)
    world.cell("table2", "kd_lora", 25.10, teacher="0.5B", noise=0.0)
    world.cell("table2", "budgeted_lora", 100.0, teacher="0.5B", budget=0.4, noise=0.0)
    world.cell("table2", "budgeted_lora", 102.0, teacher="1B", budget=0.4, noise=0.0)
    evidence = world.evidence(MINI)
    base = {"id": "x", "claim": "x", "source": "x", "kind": "order", "judged": "trends", "metric": "ppl"}
    base |= {"direction": "rising", "of": {"table": "table2"}}
    methods = [{"method": "kd_full", "teacher": "0.5B"}, {"method": "kd_lora", "teacher": "0.5B"}]
    budgeted = {"method": "budgeted_lora", "budget": 0.4}
    [quiet] = judge(Order.model_validate(base | {"steps": methods}), evidence, [])
    [noisy] = judge(
        Order.model_validate(base | {"steps": [budgeted | {"teacher": name} for name in ("0.5B", "1B")]}), evidence, []
    )
    assert (quiet.status, noisy.status) == (judged.REPRODUCED, judged.NOISE)
    assert "KD Full 0.092 % (3 runs, t 4.3), KD LoRA 0.2 % (3 runs, t 4.3)" in quiet.noise
    assert "F = 0.4 6.4 % (3 runs, t 4.3)" in noisy.noise
    world.rows = [row for row in world.rows if row["teacher"] != "1B"]
    [missing] = judge(
        Order.model_validate(base | {"steps": [budgeted | {"teacher": name} for name in ("0.5B", "1B")]}),
        world.evidence(MINI),
        [],
    )
    assert missing.status == judged.NOT_RUN


def test_equal_within_one_percent_needs_seeds_that_agree(world: World) -> None:
    """0.1 % apart: sure for two quiet students, not for a noisy one."""
    world.cell("table2", "kd_lora", 24.62, teacher="0.5B", noise=0.0)
    world.cell("table2", "kd_full", 24.60, teacher="0.5B", noise=0.0)
    world.cell("table2", "budgeted_lora", 24.60, teacher="0.5B", budget=0.4, noise=0.0)
    base = {"id": "x", "claim": "x", "source": "x", "kind": "near", "judged": "trends", "metric": "ppl"}
    base |= {"margin_pct": 1.5, "of": {"table": "table2", "teacher": "0.5B"}}
    sides = [[{"method": "kd_lora"}, other] for other in ({"method": "kd_full"}, {"method": "budgeted_lora"})]
    rows = [judge(Near.model_validate(base | {"steps": steps}), world.evidence(MINI), [])[0] for steps in sides]
    assert [row.status for row in rows] == [judged.REPRODUCED, judged.NOISE]


def test_a_budget_of_one_seed_borrows_from_the_other_budgets_and_says_so(world: World) -> None:
    world.cell("table8", "budgeted_lora", 80.0, budget=0.2, noise=0.0)
    evidence = world.evidence(MINI)
    spread = evidence.spread(find(evidence, "budgeted_lora", table="table8", budget=0.2))
    assert spread.deviation == pytest.approx(deviation(*BUDGETS.values()), rel=1e-9)
    assert (spread.degrees, spread.runs) == (4, 6)
    assert spread_text(spread, "ppl", confidence=0.95) == (
        "F = 0.2, one run, as of F = 0.4 and F = 0: 4.6 % (6 runs, t 2.78)"
    )


def test_a_method_of_one_seed_borrows_from_all_methods_and_says_so(world: World) -> None:
    world.rows = [row for row in world.rows if row["method"] != "kd_full" or row["seed"] == 0]
    evidence = world.evidence(MINI)
    spread = evidence.spread(find(evidence, "kd_full"))
    assert spread.deviation == pytest.approx(deviation(LORA, *BUDGETS.values()), rel=1e-9)
    assert spread_text(spread, "ppl", confidence=0.95).startswith(
        "KD Full, one run, as of KD LoRA and F = 0.4 and F = 0: "
    )


def test_without_several_seeds_anywhere_the_verdict_says_that_none_were_measured(world: World) -> None:
    world.rows = [row for row in world.rows if row["seed"] == 0]
    evidence = world.evidence(MINI)
    lora, full = find(evidence, "kd_lora"), find(evidence, "kd_full")
    assert evidence.tolerance(lora, full) == pytest.approx(0.0, abs=1e-12)
    said = evidence.covers([[lora, full]])
    assert re.search(r"training seeds: KD LoRA not measured, KD Full not measured$", said)


def test_a_run_that_is_missing_is_no_seed(world: World) -> None:
    """Two of three: their spread counts with one degree of freedom, and the mean of three is no value."""
    [gone] = [row["cell"] for row in world.rows if row["method"] == "kd_full" and row["seed"] == 2]
    (world.root / f"cells/{gone}/compressed/default/perplexity.json").unlink()
    evidence = world.evidence(MINI)
    assert not isinstance(evidence.find(Selection(table="table2", method="kd_full", teacher="0.13B"), "ppl"), Measured)
    spread = evidence.spread(find(evidence, "kd_full", "1B"))
    assert spread.deviation == pytest.approx(deviation(FULL[:2]), rel=1e-9)
    assert (spread.degrees, spread.runs) == (1, 2)


LEVELS = st.lists(st.floats(-5, 5), min_size=1, max_size=4)
GROUPS: list[Group] = [("kd_full", None), ("kd_lora", None), ("budgeted_lora", 0.4), ("budgeted_lora", 0.0)]
SAMPLES = st.dictionaries(st.sampled_from(GROUPS), st.lists(LEVELS, max_size=3))


@given(SAMPLES, st.sampled_from(GROUPS))
@hypothesis_settings(deadline=None, max_examples=200)
def test_no_other_methods_seeds_count_where_there_are_own_ones(samples: dict, group: Group) -> None:
    found = spread_of(group, samples)
    own = [runs for runs in samples.get(group, []) if len(runs) > 1]
    if own:
        assert found == spread_of(group, {group: own})
        assert found.degrees == sum(len(runs) - 1 for runs in own)
    else:
        assert group not in found.source
    assert found.half_width(0.95) >= Z * found.deviation


def test_tolerances_cover_what_they_promise() -> None:
    """Of comparisons of equals about 95 in 100 stay within, or more; with z in the place of t it is 81."""
    generator, sides = np.random.default_rng(5), (("kd_lora", None), ("budgeted_lora", 0.4))
    for first, second in ((0.001, 0.05), (0.02, 0.02)):
        within, trials = 0, 1500
        for _ in range(trials):
            runs = [generator.normal(0.0, spread, 3) for spread in (first, second)]
            samples = {group: [levels] for group, levels in zip(sides, runs, strict=True)}
            widths = [spread_of(group, samples).half_width(0.95) for group in sides]
            gap = runs[1].mean() - runs[0].mean()
            within += abs(gap) <= math.hypot(*widths) / math.sqrt(3)
        assert within / trials >= 0.935
        assert within / trials <= 0.995
