"""A checkpoint of another class, through every stage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.training_world import VOCABULARY, make_recipe
from fixtures.whole_chain import train_and_compress
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from budgeted_lora.config.sections import Teacher
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.models.load import load_model
from budgeted_lora.stages.copy_tokenizer import copy_tokenizer
from budgeted_lora.stages.cut_student import cut_student
from budgeted_lora.stages.fetch_teacher import fetch_teacher

IDS = torch.arange(12).reshape(2, 6) % VOCABULARY


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder as `huggingface_hub` downloads it: shards and index, tokenizer, generation settings, older keys."""
    folder = tmp_path / "hub"
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="8KB")
    about = json.loads((folder / "config.json").read_text())
    about.pop("rope_parameters", None)
    about.pop("dtype", None)
    older = {
        "rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "bfloat16", "pretraining_tp": 1,
        "transformers_version": "4.40.0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about | older))
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w2", eos_token="w0", bos_token="w1").save_pretrained(
        folder
    )
    (folder / "README.md").write_text("# a model card")
    (folder / "model.safetensors.index.json.lock").write_text("")
    return folder


def test_a_llama_checkpoint_from_end_to_end(llama: Path, tmp_path: Path) -> None:
    """Fetched, cut, taught by, compressed: and its rotary base, which is not the paper's, is kept all the way."""
    spec = Teacher(layers=4, hidden=16, ffn=48, heads=4, kv_heads=2, folder=str(llama))
    got = tmp_path / "teacher"
    fetch_teacher(
        name="A", source="folder", spec=spec, slice_per_mille=2, hold_out_words=False, out=got,
        record=tmp_path / "teacher.json", scale="tiny",
    )  # fmt: skip
    copy_tokenizer(source=got, out=tmp_path / "tokenizer")
    original = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    assert original.config.rope_parameters["rope_theta"] == 500000.0
    assert torch.equal(logits(load_model(got)), logits(original))

    generator = np.random.default_rng(0)
    texts = (generator.integers(3, VOCABULARY, 30).tolist() for _ in range(30))
    write_tokens(tmp_path / "train.bin", texts, vocab_size=VOCABULARY, eos_id=0)
    student = tmp_path / "student"
    cut_student(teacher=got, init="mixed", depth=2, out=student, record=tmp_path / "student.json", scale="tiny")
    assert torch.equal(
        load_model(student).state_dict()["model.layers.1.self_attn.k_proj.weight"],
        original.state_dict()["model.layers.3.self_attn.k_proj.weight"],
    )

    recipe = make_recipe("budgeted_lora", budget=0.0, steps=24, batch_windows=2, learning_rate=1e-3)
    out = train_and_compress(tmp_path, recipe, student=student, teacher=got)
    record = json.loads((out / "compression.json").read_text())
    assert (record["totals"]["kept"], record["totals"]["dropped"]) == (0, 14)
    assert record["parity"]["exact"]
    small = load_model(out / "model")
    assert small.config.rope_parameters["rope_theta"] == 500000.0
    assert small.config.model_type == "budgeted_llama"
    assert logits(small).shape == (*IDS.shape, VOCABULARY)


def test_a_llama_checkpoint_of_one_file_is_the_same(llama: Path, tmp_path: Path) -> None:
    model = load_model(llama)
    shutil.copytree(llama, tmp_path / "one", ignore=shutil.ignore_patterns("model*"))
    save_file(model.state_dict(), tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_model(tmp_path / "one")), logits(model))
