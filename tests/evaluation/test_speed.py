import json
import math

import pytest
import torch
from torch import nn

from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import speed
from budgeted_lora.evaluation.speed import (
    SpeedShape,
    build,
    clocked,
    describe,
    factor_ranks,
    take_turns,
)
from budgeted_lora.files import write_json
from budgeted_lora.method.cost import (
    ModelShape,
    dense_macs,
    lora_macs,
    projections,
)
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import structure
from budgeted_lora.models.device import on_device
from budgeted_lora.stages.measure_speed import measure_speed

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


def test_speedups_are_ratios_of_medians_with_paired_quartiles():
    dense, compressed = [4.0, 8.0, 4.0, 40.0, 4.0], [2.0, 4.0, 2.0, 20.0, 1.0]
    result = describe({"dense": dense, "compressed": compressed, "lora_unmerged": [6.0] * 5})
    assert result["dense"]["median_s"] == 4.0
    assert result["dense"]["q3_s"] == 8.0
    assert result["speedup"] == 2.0
    assert (result["speedup_q1"], result["speedup_q3"]) == (2.0, 2.0)  # a slow round slows both arms
    assert result["speedup_vs_lora"] == 3.0
    assert "speedup_vs_lora" not in describe({"dense": [1.0, 1.0], "compressed": [1.0, 1.0]})


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


def test_threads_are_put_back_and_devices_checked():
    before = torch.get_num_threads()
    with on_device("cpu", threads=before + 1) as where:
        assert where.type == "cpu"
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(BadInput, match="device is 'gpu'"), on_device("gpu", threads=1):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="device is cuda"), on_device("cuda", threads=1):
            pass


def test_the_stage_writes_what_the_report_reads(tmp_path):
    planned = plan(0.8)
    out = tmp_path / "speed.json"
    write_json(tmp_path / "train.json", {"vocab_size": STUDENT.vocab_size})
    student = vars(STUDENT) | {"shape": vars(SHAPE)}
    del student["vocab_size"]
    measure_speed(
        student=student, structure=planned, tokens=tmp_path / "train.json", out=out, scale="smoke",
        batch=2, length=24, decode_tokens=3, repeats=3, threads=1, device="cpu",
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["mac_speedup"] == pytest.approx(planned["speedup_vs_dense"])
    assert result["mac_speedup_vs_lora"] == pytest.approx(planned["speedup_vs_lora"])
    for part in ("modules", "modules_decode", "prefill", "prefill_all_logits", "decode"):
        for name in ("speedup", "speedup_q1", "speedup_q3", "speedup_vs_lora"):
            assert math.isfinite(result[part][name])
            assert result[part][name] > 0
        assert all(len(result[part][arm]["samples_s"]) == 3 for arm in speed.ARMS)
    assert (result["modules"]["tokens"], result["modules_decode"]["tokens"]) == (48, 2)
    covered = sorted(name for kind in result["kinds"] for name in kind["modules"])
    assert covered == sorted(module["name"] for module in planned["modules"] if module["decision"] != "keep")
    assert result["provenance"]["values"]["shape"] == vars(SHAPE)
    assert result["threads"] == 1
