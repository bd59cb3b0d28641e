"""Every accepted family, from a folder as the Hub has it to a compressed model that is read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.families import CHAT, FAMILIES, IDS, LAYERS, ROWS, TOKENS, logits, random_model, write_checkpoint
from fixtures.training_world import make_recipe
from fixtures.whole_chain import train_and_compress
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from budgeted_lora.beyond.statistics import measure
from budgeted_lora.config.sections import Teacher
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.files import read_json, write_digest
from budgeted_lora.method.compress import compress_modules
from budgeted_lora.method.projections import install, named_projections
from budgeted_lora.models.compressed import COMPRESSED
from budgeted_lora.models.load import load_model, save_model, tied_names
from budgeted_lora.models.plain import compressed_model
from budgeted_lora.models.student import cut
from budgeted_lora.models.trained import load_trained, save_trained
from budgeted_lora.stages.copy_tokenizer import copy_tokenizer
from budgeted_lora.stages.cut_student import cut_student
from budgeted_lora.stages.fetch_teacher import fetch_teacher
from budgeted_lora.training.cache import read_head
from budgeted_lora.training.install import install_method

TIED = {"gemma", "gemma3_text", "llama", "qwen2", "qwen3", "smollm3"}
BIASED = {"llama-biased": 7, "qwen2": 3}  # projections with a bias in each layer
METHODS = {"kd_full": {}, "kd_lora": {}, "budgeted_lora": {"budget": 0.4}}
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_a_folder_of_the_hub_loads_as_transformers_loads_it(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "hub", family, shards=True)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_model(folder)
    assert torch.equal(logits(model), logits(expected))
    assert bool(tied_names(model)) == (family in TIED)
    biases = sum(linear.bias is not None for _, _, _, linear in named_projections(model))
    assert biases == LAYERS * BIASED.get(family, 0)
    assert torch.equal(read_head(folder).float(), model.lm_head.weight)


@every_family
def test_a_cut_keeps_what_each_layer_is(family: str) -> None:
    teacher = random_model(family)
    assert torch.equal(logits(cut(teacher, init="first", depth=LAYERS)), logits(teacher))
    # A student of layers 0, 2 and 5 is the teacher in which the other layers change nothing.
    student = cut(teacher, init="mixed", depth=3)
    for layer in (1, 3, 4):
        teacher.model.layers[layer] = Through()
    assert torch.allclose(logits(student), logits(teacher), atol=1e-5)


class Through(torch.nn.Module):
    """A layer that returns its input."""

    attention_type = "full_attention"

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden


@every_family
def test_a_compressed_student_is_read_back(tmp_path: Path, family: str) -> None:
    """Half of the projections keep their dense path and half are factorised; biases stay with both."""
    save_model(cut(random_model(family), init="last", depth=2), tmp_path / "student")
    model = load_model(tmp_path / "student")
    modules = install(model, rank=4, alpha=8.0, dropout=0.0, gates=True, seed=0)
    generator = torch.Generator().manual_seed(0)
    for number, module in enumerate(modules.values()):
        module.retention = float(number % 2)
        with torch.no_grad():
            module.lora_b.normal_(std=0.1, generator=generator)
    save_trained(tmp_path / "trained", model.eval(), method="budgeted_lora", modules=modules)
    write_digest(tmp_path / "trained")
    trained = load_trained(student=tmp_path / "student", trained=tmp_path / "trained")
    assert torch.equal(logits(trained.model), logits(model))

    thresholds = {"rank_threshold": 0.0, "drop_threshold": 0.05, "svd_threshold": 0.5, "r_max": 4}
    compressed = compress_modules(trained.modules, **thresholds, gate_hardening="soft")
    save_model(compressed_model(trained.model, compressed), tmp_path / "small")
    small = load_model(tmp_path / "small")
    kind = model.config.model_type
    assert type(small) is COMPRESSED[kind]
    assert small.config.model_type == f"budgeted_{kind}"
    assert len(small.config.factorized) == 7
    assert torch.allclose(logits(small), logits(model), atol=1e-4)
    assert bool(tied_names(small)) == (family in TIED)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (family not in TIED)
    assert sum(name.endswith(".bias") for name in stored) == 2 * BIASED.get(family, 0)
    tokens = small.generate(IDS, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert tokens.shape == (2, IDS.shape[1] + 3)


@pytest.mark.parametrize("method", METHODS)
@every_family
def test_every_method_trains_on_it(tmp_path: Path, family: str, method: str) -> None:
    """Fetched, cut, trained, compressed: with its tokenizer, chat template and generation settings in the folder."""
    source, got, student = write_checkpoint(tmp_path / "hub", family), tmp_path / "teacher", tmp_path / "student"
    about = {"slice_per_mille": 2, "hold_out_words": False, "scale": "tiny", "record": tmp_path / "teacher.json"}
    fetch_teacher(name="A", source="folder", spec=Teacher(folder=str(source)), out=got, **about)
    copy_tokenizer(source=got, out=tmp_path / "tokenizer")
    cut_student(teacher=got, init="mixed", depth=2, out=student, record=tmp_path / "student.json", scale="tiny")
    texts = (np.random.default_rng(0).integers(3, TOKENS, 30).tolist() for _ in range(30))
    write_tokens(tmp_path / "train.bin", texts, vocab_size=TOKENS, eos_id=0)

    recipe = make_recipe(method, steps=16, batch_windows=2, learning_rate=1e-3, **METHODS[method])
    out = train_and_compress(tmp_path, recipe, student=student, teacher=got)
    record = read_json(out / "compression.json")
    assert record["parity"]["max_abs_logit_difference"] < 1e-3 or not record["parity"]["exact"]
    assert record["totals"]["kept"] == 14 or method == "budgeted_lora"
    small = load_model(out / "model")
    assert logits(small).isfinite().all()
    assert small.config.vocab_size == ROWS
    assert bool(tied_names(small)) == (family in TIED)
    assert small.config.eos_token_id == load_model(got).config.eos_token_id
    assert (out / "model/chat_template.jinja").read_text() == CHAT
    assert read_json(out / "model/generation_config.json") == read_json(source / "generation_config.json")


@every_family
def test_our_own_starts_and_orders_hold_for_it(family: str) -> None:
    """Low-rank paths that start at the best approximation leave the student's function as it was, biases and all."""
    student = cut(random_model(family), init="first", depth=2)
    before, whole = logits(student), torch.ones_like(IDS, dtype=torch.bool)
    linears = {name: linear for name, _, _, linear in named_projections(student)}
    statistics = measure(student, linears, [(IDS, whole)])
    own = {"low_rank_init": "activation_svd", "order": "gradient", "statistics_windows": 2}
    modules, low_rank = install_method(student, make_recipe("budgeted_lora", budget=0.4, **own), statistics)
    assert sorted(low_rank.order) == list(range(14))
    assert any(module.lora_b.any() for module in modules.values())
    assert torch.allclose(logits(student.eval()), before, atol=2e-4)


def test_a_tied_checkpoint_that_stores_its_head_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hub", "llama")
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    before = logits(load_model(folder))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_model(folder)), before)


def test_tied_embeddings_are_one_weight_in_training(tmp_path: Path) -> None:
    """What the embeddings learn, the output layer has too."""
    model = load_model(write_checkpoint(tmp_path / "hub", "qwen3"))
    before = model.lm_head.weight.detach().clone()
    (model(input_ids=IDS).logits.sum()).backward()
    with torch.no_grad():
        model.model.embed_tokens.weight.sub_(model.model.embed_tokens.weight.grad)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before)


def test_several_ends_of_a_text(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hub", "llama")
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [0, 2, 3]
    student = cut(load_model(folder), init="first", depth=1)
    save_model(student, tmp_path / "student")
    assert load_model(tmp_path / "student").config.eos_token_id == [0, 2, 3]
