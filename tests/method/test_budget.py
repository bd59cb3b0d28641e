"""Cost model, schedule and controller against the paper's figures, and their invariants."""

import math
from itertools import pairwise

import pytest
from fixtures.budgets import MINI, PAPER, SCHEDULES, SHAPES, controller, plan, rule
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.errors import BadInput
from budgeted_lora.method import cost
from budgeted_lora.method.controller import greedy_targets, module_targets, whole_paths
from budgeted_lora.method.cost import ModelShape, dense_macs, lora_macs, projections, train_compute
from budgeted_lora.method.schedule import BudgetRule

fractions = st.floats(0.0, 1.0)
costs_lists = st.lists(st.integers(1, 10_000_000), min_size=1, max_size=60)
quick = settings(max_examples=60, deadline=None)


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
    mean = rule(budget, schedule).mean_fraction
    assert mean == pytest.approx(rho, abs=1e-12)
    assert round(train_compute(shape, method="budgeted_lora", rank=rank, rho=mean), 4) == compute
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
    small = cost.parameters(MINI, vocab_size=2048)
    values = {"all_weights": small, "train_embeddings_head_norms": False}
    lora = cost.trainable_parameters(MINI, method="kd_lora", rank=16, **values)
    assert lora == lora_macs(MINI, rank=16)
    assert cost.trainable_parameters(MINI, method="budgeted_lora", rank=16, **values) == lora + 42 * 16
    with_rest = cost.trainable_parameters(
        MINI, method="kd_lora", rank=16, all_weights=small, train_embeddings_head_norms=True
    )
    assert with_rest - lora == 2 * 2048 * 96 + 13 * 96


def test_shape_refuses_nonsense():
    with pytest.raises(BadInput, match="kv is 0"):
        ModelShape(layers=6, hidden=96, kv=0, ffn=384)


# ---- schedule ---------------------------------------------------------------------------------------------------


@quick
@given(budget=fractions, bounds=st.tuples(fractions, fractions), t=fractions, later=fractions)
def test_schedule_stays_in_bounds_and_never_rises(budget, bounds, t, later):
    start, end = sorted(bounds)
    made = BudgetRule(budget=budget, start=start, end=end)
    now, then = made.target_fraction(t), made.target_fraction(max(t, later))
    assert budget <= then <= now <= 1.0
    assert now == 1.0 or t >= start
    assert now == budget or t < end


@quick
@given(budget=fractions, bounds=st.tuples(fractions, fractions))
def test_mean_fraction_is_the_integral(budget, bounds):
    start, end = sorted(bounds)
    points, made = 4000, BudgetRule(budget=budget, start=start, end=end)
    integral = sum(made.target_fraction((i + 0.5) / points) for i in range(points)) / points
    assert math.isclose(made.mean_fraction, integral, abs_tol=2 / points)


def test_schedule_without_cosine_starts_at_the_budget():
    assert rule(0.25, "none").target_fraction(0.0) == 0.25
    assert rule(0.0).target_fraction(0.2) == pytest.approx(0.5)


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
@given(costs=costs_lists, fraction=fractions, data=st.data())
def test_whole_paths_fill_the_budget_and_are_what_a_walk_ends_at(costs, fraction, data):
    given_order = data.draw(st.none() | st.permutations(range(len(costs))))
    order, share = whole_paths(costs, fraction, given_order)
    targets = greedy_targets(costs, share, order)
    assert sorted(order) == list(range(len(costs)))
    assert set(targets) <= {0.0, 1.0}
    assert share <= fraction + 1e-6 / sum(costs)
    before = greedy_targets(costs, fraction, given_order)
    assert all(targets[index] == 1.0 for index, d in enumerate(before) if d == 1.0)
    spare = fraction * sum(costs) - sum(cost for cost, d in zip(costs, targets, strict=True) if d)
    assert all(cost > spare - 1e-5 for cost, d in zip(costs, targets, strict=True) if not d)


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
def test_retentions_fall_and_stay_at_zero(costs, budget, schedule, kind, smoothing):
    run = controller(costs, budget, schedule, controller=kind, smoothing=smoothing)
    before = list(run.retentions)
    for n in range(50):
        now = run.step(n, steps=50)
        assert all(0.0 <= d <= previous for d, previous in zip(now, before, strict=True))
        assert all(d == 0.0 or d >= 0.05 for d in now)
        assert 0.0 <= run.retained_fraction <= max(now) + 1e-12
        before = now


def test_controller_without_smoothing_follows_the_schedule():
    run = controller([module.macs for module in projections(MINI)], 0.4, "short", smoothing=0.0, drop_threshold=1e-9)
    for n in range(100):
        run.step(n, steps=100)
        assert run.retained_fraction == pytest.approx(run.target, abs=1e-9)
        assert run.target == rule(0.4).target_fraction(n / 100)


@pytest.mark.parametrize("budget", [0.0, 0.4, 0.8])
def test_long_run_ends_in_the_planned_structure(budget):
    planned = plan(MINI, 16, 8, budget)
    run = controller([module.macs for module in projections(MINI)], budget, "short")
    for n in range(300):
        run.step(n, steps=300)
    assert run.retentions == pytest.approx([module.d for module in planned.modules], abs=1e-6)
    assert run.retained_fraction == pytest.approx(budget, abs=1e-6)


def test_uniform_controller_moves_all_modules_together():
    run = controller([5, 10, 100], 0.4, "short", controller="uniform")
    for n in range(200):
        assert len(set(run.step(n, steps=200))) == 1
    assert run.retentions == pytest.approx([0.4] * 3)


def test_state_resumes_exactly():
    costs = [module.macs for module in projections(MINI)]
    whole, first, second = (controller(costs, 0.4, "long") for _ in range(3))
    for n in range(200):
        whole.step(n, steps=200)
    for n in range(117):
        first.step(n, steps=200)
    second.load(first.retentions)
    for n in range(117, 200):
        second.step(n, steps=200)
    assert second.retentions == whole.retentions


def test_controller_refuses_nonsense():
    with pytest.raises(BadInput, match=r"smoothing is 1\.0"):
        controller([1], 0.4, "short", smoothing=1.0)
    with pytest.raises(BadInput, match="controller is 'random'"):
        controller([1], 0.4, "short", controller="random")
    with pytest.raises(BadInput, match="at least one module"):
        controller([], 0.4, "short")
    with pytest.raises(BadInput, match="2 retentions; expected 1"):
        controller([1], 0.4, "short").load([0.5, 0.5])
    with pytest.raises(BadInput, match="outside"):
        controller([1], 0.4, "short").load([1.5])


def test_module_targets_of_both_kinds():
    assert module_targets([1, 3], 0.75, kind="greedy") == [0.0, 1.0]
    assert module_targets([1, 3], 0.75, kind="uniform") == [0.75, 0.75]
