"""A decoder for scoring, in plain torch: the function of transformers' Mistral and Llama classes, without gradients.

A scoring job computes nothing but forward passes. This spares it the import of transformers, which takes seconds; the
last layer computes one position where only the next token is asked for; and elementwise work is done in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json
from budgeted_lora.models.factorized import FactorizedLinear
from budgeted_lora.models.shards import weight_files

KINDS = ("mistral", "llama", "budgeted_mistral", "budgeted_llama")
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim")
MISTRAL_SLIDING = 4096  # transformers' default where a Mistral configuration names no sliding window
Past = list[tuple[Tensor, Tensor]]  # keys and values [B, kv heads, tokens, D] of each layer, keys rotated


@dataclass(frozen=True)
class Shape:
    """What a decoder's function depends on besides its weights."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    eos_token_id: int | list[int] | None  # what ends a text; for decoding, not for the function


@dataclass(frozen=True)
class Output:
    """The fields of transformers' outputs that scoring reads."""

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Past | None = None


def shape_of(about: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None if it leaves something to a default (by leaving it out or by null),
    is no configuration, or asks for more than this does: biases, a scaled rotary embedding, a sliding window, tied
    embeddings, another activation."""
    sliding = about.get("sliding_window", None if "llama" in str(about.get("model_type")) else MISTRAL_SLIDING)
    try:
        older = {"rope_theta": about.get("rope_theta"), **(about.get("rope_scaling") or {})}
        rope = about.get("rope_parameters") or older
        heads, hidden = about["num_attention_heads"], about["hidden_size"]
        shape = Shape(
            vocab_size=about["vocab_size"],
            hidden_size=hidden,
            intermediate_size=about["intermediate_size"],
            layers=about["num_hidden_layers"],
            heads=heads,
            kv_heads=about["num_key_value_heads"],
            head_dim=about.get("head_dim") or hidden // heads,
            eps=float(about["rms_norm_eps"]),
            theta=float(rope["rope_theta"]),
            eos_token_id=about.get("eos_token_id"),
        )
        more = (
            any(type(size) is not int or size < 1 for size in (getattr(shape, name) for name in SIZES))
            or about["model_type"] not in KINDS
            or about["hidden_act"] != "silu"
            or any(about.get(name) for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"))
            or "quantization_config" in about
            or not rope.keys() <= {"rope_theta", "rope_type"}
            or rope.get("rope_type", "default") != "default"
            or (sliding is not None and sliding < about["max_position_embeddings"])
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None
    return None if more else shape


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; `Layer` calls it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim, wide = shape.head_dim, shape.heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden_size, bias=False)

    def forward(
        self, x: Tensor, queries: int, rotation: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What the last `queries` (all or one) of the positions x [B, L, H] attend to; and keys and values."""
        cos, sin = rotation
        keys, values = rotate(self._heads(self.k_proj(x)), cos, sin), self._heads(self.v_proj(x))
        if past is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (keys, values), strict=True))
        asked = rotate(self._heads(self.q_proj(x[:, -queries:])), cos[-queries:], sin[-queries:])
        mixed = F.scaled_dot_product_attention(asked, keys, values, is_causal=queries > 1, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (keys, values)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x), inplace=True).mul_(self.up_proj(x)))


class Layer(nn.Module):
    """Attention and SwiGLU, each behind a norm and beside a residual path."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.eps)
        self.mlp = Mlp(shape)

    def forward(
        self, x: Tensor, queries: int, rotation: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The last `queries` of the positions x [B, L, H], which are overwritten; and the layer's keys and values."""
        mixed, seen = self.self_attn(self.input_layernorm(x), queries, rotation, past)
        x = x[:, -queries:].add_(mixed)
        return x.add_(self.mlp(self.post_attention_layernorm(x))), seen


class Body(nn.Module):
    """The decoder without its output layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.eps)

    def forward(
        self, input_ids: Tensor, *, past_key_values: Past | None = None, use_cache: bool = False, last: bool = False
    ) -> Output:
        """Final hidden states [B, L, H] of ids [B, L], or [B, 1, H] of the `last` position alone.

        With keys and values of the tokens before, L is 1.
        """
        length = input_ids.shape[1]
        before = past_key_values[0][0].shape[2] if past_key_values else 0
        rotation = self._rotation(before, length)
        x, seen = self.embed_tokens(input_ids), []
        for number, layer in enumerate(self.layers, start=1):
            queries = 1 if last and number == len(self.layers) else length
            x, own = layer(x, queries, rotation, past_key_values[number - 1] if past_key_values else None)
            seen.append(own)
        return Output(last_hidden_state=self.norm(x), past_key_values=seen if use_cache else None)

    def _rotation(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [length, D] of the positions from `start`, as transformers computes them."""
        weight, size = self.embed_tokens.weight, self.shape.head_dim
        rates = 1.0 / (self.shape.theta ** (torch.arange(0, size, 2, device=weight.device).float() / size))
        angles = torch.arange(start, start + length, device=weight.device)[:, None].float() * rates
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(weight.dtype), angles.sin().to(weight.dtype)


class Decoder(nn.Module):
    """Answers to the calls that scoring makes of a transformers model."""

    def __init__(self, shape: Shape, factorized: Mapping[str, int]) -> None:
        super().__init__()
        self.config = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        for name, rank in factorized.items():
            layer = self.get_submodule(name)
            self.set_submodule(name, FactorizedLinear(layer.in_features, layer.out_features, rank=rank))

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        *,
        past_key_values: Past | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Output:
        """Logits [B, L, V] of every position, or [B, 1, V] of the last one where one is to be kept."""
        out = self.model(input_ids, past_key_values=past_key_values, use_cache=use_cache, last=logits_to_keep == 1)
        return Output(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [B, heads, L, D] with cosines and sines [L, D]; the two halves of a head are a pair."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[:, :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[:, half:])
    return turned


def load_decoder(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """A model from a local folder, for scoring: a `Decoder`, or transformers' own class where that covers less.

    Args:
        dtype: of the weights in memory; None keeps that of the file.

    Raises:
        BadInput: as `models.load.load_model`.
    """
    folder = Path(folder)
    about = read_json(folder / "config.json", expected="a model folder")
    shape = shape_of(about)
    if shape is None:
        from budgeted_lora.models.load import load_model

        return load_model(folder, dtype=dtype)
    check_digest(folder)
    try:
        weights = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
        weights = {name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}
        with torch.device("meta"):
            decoder = Decoder(shape, about.get("factorized") or {})
        own = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
        decoder.load_state_dict(own, strict=True, assign=True)
    except (AttributeError, RuntimeError, SafetensorError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{folder}: cannot be loaded ({type(error).__name__}: {reason})") from None
    return decoder.requires_grad_(False).eval()
