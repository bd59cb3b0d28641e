"""Compression: algebra of one projection in float64, and parity of whole students."""

import json
import math

import pytest
import torch
from fixtures.small_students import (
    LENGTH,
    RANK,
    compressed,
    dense_model,
    exact_budget,
    logit_difference,
    make_trained,
    planned,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MistralForCausalLM

from budgeted_lora.beyond.truncate import truncate_module
from budgeted_lora.config.sections import Compression
from budgeted_lora.errors import BadInput
from budgeted_lora.method.compress import compress_module
from budgeted_lora.models.compressed import COMPRESSED
from budgeted_lora.models.factorized import FactorizedLinear
from budgeted_lora.models.trained import TrainedStudent
from budgeted_lora.stages.compress_cell import compress_student, parity, summarize

MODULE = {
    "scale": 2.0,
    "rank_threshold": 0.5,
    "drop_threshold": 0.05,
    "svd_threshold": 0.5,
    "r_max": 8,
    "gate_hardening": "soft",
}


def parts(seed: int = 0, d_in: int = 12, d_out: int = 8) -> dict[str, torch.Tensor]:
    """Random W, A, B and open gates in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return {
        "weight": torch.randn(d_out, d_in, **draw),
        "a": torch.randn(RANK, d_in, **draw),
        "b": torch.randn(d_out, RANK, **draw),
        "gates": 0.6 + 0.3 * torch.rand(RANK, **draw),
    }


def trained_map(weight, a, b, gates, *, d: float, scale: float = 2.0) -> torch.Tensor:
    return d * weight + scale * b @ torch.diag(gates) @ a


# ---- one projection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1.0, 0.7, 0.5])
def test_keep_merges_everything_into_one_layer(d):
    done = compress_module(**parts(), **MODULE, d=d)
    assert done.decision == "keep"
    assert done.down is None
    assert done.up is None
    torch.testing.assert_close(done.dense, trained_map(**parts(), d=d))
    assert done.record["macs"] == done.record["dense_macs"] == 96
    assert done.record["exact"]


def test_drop_leaves_two_thin_layers():
    done = compress_module(**parts(), **MODULE, d=0.0)
    assert done.decision == "drop"
    assert done.dense is None
    torch.testing.assert_close(done.up @ done.down, trained_map(**parts(), d=0.0))
    assert done.down.shape == (RANK, 12)
    assert done.record["macs"] == RANK * (12 + 8)
    assert done.record["reconstruction_error"] < 1e-12
    assert done.record["exact"]


@pytest.mark.parametrize(("d", "r_max", "k"), [(0.4, 8, 3), (0.3, 10, 3), (0.05, 8, 1), (0.49, 40, 8)])
def test_svd_error_is_d_times_the_discarded_singular_values(d, r_max, k):
    given_parts = parts()
    done = compress_module(**given_parts, **(MODULE | {"r_max": r_max}), d=d)
    assert done.decision == "svd"
    assert done.record["svd_rank"] == k
    assert done.down.shape == (RANK + k, 12)
    assert done.up.shape == (8, RANK + k)
    discarded = torch.linalg.svdvals(given_parts["weight"])[k:]
    expected = d * discarded.square().sum().sqrt().item()
    assert done.record["reconstruction_error"] == pytest.approx(expected, abs=1e-12)
    norm = trained_map(**given_parts, d=d).norm().item()
    assert done.record["relative_error"] == pytest.approx(expected / norm, abs=1e-12)
    assert done.record["exact"] == (k == 8)
    assert done.record["macs"] == (RANK + k) * (12 + 8)


def test_gates_cut_ranks_and_the_error_says_so():
    given_parts = parts() | {"gates": torch.tensor([0.9, 0.5, 0.2, 0.8], dtype=torch.float64)}
    done = compress_module(**given_parts, **MODULE, d=0.0)
    assert done.record["lora_rank"] == 2
    assert not done.record["exact"]
    torch.testing.assert_close(done.down, given_parts["a"][[0, 3]])
    lost = trained_map(
        given_parts["weight"],
        given_parts["a"],
        given_parts["b"],
        given_parts["gates"] * torch.tensor([0, 1, 1, 0]),
        d=0.0,
    )
    assert done.record["reconstruction_error"] == pytest.approx(lost.norm().item())


def test_at_least_one_rank_stays():
    gates = torch.tensor([0.1, 0.3, 0.2, 0.05], dtype=torch.float64)
    done = compress_module(**(parts() | {"gates": gates}), **MODULE, d=0.0)
    torch.testing.assert_close(done.down, parts()["a"][[1]])


def test_hardening_to_one_drops_the_gate_values():
    given_parts = parts()
    done = compress_module(**given_parts, **(MODULE | {"gate_hardening": "one"}), d=0.0)
    torch.testing.assert_close(done.up @ done.down, 2.0 * given_parts["b"] @ given_parts["a"])
    assert not done.record["exact"]


def test_plain_lora_keeps_every_rank_whatever_the_threshold():
    given_parts = parts() | {"gates": None}
    done = compress_module(**given_parts, **(MODULE | {"rank_threshold": 1.0, "gate_hardening": "one"}), d=1.0)
    torch.testing.assert_close(done.dense, given_parts["weight"] + 2.0 * given_parts["b"] @ given_parts["a"])
    assert done.record["exact"]


@settings(max_examples=40, deadline=None)
@given(d=st.floats(0.0, 1.0), seed=st.integers(0, 5), threshold=st.floats(0.0, 1.0), r_max=st.integers(1, 40))
def test_recorded_error_is_that_of_the_factors(d, seed, threshold, r_max):
    given_parts = parts(seed)
    d = 0.0 if d < 0.05 else d
    done = compress_module(**given_parts, **(MODULE | {"rank_threshold": threshold, "r_max": r_max}), d=d)
    result = done.dense if done.dense is not None else done.up @ done.down
    error = (result - trained_map(**given_parts, d=d)).norm().item()
    assert math.isclose(done.record["reconstruction_error"], error, abs_tol=1e-10)
    assert not done.record["exact"] or error < 1e-10
    assert 1 <= done.record["lora_rank"] <= RANK


@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_truncated_svd_is_the_best_map_its_macs_allow(share, seed):
    weight = parts(seed)["weight"]
    done = truncate_module(weight, share=share)
    rank = done.record["svd_rank"]
    assert 1 <= rank == len(done.down) == done.up.shape[1]
    assert rank == 1 or done.record["macs"] <= share * 96 + 1e-9
    assert rank == 8 or (rank + 1) * 20 > share * 96
    left = torch.linalg.svdvals(weight)[rank:].norm().item()
    assert torch.linalg.matrix_norm(done.up @ done.down - weight).item() == pytest.approx(left, abs=1e-12)
    assert done.record["reconstruction_error"] == pytest.approx(left, abs=1e-12)


def test_a_truncated_rank_is_the_largest_multiple_that_its_macs_allow():
    ranks = {m: truncate_module(parts()["weight"], share=1.0, rank_multiple=m).record["svd_rank"] for m in (1, 2, 3, 5)}
    assert ranks == {1: 4, 2: 4, 3: 3, 5: 4}, "five ranks would cost more than the weight; four stay"


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 16, 64])
def test_rounded_ranks_are_the_planned_ones(multiple):
    budget = next(f / 100 for f in range(100) if planned(f / 100).totals.svd)
    plan, student = planned(budget, rank_multiple=multiple), make_trained(budget)
    after, records = compressed(student, rank_multiple=multiple, rank_threshold=0.0)
    assert [record["svd_rank"] for record in records] == [module.svd_rank for module in plan.modules]
    assert [record["macs"] for record in records] == [module.macs for module in plan.modules]
    widths = {name: module.down.out_features for name, module in after.named_modules() if hasattr(module, "down")}
    assert all(widths[record["name"]] == RANK + record["svd_rank"] for record in records if record["svd_rank"])
    _, cut = compressed(student, rank_multiple=multiple, rank_threshold=0.8)
    assert [record["svd_rank"] for record in cut] == [module.svd_rank for module in plan.modules], "whatever gates cut"


def test_a_full_student_is_truncated_to_the_macs_of_a_budget():
    student = TrainedStudent(dense_model(), {}, "kd_full")
    wanted = Compression(macs_of_budget=0.4)
    model, records = compress_student(student, variant=wanted, drop_threshold=0.0, macs=planned(0.4).totals.macs)
    totals = summarize(model, records, method="kd_full", rank=None)
    assert {record["decision"] for record in records} == {"svd"}
    assert 0.8 * planned(0.4).totals.macs < totals["macs"] <= planned(0.4).totals.macs
    assert totals["param_reduction_pct"] > 0
    with pytest.raises(BadInput, match="macs_of_budget on a budgeted_lora student; only KD Full is truncated"):
        compress_student(make_trained(0.4), variant=wanted, drop_threshold=0.05, macs=1)


def test_truncation_keeps_the_outputs_where_that_is_asked(tmp_path):
    """On inputs of unequal strength the outputs' SVD has the smaller error of outputs, and the weights' that of W."""
    x = torch.randn(400, 12, dtype=torch.float64) * torch.logspace(0, -2, 12, dtype=torch.float64)
    weight, moment = parts(3)["weight"], x.T @ x / 400
    of_weights, of_outputs = (truncate_module(weight, share=0.5, moment=metric) for metric in (None, moment))

    def outputs(done):
        return torch.linalg.matrix_norm(x @ (done.up @ done.down - weight).T).item()

    assert outputs(of_outputs) < outputs(of_weights)
    assert of_outputs.record["reconstruction_error"] > of_weights.record["reconstruction_error"]
    student = TrainedStudent(dense_model(), {}, "kd_full")
    wanted = Compression(macs_of_budget=0.4, truncation="outputs", undistilled=True)
    with pytest.raises(BadInput, match="outputs needs input statistics, which only an undistilled student has"):
        compress_student(student, variant=wanted, drop_threshold=0.0, macs=planned(0.4).totals.macs)


def test_half_precision_is_computed_in_float32():
    halves = {name: tensor.bfloat16() for name, tensor in parts().items()}
    assert compress_module(**halves, **MODULE, d=1.0).dense.dtype == torch.float32


# ---- whole students ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.0, "partly kept", 1.0, None])
def test_logits_agree_where_nothing_is_approximated(budget):
    budget = exact_budget() if budget == "partly kept" else budget
    student = make_trained(budget, gated=budget is not None)
    after, records = compressed(student)
    assert all(record["exact"] for record in records)
    assert logit_difference(student, after) < 2e-5
    assert logit_difference(make_trained(0.2), after) > 1e-2


def test_svd_changes_logits_and_is_marked():
    student = make_trained(exact_budget())
    partial = next(name for name, module in student.modules.items() if 0 < module.retention < 1)
    after, records = compressed(student, svd_threshold=0.999)
    (record,) = [record for record in records if not record["exact"]]
    assert record["name"] == partial
    assert record["decision"] == "svd"
    assert logit_difference(student, after) > 1e-3
    whole, _ = compressed(student, svd_threshold=0.999, r_max=10_000)
    assert logit_difference(student, whole) < 2e-5


@pytest.mark.parametrize("budget", [0.0, 0.3, 0.4, 0.8, 1.0])
def test_totals_are_the_planned_ones(budget):
    student = make_trained(budget)
    after, records = compressed(student)
    plan, sums = planned(budget), summarize(after, records, method="budgeted_lora", rank=RANK)
    assert sums["avg_rank"] == RANK
    for name, value in vars(plan.totals).items():
        assert sums[name] == pytest.approx(value), name
    weights = sum(p.numel() for name, p in after.named_parameters() if "_proj" in name)
    assert weights == plan.totals.macs


def test_projections_are_plain_linear_layers():
    after, records = compressed(make_trained(exact_budget()))
    for record in records:
        module = after.get_submodule(record["name"])
        layers = [item for item in module.modules() if isinstance(item, nn.Linear)]
        assert len(layers) == (1 if record["decision"] == "keep" else 2)
        assert isinstance(module, nn.Linear if record["decision"] == "keep" else FactorizedLinear)


@pytest.mark.parametrize("budget", [0.0, 0.4, 1.0])
def test_compressed_model_runs_the_macs_it_claims(budget):
    after, records = compressed(make_trained(budget))

    def flops(model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.zeros(1, LENGTH, dtype=torch.long))
        return counter.get_total_flops()

    saved = sum(record["dense_macs"] - record["macs"] for record in records)
    assert flops(dense_model()) - flops(after) == 2 * LENGTH * saved


def test_full_budget_is_lora_with_gates():
    """F = 1 keeps all projections, merges them, and stays a model of transformers' own class."""
    gated, plain = make_trained(1.0), make_trained(None, gated=False)
    with torch.no_grad():
        for one, other in zip(gated.modules.values(), plain.modules.values(), strict=True):
            one.gate_logits.fill_(50.0)
            one.lora_a.copy_(other.lora_a)
            one.lora_b.copy_(other.lora_b)
    after, _ = compressed(gated)
    assert type(after) is MistralForCausalLM
    assert logit_difference(plain, after) < 2e-5


def test_round_trip_through_the_auto_class(tmp_path):
    after, _ = compressed(make_trained(exact_budget()))
    after.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is COMPRESSED["mistral"]
    assert again.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in after.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "budgeted_mistral"
    ids = torch.arange(LENGTH)[None]
    assert torch.equal(again(ids).logits, after(ids).logits)
    tokens = again.generate(ids, max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, LENGTH + 3)


@pytest.mark.parametrize(("name", "rank"), [("model.layers.9.mlp.up_proj", 2), ("model.norm", 2), ("lm_head", 0)])
def test_config_with_wrong_factors_is_refused(name, rank):
    values = dense_model().config.to_dict()
    sizes = {key: values[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    kind = COMPRESSED["mistral"]
    config = kind.config_class(**sizes, **heads, factorized={name: rank})
    with pytest.raises(BadInput, match="factorized"):
        kind(config)


def test_parity_fails_loudly_when_it_should_hold():
    student, other = make_trained(0.0), make_trained(1.0)
    ids = torch.arange(LENGTH)[None]
    with pytest.raises(RuntimeError, match="approximated nothing, yet logits differ"):
        parity(student.model, other.model, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), exact=True)
