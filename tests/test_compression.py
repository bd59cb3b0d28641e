"""Compression: algebra of one projection in float64, parity of whole students, and what lies in the folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

import budgeted_lora.compression.compress as compress
from budgeted_lora.budget.cost import ModelShape, projections
from budgeted_lora.budget.plan import structure
from budgeted_lora.compression.compress import compress_cell, compress_module, compress_student, parity, summarize
from budgeted_lora.config import Compression
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.grid import Recipe
from budgeted_lora.models.compressed import CompressedMistralConfig, CompressedMistralForCausalLM, FactorizedLinear
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.models.projections import install, set_dense
from budgeted_lora.models.trained import TrainedStudent, load_trained, save_trained

SHAPE = ModelShape(layers=2, hidden=32, kv=8, ffn=64)
RANK, LENGTH, VOCAB = 4, 16, 50
DEFAULTS = Compression(r_max=8)
MODULE = {
    "scale": 2.0,
    "rank_threshold": 0.5,
    "drop_threshold": 0.05,
    "svd_threshold": 0.5,
    "r_max": 8,
    "gate_hardening": "soft",
}
RECIPE = {
    "teacher": "0.13B", "init": "mixed", "student_layers": 2, "temperature": 3.0, "kd_weight": 0.8, "seed": 0,
    "steps": 100, "batch_windows": 2, "micro_batch_windows": 2, "sequence_length": LENGTH, "rows": "packed",
    "learning_rate": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0, "clip": 1.0, "warmup_fraction": 0.03,
    "warmup_cap": 2000, "precision": "float32",
}  # fmt: skip
LORA = {"rank": RANK, "alpha": 8.0, "dropout": 0.05}
BUDGET = {
    "schedule": "short", "schedule_start": 0.1, "schedule_end": 0.3, "controller": "greedy",
    "smoothing": 0.9, "drop_threshold": 0.05, "gate_logit": 2.0, "gate_lr_multiplier": 1.0,
}  # fmt: skip


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


def test_half_precision_is_computed_in_float32():
    halves = {name: tensor.bfloat16() for name, tensor in parts().items()}
    assert compress_module(**halves, **MODULE, d=1.0).dense.dtype == torch.float32


# ---- whole students ---------------------------------------------------------------------------------------------


def dense_model() -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=64,
        sliding_window=None,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return MistralForCausalLM(config).eval()


def make_trained(budget: float | None, *, gated: bool = True) -> TrainedStudent:
    """A student with random adapters; None gives plain LoRA, a budget the coefficients planned for it."""
    model = dense_model()
    modules = install(model, rank=RANK, alpha=8.0, dropout=0.05, gates=gated, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in modules.values():
            module.lora_b.normal_(std=0.2, generator=generator)
            if gated:
                module.gate_logits.uniform_(0.5, 3.0, generator=generator)
    if budget is not None:
        set_dense(modules, [item.d for item in planned(budget).modules])
    return TrainedStudent(model.eval(), modules, "budgeted_lora" if gated else "kd_lora")


def planned(budget: float):
    values = {"start": 0.1, "end": 0.3, "drop_threshold": 0.05, "svd_threshold": 0.5, "r_max": 8}
    return structure(SHAPE, rank=RANK, budget=budget, **values)


def compressed(student: TrainedStudent, **changes: object):
    return compress_student(student, settings=DEFAULTS.model_copy(update=changes), drop_threshold=0.05)


def logit_difference(student: TrainedStudent, after: nn.Module) -> float:
    ids = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return parity(student.model, after, ids=ids, mask=mask, exact=False)["max_abs_logit_difference"]


def exact_budget() -> float:
    """A budget at which some projections go, one stays in part and none is approximated."""
    for budget in (0.3, 0.35, 0.4, 0.45, 0.5):
        plan = planned(budget)
        if plan.dropped and not plan.svd and any(item.decision == "keep" and item.d < 1.0 for item in plan.modules):
            return budget
    raise AssertionError("no such budget for this shape")


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
    partial = next(name for name, module in student.modules.items() if 0 < module.dense < 1)
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
    assert weights == plan.macs


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
    assert type(again) is CompressedMistralForCausalLM
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
    with pytest.raises(BadInput, match="factorized"):
        CompressedMistralForCausalLM(CompressedMistralConfig(**sizes, **heads, factorized={name: rank}))


def test_parity_fails_loudly_when_it_should_hold():
    student, other = make_trained(0.0), make_trained(1.0)
    ids = torch.arange(LENGTH)[None]
    with pytest.raises(RuntimeError, match="approximated nothing, yet logits differ"):
        parity(student.model, other.model, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), exact=True)


# ---- the stage --------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A student folder, validation tokens and a tokenizer."""
    from tokenizers import Tokenizer, models

    save_model(dense_model(), tmp_path / "student")
    documents = torch.randint(1, VOCAB, (20, 15), generator=torch.Generator().manual_seed(0)).tolist()
    write_tokens(tmp_path / "validation.bin", iter(documents), vocab_size=VOCAB, eos_id=0)
    vocabulary = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path / "tokenizer")
    return {"student": tmp_path / "student", "tokens": tmp_path / "validation.bin", "tokenizer": tmp_path / "tokenizer"}


def run(inputs: Mapping[str, Path], trained: TrainedStudent, out: Path, **changes: object) -> dict:
    save_trained(out / "trained", trained.model, method=trained.method, modules=trained.modules)
    own = {
        "kd_full": {},
        "kd_lora": LORA | {"train_embeddings_head_norms": False},
        "budgeted_lora": LORA | BUDGET | {"budget": 0.4},
    }[trained.method]
    recipe = Recipe(method=trained.method, **RECIPE, **own)
    arguments = {
        "recipe": recipe,
        "cell": "some-cell",
        "scale": "smoke",
        "settings": {"r_max": 8},
        "trained": out / "trained",
    }
    compress_cell(**(arguments | dict(inputs) | {"out": out / "compressed"} | changes))
    return json.loads((out / "compressed" / "compression.json").read_text())


def test_stage_writes_a_model_that_loads(inputs, tmp_path):
    student = make_trained(exact_budget())
    result = run(inputs, student, tmp_path)
    folder = tmp_path / "compressed" / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= {
        file.name for file in folder.iterdir()
    }
    assert logit_difference(student, load_model(folder)) < 2e-5
    assert len(AutoTokenizer.from_pretrained(folder)) == VOCAB
    assert [record["name"] for record in result["modules"]] == [item.name for item in projections(SHAPE)]
    assert result["totals"]["dropped"] == planned(exact_budget()).dropped
    assert result["parity"]["exact"]
    assert result["parity"]["max_abs_logit_difference"] < 2e-5
    assert result["parity"]["tokens"] == compress.PARITY_WINDOWS * LENGTH
    assert result["provenance"]["cell"] == "some-cell"
    assert result["provenance"]["values"]["settings"]["svd_threshold"] == 0.5
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "F = 0.4, schedule short, greedy controller" in card


def test_stage_leaves_other_files_alone_and_repeats_its_bytes(inputs, tmp_path):
    (tmp_path / "compressed").mkdir()
    (tmp_path / "compressed" / "perplexity.json").write_text("{}")
    run(inputs, make_trained(0.8), tmp_path)
    first = (tmp_path / "compressed/model/model.safetensors").read_bytes()
    run(inputs, make_trained(0.8), tmp_path)
    assert (tmp_path / "compressed/model/model.safetensors").read_bytes() == first
    assert (tmp_path / "compressed" / "perplexity.json").read_text() == "{}"


def test_kd_full_is_copied_as_it_is(inputs, tmp_path):
    model = dense_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    result = run(inputs, TrainedStudent(model, {}, "kd_full"), tmp_path)
    again = load_model(tmp_path / "compressed" / "model")
    assert type(again) is MistralForCausalLM
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert result["parity"]["max_abs_logit_difference"] == 0.0
    totals = result["totals"]
    assert (totals["kept"], totals["speedup_vs_dense"], totals["param_reduction_pct"]) == (14, 1.0, 0.0)
    assert totals["avg_rank"] is None
    assert totals["speedup_vs_lora"] is None


def test_kd_lora_is_merged(inputs, tmp_path):
    student = make_trained(None, gated=False)
    result = run(inputs, student, tmp_path)
    again = load_model(tmp_path / "compressed" / "model")
    assert type(again) is MistralForCausalLM
    assert logit_difference(student, again) < 2e-5
    totals = result["totals"]
    assert (totals["kept"], totals["avg_rank"], totals["param_reduction_pct"]) == (14, RANK, 0.0)


def test_trained_student_round_trip(inputs, tmp_path):
    student = make_trained(0.4)
    save_trained(tmp_path / "trained", student.model, method=student.method, modules=student.modules)
    again = load_trained(student=inputs["student"], trained=tmp_path / "trained")
    assert [item.dense for item in again.modules.values()] == [item.dense for item in student.modules.values()]
    assert logit_difference(student, again.model) == 0.0
    record = json.loads((tmp_path / "trained" / "adapter.json").read_text())
    assert (record["method"], record["rank"], record["alpha"]) == ("budgeted_lora", RANK, 8.0)


def test_bad_inputs_are_named(inputs, tmp_path):
    student = make_trained(0.4)
    long = Recipe(method="budgeted_lora", **(RECIPE | {"sequence_length": 1000}), **LORA, **BUDGET, budget=0.4)
    with pytest.raises(BadInput, match="no window of 1000 tokens"):
        run(inputs, student, tmp_path, recipe=long)
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        run(inputs, student, tmp_path, tokenizer=tmp_path)
    with pytest.raises(BadInput, match="expected kd_full"):
        run(inputs, student, tmp_path, recipe=Recipe(method="kd_full", **RECIPE))
    assert not (tmp_path / "compressed" / "model").exists()
    trained = tmp_path / "trained"
    (trained / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(BadInput, match="does not fit"):
        load_trained(student=inputs["student"], trained=trained)
    (trained / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no such file"):
        load_trained(student=inputs["student"], trained=trained)
    (trained / "adapter.json").write_text(
        json.dumps({"method": "kd_lora", "modules": {"x": {"d": 1.0, "gates": None}}})
    )
    with pytest.raises(BadInput, match="no entry 'rank'"):
        load_trained(student=inputs["student"], trained=trained)
