"""Models in and out of folders, students cut from them, and a checkpoint of another class from end to end."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.training_world import SHAPE, VOCABULARY, make_recipe
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from budgeted_lora.config.sections import Teacher
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.models.load import (
    load_model,
    mistral_config,
    new_model,
    save_model,
)
from budgeted_lora.models.student import cut, layer_indices
from budgeted_lora.stages.compress_cell import compress_cell
from budgeted_lora.stages.copy_tokenizer import copy_tokenizer
from budgeted_lora.stages.cut_student import cut_student
from budgeted_lora.stages.fetch_teacher import fetch_teacher
from budgeted_lora.stages.train_cell import train_cell

IDS = torch.arange(12).reshape(2, 6) % VOCABULARY
INITS = ("first", "middle", "last", "mixed")


def tiny(*, layers: int = 5, seed: int = 0) -> torch.nn.Module:
    """A decoder whose norms are not all ones, so that copying them can fail."""
    model = new_model(mistral_config(layers=layers, **SHAPE), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
    return model


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return tiny()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- which layers a student takes


@pytest.mark.parametrize(
    ("init", "layers", "depth", "expected"),
    [
        ("first", 12, 6, [0, 1, 2, 3, 4, 5]),
        ("middle", 12, 6, [3, 4, 5, 6, 7, 8]),
        ("last", 12, 6, [6, 7, 8, 9, 10, 11]),
        ("mixed", 12, 6, [0, 2, 4, 7, 9, 11]),
        ("scratch", 12, 6, []),
        ("first", 30, 6, [0, 1, 2, 3, 4, 5]),
        ("middle", 30, 6, [12, 13, 14, 15, 16, 17]),
        ("last", 30, 6, [24, 25, 26, 27, 28, 29]),
        ("mixed", 30, 6, [0, 6, 12, 17, 23, 29]),
        ("middle", 7, 3, [2, 3, 4]),
        ("mixed", 7, 3, [0, 3, 6]),
        ("middle", 8, 3, [2, 3, 4]),
        ("mixed", 12, 3, [0, 6, 11]),  # 5.5 rounds to the even 6
        ("mixed", 4, 3, [0, 2, 3]),  # and 1.5 to 2
        ("first", 9, 1, [0]),
        ("middle", 9, 1, [4]),
        ("last", 9, 1, [8]),
        ("mixed", 9, 1, [0]),
        ("mixed", 2, 2, [0, 1]),
    ],
)
def test_layers_of_the_method(init: str, layers: int, depth: int, expected: list[int]) -> None:
    assert layer_indices(init, layers=layers, depth=depth) == expected


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("layers", [1, 6, 12, 30])
def test_a_student_as_deep_as_its_teacher_takes_every_layer(init: str, layers: int) -> None:
    assert layer_indices(init, layers=layers, depth=layers) == list(range(layers))


@given(init=st.sampled_from(INITS), layers=st.integers(1, 100), depth=st.integers(1, 100))
@settings(deadline=None, max_examples=300)
def test_layers_are_distinct_in_order_and_anchored(init: str, layers: int, depth: int) -> None:
    assume(depth <= layers)
    chosen = layer_indices(init, layers=layers, depth=depth)
    assert len(chosen) == depth
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < layers
    if init in ("first", "mixed"):
        assert chosen[0] == 0
    if init == "last" or (init == "mixed" and depth > 1):
        assert chosen[-1] == layers - 1
    if init == "middle":
        assert (layers - 1 - chosen[-1]) - chosen[0] in (0, 1)
    if init == "mixed" and depth > 1:  # exact arithmetic, halves to the even number
        assert chosen == [round(Fraction(i * (layers - 1), depth - 1)) for i in range(depth)]


@pytest.mark.parametrize(("depth", "layers"), [(0, 4), (5, 4), (-1, 4)])
def test_more_layers_than_there_are_is_refused(depth: int, layers: int) -> None:
    with pytest.raises(BadInput, match=f"student.layers is {depth}, expected 1 to {layers}"):
        layer_indices("mixed", layers=layers, depth=depth)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(BadInput, match="init is 'best', expected first, middle"):
        layer_indices("best", layers=4, depth=2)


# --- cutting


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_every_weight_of_a_cut_student_is_its_teachers(teacher: torch.nn.Module, init: str, depth: int) -> None:
    student, source = cut(teacher, init=init, depth=depth).state_dict(), teacher.state_dict()
    chosen = layer_indices(init, layers=5, depth=depth)
    expected = {name: tensor for name, tensor in source.items() if ".layers." not in name}
    assert set(expected) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for position, layer in enumerate(chosen):
        for name, tensor in source.items():
            if name.startswith(f"model.layers.{layer}."):
                expected[name.replace(f".layers.{layer}.", f".layers.{position}.")] = tensor
    assert same(student, expected)


@pytest.mark.parametrize("init", INITS)
def test_a_student_of_full_depth_is_the_teacher(teacher: torch.nn.Module, init: str) -> None:
    assert torch.equal(logits(cut(teacher, init=init, depth=5).eval()), logits(teacher))


def test_a_narrowed_student_lacks_exactly_its_smallest_neurons(teacher: torch.nn.Module) -> None:
    """The others stay in their order, so it computes what the full one does with the smallest silenced."""
    width = teacher.config.intermediate_size
    silenced = cut(teacher, init="first", depth=2)
    with torch.no_grad():
        for layer in silenced.model.layers:
            mlp = layer.mlp
            size = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
            mlp.down_proj.weight[:, size.argsort()[: width // 3]] = 0.0
    student = cut(teacher, init="first", depth=2, ffn=width - width // 3)
    assert student.config.intermediate_size == width - width // 3
    assert student.model.layers[1].mlp.gate_proj.weight.shape[0] == width - width // 3
    assert torch.allclose(logits(student.eval()), logits(silenced.eval()), atol=1e-5)
    assert same(
        cut(teacher, init="mixed", depth=2, ffn=width).state_dict(), cut(teacher, init="mixed", depth=2).state_dict()
    )
    for ffn in (0, width + 1):
        with pytest.raises(BadInput, match=f"ffn is {ffn}, expected 1 to {width}"):
            cut(teacher, init="mixed", depth=2, ffn=ffn)


def test_scratch_students_differ_by_seed(teacher: torch.nn.Module) -> None:
    first, again, other = (cut(teacher, init="scratch", depth=2, seed=seed).state_dict() for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_a_cut_student_is_its_own_model(teacher: torch.nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = cut(teacher, init="mixed", depth=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert same(teacher.state_dict(), before)
    assert teacher.config.num_hidden_layers == 5


def test_scratch_is_random_by_its_seed_alone(teacher: torch.nn.Module) -> None:
    torch.manual_seed(7)
    first = cut(teacher, init="scratch", depth=2, seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn), "the global generator was moved"
    assert same(cut(teacher, init="scratch", depth=2, seed=3).state_dict(), first)
    other = cut(teacher, init="scratch", depth=2, seed=4).state_dict()
    copied = cut(teacher, init="first", depth=2).state_dict()
    assert first.keys() == other.keys() == copied.keys()
    for name, tensor in first.items():
        assert not torch.equal(tensor, copied[name]), name
        if tensor.ndim == 2:
            assert not torch.equal(tensor, other[name]), name


def test_the_stage_cuts_a_half_precision_teacher_into_float32(teacher: torch.nn.Module, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "teacher", dtype=torch.float16)
    where = {"out": tmp_path / "model", "record": tmp_path / "student.json"}
    cut_student(teacher=tmp_path / "teacher", init="mixed", depth=3, scale="tiny", **where)
    record = json.loads((tmp_path / "student.json").read_text())
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert record["layers"] == [0, 2, 4]
    assert record["parameters"] == sum(tensor.numel() for tensor in written.values())
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    half = teacher.state_dict()["model.layers.2.mlp.up_proj.weight"].half().float()
    assert torch.equal(written["model.layers.1.mlp.up_proj.weight"], half)
    assert load_model(tmp_path / "model").config.num_hidden_layers == 3


# --- loading and saving


@pytest.fixture
def folder(tmp_path: Path, teacher: torch.nn.Module) -> Path:
    save_model(teacher, tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


def test_a_saved_model_comes_back(folder: Path, teacher: torch.nn.Module) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    loaded = load_model(folder)
    assert not loaded.training
    assert loaded.config.sliding_window is None
    assert same(loaded.state_dict(), teacher.state_dict())
    assert torch.equal(logits(loaded), logits(teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(tiny(), tmp_path / "half", dtype=dtype)
    written = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    rounded = {name: tensor.to(dtype) for name, tensor in tiny().state_dict().items()}
    assert same(load_model(tmp_path / "half", dtype=None).state_dict(), rounded)
    full = load_model(tmp_path / "half").state_dict()
    assert same(full, {name: tensor.float() for name, tensor in rounded.items()})


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "config.json: no such file; expected a model folder" in refusal(tmp_path / "nowhere")


def test_a_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mis')
    assert "config.json: not JSON" in refusal(folder)


def test_another_class_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)).save_pretrained(tmp_path)
    assert "model_type is 'gpt2', expected one of mistral, llama, budgeted_mistral" in refusal(tmp_path)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    assert "model_type is 'mine'" in refusal(folder)


def test_weights_in_another_format_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "no .safetensors file; weights in other formats are not read" in refusal(folder)


@pytest.mark.parametrize("left", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(folder: Path, left: float) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: left if isinstance(left, int) else int(left * len(whole))])
    assert "cannot be loaded" in refusal(folder)


def without(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


def test_missing_surplus_and_misshapen_weights_are_refused(folder: Path) -> None:
    """Loading would otherwise fill the gap with random numbers, or leave a weight out, and say so in a warning only."""
    path = folder / "model.safetensors"
    weights, name = load_file(path), "model.layers.4.mlp.up_proj.weight"
    save_file(without(weights, name), path, metadata={"format": "pt"})
    assert name in refusal(folder)
    save_file(weights | {"model.layers.5.mlp.up_proj.weight": weights[name].clone()}, path, metadata={"format": "pt"})
    assert "model.layers.5.mlp.up_proj.weight" in refusal(folder)
    save_file(weights | {name: torch.zeros(3, 3)}, path, metadata={"format": "pt"})
    refusal(folder)


def test_sharded_weights_load_and_a_missing_shard_does_not(tmp_path: Path, teacher: torch.nn.Module) -> None:
    teacher.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    shards = sorted((tmp_path / "model").glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert same(load_model(tmp_path / "model").state_dict(), teacher.state_dict())
    shards[1].unlink()
    refusal(tmp_path / "model")


# --- a checkpoint of the Llama class, in the form the Hub has it


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
    train_cell(
        recipe=recipe, cell="c", scale="tiny", student=student, teacher=got, tokens=tmp_path / "train.bin", cache=None,
        out=tmp_path / "cell", state=tmp_path / "state", device="cpu", threads=1, log_every=12, checkpoint_every=100,
    )  # fmt: skip
    compress_cell(
        recipe=recipe, cell="c", scale="tiny", student=student, trained=tmp_path / "cell" / "trained",
        tokens=tmp_path / "train.bin", tokenizer=tmp_path / "tokenizer", settings={"r_max": 2}, out=tmp_path / "small",
    )  # fmt: skip
    record = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert (record["totals"]["kept"], record["totals"]["dropped"]) == (0, 14)
    assert record["parity"]["exact"]
    small = load_model(tmp_path / "small" / "model")
    assert small.config.rope_parameters["rope_theta"] == 500000.0
    assert small.config.sliding_window is None
    assert logits(small).shape == (*IDS.shape, VOCABULARY)


def test_a_llama_checkpoint_of_one_file_is_the_same(llama: Path, tmp_path: Path) -> None:
    model = load_model(llama)
    shutil.copytree(llama, tmp_path / "one", ignore=shutil.ignore_patterns("model*"))
    save_file(model.state_dict(), tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_model(tmp_path / "one")), logits(model))
