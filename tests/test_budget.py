"""Cost model, schedule, controller and plan against every figure the paper prints, and their invariants."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.budget import cost
from budgeted_lora.budget.controller import Controller, greedy_targets, module_targets
from budgeted_lora.budget.cost import ModelShape, dense_macs, lora_macs, projections, train_compute
from budgeted_lora.budget.plan import Structure, decide, steps_needed, structure, svd_rank
from budgeted_lora.budget.report import render_plan
from budgeted_lora.budget.schedule import mean_fraction, target_fraction
from budgeted_lora.errors import BadInput

PAPER = ModelShape(layers=6, hidden=768, kv=192, ffn=3072)
MINI = ModelShape(layers=6, hidden=96, kv=24, ffn=384)
SHAPES = [pytest.param(PAPER, 128, 64, id="paper"), pytest.param(MINI, 16, 8, id="mini")]
SCHEDULES = {"short": (0.1, 0.3), "long": (0.1, 0.9), "none": (0.0, 0.0)}

fractions = st.floats(0.0, 1.0)
costs_lists = st.lists(st.integers(1, 10_000_000), min_size=1, max_size=60)
quick = settings(max_examples=60, deadline=None)


def plan(
    shape: ModelShape, rank: int, r_max: int, budget: float, schedule: str = "short", **options: object
) -> Structure:
    start, end = SCHEDULES[schedule]
    values = {
        "drop_threshold": 0.05,
        "svd_threshold": 0.5,
        "schedule": schedule,
        "controller": "greedy",
        "smoothing": 0.9,
    }
    return structure(shape, rank=rank, budget=budget, start=start, end=end, r_max=r_max, **(values | options))


def controller(costs: list[int], budget: float, schedule: str, **options: object) -> Controller:
    start, end = SCHEDULES[schedule]
    values = {"smoothing": 0.9, "drop_threshold": 0.05, "kind": "greedy"} | options
    return Controller(costs, budget=budget, start=start, end=end, **values)


# ---- cost model -------------------------------------------------------------------------------------------------


def test_macs_of_the_paper_shape():
    one_layer = ModelShape(layers=1, hidden=768, kv=192, ffn=3072)
    assert dense_macs(one_layer) == 8_552_448
    assert lora_macs(one_layer, rank=128) == 2_113_536
    assert dense_macs(PAPER) == 51_314_688
    assert lora_macs(PAPER, rank=128) == 12_681_216
    assert dense_macs(PAPER) + lora_macs(PAPER, rank=128) == 63_995_904


def test_mini_shape_is_the_paper_shape_at_one_eighth():
    assert dense_macs(MINI) * 64 == dense_macs(PAPER)
    assert lora_macs(MINI, rank=16) * 64 == lora_macs(PAPER, rank=128)


def test_projections_follow_registration_order():
    names = [module.name for module in projections(PAPER)]
    assert len(names) == 42
    assert names[:8] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert [module.kind for module in projections(PAPER)[:7]] == list(cost.KINDS)
    assert projections(PAPER)[-1].layer == 5


@pytest.mark.parametrize(("shape", "rank", "_r_max"), SHAPES)
@pytest.mark.parametrize(
    ("budget", "schedule", "rho", "compute"),
    [
        (0.4, "short", 0.52, 0.5938),
        (0.0, "short", 0.20, 0.3805),
        (0.0, "none", 0.0, 0.2471),
        (0.0, "long", 0.50, 0.5805),
    ],
)
def test_train_compute_of_budgeted_runs(shape, rank, _r_max, budget, schedule, rho, compute):
    start, end = SCHEDULES[schedule]
    found = mean_fraction(budget=budget, start=start, end=end)
    assert found == pytest.approx(rho, abs=1e-12)
    assert round(train_compute(shape, method="budgeted_lora", rank=rank, rho=found), 4) == compute
    assert round(plan(shape, rank, 8, budget, schedule).train_compute, 4) == compute


@pytest.mark.parametrize(("shape", "rank", "_r_max"), SHAPES)
def test_train_compute_of_the_baselines(shape, rank, _r_max):
    assert train_compute(shape, method="kd_full") == 1.0
    assert round(train_compute(shape, method="kd_lora", rank=rank), 4) == 0.9138
    with pytest.raises(BadInput, match="rank"):
        train_compute(shape, method="kd_lora")
    with pytest.raises(BadInput, match="rho"):
        train_compute(shape, method="budgeted_lora", rank=rank)


def test_flops_agree_with_counts_made_by_hand():
    """Per token at the paper's shape: 2 x 51.3M projections, 9.4M causal attention, 49.2M head of 32,000 entries."""
    attention, head = 6 * 2 * 768 * 1024, 2 * 768 * 32_000
    assert cost.forward_flops(PAPER, vocab_size=32_000, sequence_length=1024) == 2 * 51_314_688 + attention + head
    common = {"vocab_size": 32_000, "sequence_length": 1024}
    full = cost.step_flops(PAPER, method="kd_full", head_trained=True, **common)
    assert full == pytest.approx(6 * 51_314_688 + 3 * attention + 3 * head)
    frozen = cost.step_flops(PAPER, method="kd_lora", rank=128, head_trained=False, **common)
    assert frozen == pytest.approx(4 * 51_314_688 + 6 * 12_681_216 + 3 * attention + 2 * head)


def test_parameters_of_the_small_teacher():
    """102,648,576 weights in 12 layers and norms, as the vocabulary size was derived from."""
    teacher = ModelShape(layers=12, hidden=768, kv=192, ffn=3072)
    assert cost.parameters(teacher, vocab_size=32_000) - 2 * 32_000 * 768 == 102_648_576
    values = {"vocab_size": 2048, "train_embeddings_head_norms": False}
    lora = cost.trainable_parameters(MINI, method="kd_lora", rank=16, **values)
    assert lora == lora_macs(MINI, rank=16)
    assert cost.trainable_parameters(MINI, method="budgeted_lora", rank=16, **values) == lora + 42 * 16
    with_rest = cost.trainable_parameters(
        MINI, method="kd_lora", rank=16, vocab_size=2048, train_embeddings_head_norms=True
    )
    assert with_rest - lora == 2 * 2048 * 96 + 13 * 96


def test_shape_refuses_nonsense():
    with pytest.raises(BadInput, match="kv is 0"):
        ModelShape(layers=6, hidden=96, kv=0, ffn=384)


# ---- structure of each budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "rank", "r_max"), SHAPES)
@pytest.mark.parametrize(
    ("budget", "counts", "macs", "dense", "lora", "reduction", "reduction_vs_dense"),
    [
        (0.0, (0, 0, 42), 12_681_216, 4.05, 5.05, 80.2, 75.3),
        (0.4, (9, 0, 33), 29_491_200, 1.74, 2.17, 53.9, 42.5),
    ],
)
def test_structures_of_table_8(shape, rank, r_max, budget, counts, macs, dense, lora, reduction, reduction_vs_dense):
    found = plan(shape, rank, r_max, budget)
    assert (found.kept, found.svd, found.dropped) == counts
    assert found.macs * (PAPER.hidden // shape.hidden) ** 2 == macs
    assert found.params == found.macs
    assert round(found.speedup_vs_dense, 2) == dense
    assert round(found.speedup_vs_lora, 2) == lora
    assert round(found.param_reduction_pct, 1) == reduction
    assert round(found.param_reduction_vs_dense_pct, 1) == reduction_vs_dense


@pytest.mark.parametrize(("shape", "rank", "r_max"), SHAPES)
def test_budget_04_keeps_layer_3_gate_in_part(shape, rank, r_max):
    found = plan(shape, rank, r_max, 0.4)
    kept = {module.projection.name: module.d for module in found.modules if module.decision == "keep"}
    assert kept.pop("model.layers.3.mlp.gate_proj") == 0.7
    assert set(kept.values()) == {1.0}
    expected = {f"model.layers.{i}.mlp.{name}_proj" for i in (3, 4, 5) for name in ("gate", "up", "down")}
    assert set(kept) == expected - {"model.layers.3.mlp.gate_proj"}


@pytest.mark.parametrize(("shape", "rank", "r_max"), SHAPES)
def test_budget_08_has_one_svd_module(shape, rank, r_max):
    found = plan(shape, rank, r_max, 0.8)
    assert (found.kept, found.svd, found.dropped) == (17, 1, 24)
    (only,) = [module for module in found.modules if module.decision == "svd"]
    assert only.projection.name == "model.layers.0.mlp.gate_proj"
    assert only.d == 0.4
    assert only.svd_rank == round(0.4 * r_max)
    scale = PAPER.hidden // shape.hidden
    assert found.macs * scale**2 == 44_433_408 + 3840 * only.svd_rank * scale
    assert round(found.param_reduction_pct, 1) == 30.4
    assert round(found.param_reduction_vs_dense_pct, 1) in (13.2, 13.1)
    assert round(found.speedup_vs_dense, 2) == 1.15
    assert round(found.speedup_vs_lora, 2) == 1.44
    dropped = {module.projection.kind for module in found.modules if module.decision == "drop"}
    assert dropped == {"q", "k", "v", "o"}


def test_budget_08_range_of_reductions():
    """30.2 % with the SVD rank at its largest, 30.9 % at its smallest with the paper's mean rank of 122.5."""
    most = plan(PAPER, 128, 160, 0.8)
    assert next(module.svd_rank for module in most.modules if module.svd_rank) == 64
    assert round(most.param_reduction_pct, 1) == 30.2
    least = plan(PAPER, 128, 1, 0.8)
    thin = sum(m.projection.d_in + m.projection.d_out for m in least.modules if m.decision != "keep")
    cut = 1 - (least.macs - (128 - 122.5) * thin) / 63_995_904
    assert round(100 * cut, 1) == 30.9


def test_printed_row_of_budget_08_needs_another_budget():
    """The paper prints 24 kept and 17 dropped: that takes F = 0.90, which is at most 24.6 % smaller, not 30.6 %."""
    found = {f / 500: plan(PAPER, 128, 1, f / 500) for f in range(350, 500)}
    matching = {f: s for f, s in found.items() if (s.kept, s.svd, s.dropped) == (24, 1, 17)}
    assert {round(f, 2) for f in matching} == {0.9}
    assert max(s.param_reduction_pct for s in matching.values()) < 24.65


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_structure_does_not_depend_on_the_schedule(schedule):
    assert plan(PAPER, 128, 64, 0.4, schedule).modules == plan(PAPER, 128, 64, 0.4).modules


def test_full_budget_keeps_everything():
    found = plan(MINI, 16, 8, 1.0)
    assert (found.kept, found.svd, found.dropped) == (42, 0, 0)
    assert found.speedup_vs_dense == 1.0


def test_uniform_structure_gives_every_module_the_budget():
    low = plan(MINI, 16, 8, 0.4, controller="uniform")
    assert (low.kept, low.svd, low.dropped) == (0, 42, 0)
    assert {module.d for module in low.modules} == {0.4}
    high = plan(MINI, 16, 8, 0.6, controller="uniform")
    assert (high.kept, high.svd, high.dropped) == (42, 0, 0)


def test_any_drop_threshold_up_to_04_gives_the_same_structure():
    reference = {budget: plan(PAPER, 128, 64, budget).modules for budget in (0.0, 0.4, 0.8)}
    for threshold in (1e-6, 0.01, 0.2, 0.399):
        for budget, modules in reference.items():
            assert plan(PAPER, 128, 64, budget, drop_threshold=threshold).modules == modules


@pytest.mark.parametrize(
    ("d", "decision"), [(0.0, "drop"), (0.0499, "drop"), (0.05, "svd"), (0.4999, "svd"), (0.5, "keep"), (1.0, "keep")]
)
def test_decide_at_its_thresholds(d, decision):
    assert decide(d, drop_threshold=0.05, svd_threshold=0.5) == decision


def test_svd_rank_is_clipped():
    assert svd_rank(0.4, r_max=64, d_in=768, d_out=3072) == 26
    assert svd_rank(0.001, r_max=64, d_in=768, d_out=3072) == 1
    assert svd_rank(1.0, r_max=64, d_in=96, d_out=24) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 200}, "rank is 200; expected 1 to 192"),
        ({"r_max": 0}, "r_max is 0"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"start": 0.5}, "0 <= start <= end <= 1"),
        ({"svd_threshold": -1}, "svd_threshold is -1"),
    ],
)
def test_structure_refuses_nonsense(options, message):
    values = {
        "rank": 128,
        "budget": 0.4,
        "start": 0.1,
        "end": 0.3,
        "drop_threshold": 0.05,
        "svd_threshold": 0.5,
        "r_max": 64,
    }
    with pytest.raises(BadInput, match=message):
        structure(PAPER, **(values | options))


def test_json_has_the_promised_keys():
    record = plan(PAPER, 128, 64, 0.8).as_json()
    assert {
        "budget", "schedule", "kept", "svd", "dropped", "macs", "dense_macs", "speedup_vs_dense", "speedup_vs_lora",
        "param_reduction_pct", "train_compute", "modules",
    } <= set(record)  # fmt: skip
    assert record["schedule"] == "short"
    assert len(record["modules"]) == 42
    assert record["modules"][4] == {
        "name": "model.layers.0.mlp.gate_proj", "d": 0.4, "decision": "svd",
        "rank": 128, "svd_rank": 26, "macs": 3840 * 154,
    }  # fmt: skip
    assert sum(module["macs"] for module in record["modules"]) == record["macs"]


def test_rendered_plan_names_modules_compactly():
    text = render_plan([plan(PAPER, 128, 64, budget) for budget in (0.0, 0.4, 0.8)])
    assert "29,491,200" in text
    assert "1.74x" in text
    assert "53.9 %" in text
    assert "42.5 %" in text
    assert "drop: all 42 modules" in text
    assert "keep: layer 3 gate (d = 0.7), up, down; layers 4-5 gate, up, down\n" in text
    assert "drop: layers 0-2 q, k, v, o, gate, up, down; layers 3-5 q, k, v, o\n" in text
    assert "svd: layer 0 gate (d = 0.4, rank 26 + 128)\n" in text
    assert len({len(line) for line in text.splitlines()[3:8]}) == 1
    assert render_plan([]).startswith("No budget")


# ---- schedule ---------------------------------------------------------------------------------------------------


@quick
@given(budget=fractions, bounds=st.tuples(fractions, fractions), t=fractions, later=fractions)
def test_schedule_stays_in_bounds_and_never_rises(budget, bounds, t, later):
    start, end = sorted(bounds)
    now = target_fraction(t, budget=budget, start=start, end=end)
    then = target_fraction(max(t, later), budget=budget, start=start, end=end)
    assert budget <= then <= now <= 1.0
    assert now == 1.0 or t >= start
    assert now == budget or t < end


@quick
@given(budget=fractions, bounds=st.tuples(fractions, fractions))
def test_mean_fraction_is_the_integral(budget, bounds):
    start, end = sorted(bounds)
    points = 4000
    integral = (
        sum(target_fraction((i + 0.5) / points, budget=budget, start=start, end=end) for i in range(points)) / points
    )
    assert math.isclose(mean_fraction(budget=budget, start=start, end=end), integral, abs_tol=2 / points)


def test_schedule_without_cosine_starts_at_the_budget():
    assert target_fraction(0.0, budget=0.25, start=0.0, end=0.0) == 0.25
    assert target_fraction(0.2, budget=0.0, start=0.1, end=0.3) == pytest.approx(0.5)


# ---- controller -------------------------------------------------------------------------------------------------


@quick
@given(costs=costs_lists, fraction=fractions)
def test_greedy_meets_the_target(costs, fraction):
    targets = greedy_targets(costs, fraction)
    retained = sum(c * d for c, d in zip(costs, targets, strict=True))
    assert math.isclose(retained, fraction * sum(costs), rel_tol=1e-12, abs_tol=1e-9 * sum(costs))
    assert all(0.0 <= d <= 1.0 for d in targets)
    assert sum(0.0 < d < 1.0 for d in targets) <= 1
    assert fraction > 0.0 or targets == [0.0] * len(costs)
    assert fraction < 1.0 or targets == [1.0] * len(costs)


@quick
@given(costs=costs_lists, pair=st.tuples(fractions, fractions))
def test_greedy_is_monotone_in_the_fraction(costs, pair):
    low, high = sorted(pair)
    assert all(a <= b + 1e-9 for a, b in zip(greedy_targets(costs, low), greedy_targets(costs, high), strict=True))


@quick
@given(costs=costs_lists, fraction=fractions)
def test_greedy_takes_cheap_modules_first_and_ties_in_order(costs, fraction):
    targets = greedy_targets(costs, fraction)
    order = sorted(range(len(costs)), key=lambda index: (costs[index], index))
    assert all(targets[a] <= targets[b] for a, b in pairwise(order))


@quick
@given(
    costs=costs_lists,
    budget=fractions,
    schedule=st.sampled_from(sorted(SCHEDULES)),
    kind=st.sampled_from(["greedy", "uniform"]),
    smoothing=st.floats(0.0, 0.99),
)
def test_coefficients_fall_and_stay_at_zero(costs, budget, schedule, kind, smoothing):
    run = controller(costs, budget, schedule, kind=kind, smoothing=smoothing)
    before = list(run.coefficients)
    for n in range(50):
        now = run.step(n, steps=50)
        assert all(0.0 <= d <= previous for d, previous in zip(now, before, strict=True))
        assert all(d == 0.0 or d >= 0.05 for d in now)
        assert run.retained_fraction <= run.executed_fraction <= 1.0
        before = now


def test_controller_without_smoothing_follows_the_schedule():
    run = controller([module.macs for module in projections(MINI)], 0.4, "short", smoothing=0.0, drop_threshold=1e-9)
    for n in range(100):
        run.step(n, steps=100)
        assert run.retained_fraction == pytest.approx(run.target, abs=1e-9)
        assert run.target == target_fraction(n / 100, budget=0.4, start=0.1, end=0.3)


@pytest.mark.parametrize("budget", [0.0, 0.4, 0.8])
def test_long_run_ends_in_the_planned_structure(budget):
    planned = plan(MINI, 16, 8, budget)
    run = controller([module.macs for module in projections(MINI)], budget, "short")
    for n in range(300):
        run.step(n, steps=300)
    assert run.coefficients == pytest.approx([module.d for module in planned.modules], abs=1e-6)
    assert run.retained_fraction == pytest.approx(budget, abs=1e-6)


def test_uniform_controller_moves_all_modules_together():
    run = controller([5, 10, 100], 0.4, "short", kind="uniform")
    for n in range(200):
        assert len(set(run.step(n, steps=200))) == 1
    assert run.coefficients == pytest.approx([0.4] * 3)


def test_state_resumes_exactly():
    costs = [module.macs for module in projections(MINI)]
    whole, first, second = (controller(costs, 0.4, "long") for _ in range(3))
    for n in range(200):
        whole.step(n, steps=200)
    for n in range(117):
        first.step(n, steps=200)
    second.load(first.state())
    for n in range(117, 200):
        second.step(n, steps=200)
    assert second.coefficients == whole.coefficients


def test_controller_refuses_nonsense():
    with pytest.raises(BadInput, match=r"smoothing is 1\.0"):
        controller([1], 0.4, "short", smoothing=1.0)
    with pytest.raises(BadInput, match="kind is 'random'"):
        controller([1], 0.4, "short", kind="random")
    with pytest.raises(BadInput, match="at least one module"):
        controller([], 0.4, "short")
    with pytest.raises(BadInput, match="2 coefficients; expected 1"):
        controller([1], 0.4, "short").load([0.5, 0.5])
    with pytest.raises(BadInput, match="outside"):
        controller([1], 0.4, "short").load([1.5])


# ---- steps a run needs ------------------------------------------------------------------------------------------


def needed(budget: float, schedule: str, **options: object) -> int:
    start, end = SCHEDULES[schedule]
    values = {"smoothing": 0.9, "drop_threshold": 0.05, "controller": "greedy"} | options
    return steps_needed(MINI, budget=budget, start=start, end=end, **values)


@pytest.mark.parametrize("budget", [0.0, 0.4, 0.8])
def test_smoothing_needs_the_stated_steps(budget):
    assert 30 <= needed(budget, "short") <= 50
    assert 50 < needed(budget, "long") <= 200
    for schedule in ("short", "long"):
        assert needed(budget, schedule, smoothing=0.99) == pytest.approx(10 * needed(budget, schedule), rel=0.05)
    assert needed(0.0, "long") > 150


def simulated(budget: float, schedule: str, steps: int, **options: object) -> list[str]:
    run = controller([module.macs for module in projections(MINI)], budget, schedule, **options)
    for n in range(steps):
        run.step(n, steps=steps)
    return [decide(d, drop_threshold=run.drop_threshold, svd_threshold=0.5) for d in run.coefficients]


@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(0, 20).map(lambda i: i / 20),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    kind=st.sampled_from(["greedy", "uniform"]),
    smoothing=st.sampled_from([0.0, 0.5, 0.9]),
    longer=st.integers(0, 100),
)
def test_steps_needed_is_the_least_that_suffices(budget, schedule, kind, smoothing, longer):
    """Checked against the whole controller, of which `steps_needed` simulates two modules."""
    planned = [m.decision for m in plan(MINI, 16, 8, budget, schedule, controller=kind).modules]
    steps = needed(budget, schedule, smoothing=smoothing, controller=kind)
    assert simulated(budget, schedule, steps, smoothing=smoothing, kind=kind) == planned
    assert simulated(budget, schedule, steps + longer, smoothing=smoothing, kind=kind) == planned
    if steps > 1:
        assert simulated(budget, schedule, steps - 1, smoothing=smoothing, kind=kind) != planned


def test_full_budget_needs_one_step():
    assert needed(1.0, "short") == 1


def test_schedule_after_the_last_step_is_refused():
    with pytest.raises(BadInput, match="no run reaches"):
        steps_needed(MINI, budget=0.4, start=1.0, end=1.0, smoothing=0.9, drop_threshold=0.05, controller="greedy")


def test_module_targets_of_both_kinds():
    assert module_targets([1, 3], 0.75, kind="greedy") == [0.0, 1.0]
    assert module_targets([1, 3], 0.75, kind="uniform") == [0.75, 0.75]
