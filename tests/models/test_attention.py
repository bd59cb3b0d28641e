"""Attention for training on a CPU against the formula in float64 and against transformers' own."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from budgeted_lora.method.cost import LONGEST_IN_BLOCKS as LONGEST
from budgeted_lora.models import attention as module
from budgeted_lora.models.attention import CausalAttention, attend_as_teacher, attend_in_blocks
from budgeted_lora.models.load import mistral_config, new_model, save_model


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """The formula, one query head at a time."""
    heads = []
    for head in range(q.shape[1]):
        own = head // (q.shape[1] // k.shape[1])
        scores = scale * q[:, head] @ k[:, own].mT
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v[:, own])
    return torch.stack(heads, dim=1)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3), kv_heads=st.integers(1, 3), group=st.integers(1, 3), length=st.integers(2, 70),
    width=st.integers(1, 9), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_formula(batch, kv_heads, group, length, width, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def heads(count: int) -> torch.Tensor:
        # As a model gives them: [B, L, heads, D] with two axes exchanged, so not contiguous.
        made = torch.randn(batch, length, count, width, generator=generator, dtype=torch.float64)
        return made.transpose(1, 2).requires_grad_()

    inputs, outer = (heads(kv_heads * group), heads(kv_heads), heads(kv_heads)), heads(kv_heads * group).detach()
    expected = reference(*inputs, scale=0.7)
    made = CausalAttention.apply(*inputs, 0.7)
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-12)
    ours, theirs = (torch.autograd.grad(out, inputs, outer) for out in (made, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-11)


def decoder(**changed: object) -> PreTrainedModel:
    config = mistral_config(
        layers=2, hidden=24, ffn=40, heads=6, kv_heads=2, vocab_size=31, context=2 * LONGEST, end_id=0
    )
    for name, value in changed.items():
        setattr(config, name, value)
    return new_model(config, seed=3)


def outputs(model: PreTrainedModel, ids: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of the first layer's q_proj."""
    model.zero_grad()
    logits = model(input_ids=ids, **options).logits
    logits.square().mean().backward()
    return logits.detach(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the queries that went through blocks."""
    seen, apply = [], CausalAttention.apply

    def counted(q: torch.Tensor, *more: object) -> torch.Tensor:
        seen.append(q.shape)
        return apply(q, *more)

    monkeypatch.setattr(module.CausalAttention, "apply", counted)
    monkeypatch.setattr(module, "FEWEST", 0)
    return seen


@pytest.mark.parametrize("length", [2, 45, 100])
def test_a_model_computes_the_same(calls: list[torch.Size], length: int) -> None:
    model = decoder()
    ids = torch.arange(2 * length).reshape(2, length) % 31
    expected = outputs(model, ids)
    attend_in_blocks(model)
    for mine, theirs in zip(outputs(model, ids), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    assert calls == [torch.Size([2, 6, length, 4])] * 2


def test_small_layers_are_left_to_transformers(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder(), torch.arange(40)[None] % 31
    attend_in_blocks(model)
    monkeypatch.setattr(module, "FEWEST", 40 * 24 + 1)
    outputs(model, ids)
    assert not calls
    monkeypatch.setattr(module, "FEWEST", 40 * 24)
    outputs(model, ids)
    assert len(calls) == 2


@pytest.mark.parametrize("case", ["padding", "one token", "cache", "window", "too long"])
def test_all_but_plain_causal_attention_goes_to_transformers(calls: list[torch.Size], case: str) -> None:
    model = decoder(**({"sliding_window": 5} if case == "window" else {}))
    ids = torch.arange(2 * 12).reshape(2, 12) % 31
    options: dict[str, object] = {}
    if case == "padding":
        options["attention_mask"] = torch.ones_like(ids).index_fill_(1, torch.tensor([0, 1]), 0)
    if case == "one token":
        ids = ids[:, :1]
    if case == "too long":
        ids = ids.flatten().repeat(LONGEST // 24 + 1)[None, : LONGEST + 1]
    if case == "cache":
        options["past_key_values"] = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    past = options.get("past_key_values")
    expected = outputs(model, ids, **options)
    attend_in_blocks(model)
    if past is not None:
        options["past_key_values"] = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        calls.clear()
    for mine, theirs in zip(outputs(model, ids, **options), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    assert not calls


def test_autocast_attends_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, apply = [], CausalAttention.apply
    monkeypatch.setattr(module.CausalAttention, "apply", lambda q, *more: seen.append(q.dtype) or apply(q, *more))
    monkeypatch.setattr(module, "FEWEST", 0)
    model = decoder()
    attend_in_blocks(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model.model.layers[0].self_attn(
            torch.randn(1, 8, 24), position_embeddings=(torch.ones(1, 8, 4), torch.zeros(1, 8, 4)), attention_mask=None
        )[0]
    assert seen == [torch.float32]
    assert made.dtype == torch.bfloat16


def test_the_files_of_a_model_do_not_say_so(tmp_path: Path) -> None:
    model = decoder()
    save_model(model, tmp_path / "before")
    attend_in_blocks(model)
    save_model(model, tmp_path / "after")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after"))
    assert before == after


def test_only_wide_teachers_attend_in_blocks(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(20)[None]
    narrow = decoder()
    expected = attend_as_teacher(narrow)(input_ids=ids).logits
    assert not calls
    monkeypatch.setattr(module, "WIDE", narrow.config.hidden_size)
    torch.testing.assert_close(attend_as_teacher(narrow)(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-7)
    assert len(calls) == narrow.config.num_hidden_layers
