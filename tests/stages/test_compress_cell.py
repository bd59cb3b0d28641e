"""The compression stage: what lies in the folder, for each method, and what it refuses."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fixtures.small_students import (
    LENGTH,
    RANK,
    SHAPE,
    VOCAB,
    dense_model,
    exact_budget,
    logit_difference,
    make_trained,
    planned,
)
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, MistralForCausalLM, PreTrainedTokenizerFast

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.sections import Compression
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import projections
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.models.trained import TrainedStudent, load_trained, save_trained
from budgeted_lora.stages.compress_cell import PARITY_WINDOWS, compress_cell

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


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A student folder, validation tokens and a tokenizer."""
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
        "variant": Compression(r_max=8),
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
    assert result["totals"]["dropped"] == planned(exact_budget()).totals.dropped
    assert result["parity"]["exact"]
    assert result["parity"]["max_abs_logit_difference"] < 2e-5
    assert result["parity"]["tokens"] == PARITY_WINDOWS * LENGTH
    assert result["provenance"]["cell"] == "some-cell"
    assert result["provenance"]["values"]["settings"] == Compression(r_max=8).model_dump()
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


def test_a_multiple_is_recorded_where_there_is_one(inputs, tmp_path):
    result = run(inputs, make_trained(0.8), tmp_path, variant=Compression(r_max=8, rank_multiple=2))
    assert result["provenance"]["values"]["settings"]["rank_multiple"] == 2
    plan = planned(0.8, rank_multiple=2)
    assert [module["svd_rank"] for module in result["modules"]] == [module.svd_rank for module in plan.modules]
    assert result["parity"]["max_abs_logit_difference"] < result["parity"]["max_abs_logit"]


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
    assert [item.retention for item in again.modules.values()] == [item.retention for item in student.modules.values()]
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
