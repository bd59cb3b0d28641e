"""The choice of F for a number of multiply-accumulates or weights, against shapes of published models."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.config.anatomy import Anatomy
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape
from budgeted_lora.planning.budgets import GRID, Choices, usual_rank

SMOLLM2 = Anatomy(layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, head_dim=64, vocab_size=49152, tied=True)
LAYER = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536  # weights of a layer's projections
FACTORS = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)  # of its low-rank paths, per rank


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        (ModelShape(layers=6, hidden=768, kv=192, ffn=3072), 128),  # the paper's
        (ModelShape(layers=30, hidden=576, kv=192, ffn=1536), 96),  # SmolLM2-135M
        (ModelShape(layers=24, hidden=896, kv=128, ffn=4864), 88),  # Qwen2.5-0.5B: 5/6 of 112, at which k gains nothing
        (ModelShape(layers=2, hidden=32, kv=16, ffn=48), 5),
    ],
)
def test_the_usual_rank_is_the_papers_in_proportion(shape: ModelShape, rank: int) -> None:
    assert usual_rank(shape) == rank


def test_ratios_are_those_counted_by_hand() -> None:
    choices = Choices(SMOLLM2, 30, 96)
    assert choices.whole_macs == 30 * LAYER
    assert choices.speedup(1.0) == 1.0
    assert choices.speedup(0.0) == pytest.approx(LAYER / (96 * FACTORS))
    assert choices.reduction(0.0) == pytest.approx(100 * (1 - 96 * FACTORS / LAYER))
    head = 49152 * 576
    assert choices.speedup_with_head(0.0) == pytest.approx((30 * LAYER + head) / (30 * 96 * FACTORS + head))


def test_a_student_with_half_of_the_layers_is_compared_with_the_whole_model() -> None:
    half = Choices(SMOLLM2, 15, 96)
    assert half.speedup(1.0) == 2.0
    assert half.largest_budget(speedup=2.0, asked="") == 1.0


@settings(deadline=None, max_examples=20)
@given(st.floats(1.0, 3.6))
def test_the_chosen_budget_is_the_largest_that_is_enough(speedup: float) -> None:
    choices = Choices(replace(SMOLLM2, layers=2), 2, 96)
    wanted = speedup
    budget = choices.largest_budget(speedup=wanted, asked="")
    assert choices.speedup(budget) >= wanted
    assert all(choices.speedup(larger) < wanted for larger in GRID if larger > budget)


def test_what_no_budget_reaches_is_refused_with_what_is_reachable() -> None:
    with pytest.raises(BadInput, match=r"^--speedup 4: no F .*; expected at most 3\.62x .*, 72 % fewer weights"):
        Choices(SMOLLM2, 30, 96).largest_budget(speedup=4.0, asked="--speedup 4")
    assert Choices(SMOLLM2, 30, 96).largest_budget(speedup=3.62, asked="") == 0.0
