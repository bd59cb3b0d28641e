"""Int8 students against what rounding allows; skipped where torchao is not installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exported import MIXED, student, student_folder
from fixtures.training_world import LENGTH, make_world
from torch.nn import functional
from transformers import PreTrainedModel

from budgeted_lora.config.sections import Speed
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import int8
from budgeted_lora.evaluation.perplexity import perplexity
from budgeted_lora.models.load import load_model
from budgeted_lora.stages.measure_int8 import measure_int8

HOW = {"token_limit": 500, "batch_windows": 3}


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"^package torchao is not installed; expected it for int8: pip install"):
        int8.quantized(student(MIXED))


def test_factors_are_two_layers_and_nothing_else_is_rounded() -> None:
    names = int8.linear_layers(student(MIXED))
    assert len(names) == 3 * 7 + len(MIXED)
    assert {f"{name}.{part}" for name in MIXED for part in ("down", "up")} <= names
    assert not {name for name in names if "lm_head" in name or name in MIXED}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with factors, and tokens."""
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    folder = tmp_path_factory.mktemp("int8")
    make_world(folder)
    student_folder(folder / "small", student(MIXED))
    return folder


@pytest.fixture(scope="module")
def plain(world: Path) -> PreTrainedModel:
    return load_model(world / "small")


@pytest.fixture(scope="module")
def small(plain: PreTrainedModel) -> PreTrainedModel:
    return int8.quantized(plain)


def rounded(small: PreTrainedModel, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers [d_out, d_in] and scales [d_out, 1] of a layer's weight."""
    weight = small.get_submodule(name).weight
    return weight.qdata, weight.scale.reshape(-1, 1)


def test_every_weight_is_within_half_a_step(plain: PreTrainedModel, small: PreTrainedModel) -> None:
    for name in int8.linear_layers(plain):
        whole, scale = rounded(small, name)
        assert whole.dtype == torch.int8
        weight = plain.get_submodule(name).weight
        assert ((weight - whole * scale).abs() <= 0.501 * scale).all(), name
        assert torch.allclose(scale[:, 0], weight.abs().amax(1) / 127, rtol=0.01)
    assert type(small.lm_head.weight) is type(plain.lm_head.weight)
    assert torch.equal(small.lm_head.weight, plain.lm_head.weight)


def test_activations_are_rounded_for_each_token(plain: PreTrainedModel, small: PreTrainedModel) -> None:
    name, generator = "model.layers.1.mlp.up_proj", torch.Generator().manual_seed(0)
    layer, (whole, scale) = small.get_submodule(name), rounded(small, name)
    x = torch.randn(5, layer.in_features, generator=generator) * torch.tensor([[1e-3], [1.0], [30.0], [1.0], [1.0]])
    with torch.no_grad():
        got, exact = layer(x), functional.linear(x, whole * scale)
        alone = torch.cat([layer(row[None]) for row in x])
    step = x.abs().amax(1, keepdim=True) / 127
    bound = 0.51 * step * (whole * scale).abs().sum(1)
    assert ((got - exact).abs() <= bound + 1e-6 * exact.abs()).all()
    assert not torch.allclose(got, exact, rtol=1e-4, atol=0), "as if activations were not rounded"
    assert torch.allclose(got, alone, rtol=1e-5, atol=1e-7), "a token depends on its neighbours"


def test_bytes_are_counted_with_their_scales(plain: PreTrainedModel, small: PreTrainedModel) -> None:
    """A float32 scale and an int8 zero point for each output."""
    layers = [plain.get_submodule(name) for name in int8.linear_layers(plain)]
    weights, outputs = sum(one.weight.numel() for one in layers), sum(one.out_features for one in layers)
    rest = sum(one.numel() for one in plain.parameters()) - weights
    assert int8.weight_bytes(plain) == {"projections": 4 * weights, "model": 4 * (weights + rest)}
    assert int8.weight_bytes(small) == {"projections": weights + 5 * outputs, "model": weights + 5 * outputs + 4 * rest}


def test_the_stage_measures_size_perplexity_and_speed(world: Path, plain: PreTrainedModel) -> None:
    sizes = Speed(batch=1, length=8, decode_tokens=2, repeats=3)
    scored = {"sequence_length": LENGTH, "rows": "packed", "validation_tokens": 500, "batch_windows": 7}
    measure_int8(
        model=world / "small", tokens=world / "train.bin", out=world / "int8.json", sizes=sizes, scale="s",
        device="cpu", threads=1, **scored,
    )  # fmt: skip
    found: dict[str, Any] = json.loads((world / "int8.json").read_text())
    windows = Windows(TokenFile.open(world / "train.bin"), LENGTH, "packed")
    before = perplexity(plain, windows, **HOW)
    again = perplexity(int8.quantized(plain), windows, **HOW)
    assert found["perplexity"]["value"] == pytest.approx(again.value, rel=1e-4)
    assert found["perplexity"]["tokens"] == before.token_count
    assert 0 < abs(again.value / before.value - 1) < 0.1
    assert found["bytes"]["int8"] == int8.weight_bytes(int8.quantized(plain))
    for part in ("prefill", "decode"):
        assert {"plain", "int8", "speedup"} <= found[part].keys()
        assert len(found[part]["int8"]["samples_s"]) == sizes.repeats
    assert found["versions"].keys() == set(int8.VERSIONS)
    assert (found["dtype"], found["device"], found["threads"]) == ("float32", "cpu", 1)
