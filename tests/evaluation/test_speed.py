"""Built models, and how they are timed."""

import pytest
import torch
from torch import nn

from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import speed
from budgeted_lora.evaluation.speed import SpeedShape, build, clocked, describe, factor_ranks, take_turns
from budgeted_lora.method.cost import ModelShape, dense_macs, lora_macs, projections
from budgeted_lora.method.projections import BudgetedLinear
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import structure

SHAPE = ModelShape(layers=6, hidden=32, kv=8, ffn=128)
STUDENT = SpeedShape(shape=SHAPE, heads=4, kv_heads=1, vocab_size=50, rank=5)
CPU = torch.device("cpu")


def plan(budget: float) -> dict:
    rule = BudgetRule(budget=budget, start=0.1, end=0.3)
    return structure(SHAPE, rule, rank=5, svd_threshold=0.5, r_max=4).as_json()


@pytest.mark.parametrize("budget", [0.0, 0.4, 0.8])
def test_built_students_have_the_planned_weights(budget):
    planned = plan(budget)
    ranks = factor_ranks(SHAPE, planned["modules"])
    models = build(STUDENT, ranks, length=16, device=CPU)
    names = [module.name for module in projections(SHAPE)]
    weights = {
        arm: sum(weight.numel() for name in names for weight in model.get_submodule(name).parameters())
        for arm, model in models.items()
    }
    assert weights["dense"] == dense_macs(SHAPE)
    assert weights["compressed"] == planned["macs"]
    assert weights["lora_unmerged"] == dense_macs(SHAPE) + lora_macs(SHAPE, rank=5)
    for module in planned["modules"]:
        built = models["compressed"].get_submodule(module["name"])
        linears = [layer for layer in built.modules() if isinstance(layer, nn.Linear)]
        assert len(linears) == (1 if module["decision"] == "keep" else 2)
    assert planned["svd"] == (1 if budget == 0.8 else 0)


@pytest.mark.parametrize("length", [1, 64])
def test_unmerged_lora_keeps_two_paths_however_many_tokens_come(length, monkeypatch):
    model = build(STUDENT, {}, length=64, device=CPU)["lora_unmerged"]
    paths = []
    apart = BudgetedLinear._low_rank
    monkeypatch.setattr(BudgetedLinear, "_low_rank", lambda self, x: paths.append(1) or apart(self, x))
    with torch.inference_mode():
        model(torch.zeros(4, length, dtype=torch.long))
    assert len(paths) == len(projections(SHAPE))


def test_a_structure_that_contradicts_itself_is_refused():
    modules = plan(0.4)["modules"]
    with pytest.raises(BadInput, match="structure: 41 modules; expected the 42 projections"):
        factor_ranks(SHAPE, modules[1:])
    modules[0] = modules[0] | {"rank": 7}
    with pytest.raises(BadInput, match=r"q_proj has 320 MACs with decision drop and rank 7; expected 448 MACs"):
        factor_ranks(SHAPE, modules)


def test_arms_take_turns_and_each_comes_first():
    called = []
    arms = {name: lambda name=name: called.append(name) or float(len(called)) for name in "abc"}
    samples = take_turns(arms, repeats=6, warm_up=1)
    assert called == [*"abc", *"abc", *"bca", *"cab", *"abc", *"bca", *"cab"]
    assert {name: len(values) for name, values in samples.items()} == {"a": 6, "b": 6, "c": 6}
    assert min(samples["a"]) > 3  # the warm-up is not among the samples


def test_speedups_are_medians_of_the_ratios_within_a_round():
    dense, compressed = [4.0, 8.0, 4.0, 40.0, 4.0], [2.0, 4.0, 2.0, 20.0, 1.0]
    result = describe({"dense": dense, "compressed": compressed, "lora_unmerged": [6.0] * 5})
    assert result["dense"]["median_s"] == 4.0
    assert result["dense"]["q3_s"] == 8.0
    assert result["speedup"] == 2.0
    assert (result["speedup_q1"], result["speedup_q3"]) == (2.0, 2.0)  # a slow round slows both arms
    assert result["speedup_vs_lora"] == 3.0
    assert "speedup_vs_lora" not in describe({"dense": [1.0, 1.0], "compressed": [1.0, 1.0]})
    assert describe({"dense": [4.0, 500.0, 500.0], "compressed": [2.0, 250.0, 2.0]})["speedup"] == 2.0


def test_short_calls_are_repeated_within_a_sample(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    calls = []

    def run():
        calls.append(1)
        now[0] += 0.002

    sample = clocked(run, device=CPU, at_least=0.01)
    before = len(calls)
    assert sample() == pytest.approx(0.002)
    assert len(calls) - before == 5
