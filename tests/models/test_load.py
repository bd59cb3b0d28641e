"""Models in and out of folders."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.tiny_decoder import logits, same, tiny
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from budgeted_lora.errors import BadInput
from budgeted_lora.models.load import load_model, save_model


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return tiny()


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


def without(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


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
    assert "model_type is 'gpt2', whose projections are fused (c_attn), expected one of gemma, " in refusal(tmp_path)


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
