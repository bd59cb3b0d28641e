"""Causal attention for training on a CPU: explicit products in blocks of queries, in float32 also under autocast.

Each block of queries meets only the keys up to its end, keys and values are not repeated for the heads that share them,
and the probabilities are kept for the backward pass. Both passes together take 0.6 of the time of torch's own kernel at
the paper's width and 0.85 at mini's (benchmarks/NOTES.md); in bfloat16 that kernel is slower still. The probabilities
are heads x length / 2 numbers per token, so longer windows go to transformers' function, and so do small layers, where
the many small products of the blocks cost more than they save, and all but plain causal attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from budgeted_lora.method.cost import LONGEST_IN_BLOCKS
from budgeted_lora.models.device import WIDE

NAME = "causal_blocks"
BLOCK = 32  # queries of a block
FEWEST = 2**16  # numbers in the queries of a layer, B x heads x L x D


class CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T) v over the positions up to each query, with its gradient.

    Shapes: q [B, heads, L, D], k and v [B, kv heads, L, D] -> [B, heads, L, D].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        shared = _by_key_head(q, k)
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        mixed, kept = torch.empty_like(shared), []
        for block in _blocks(q.shape[2]):
            scores = (_rows(shared, block) * scale) @ keys[:, : block.stop].transpose(1, 2)
            probabilities = _causal_softmax(scores.unflatten(1, (shared.shape[1], -1)))
            _put(mixed, block, _flat(probabilities) @ values[:, : block.stop])
            kept.append(probabilities)
        ctx.save_for_backward(q, k, v, mixed, *kept)
        ctx.scale = scale
        return mixed.view_as(q)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, *kept = ctx.saved_tensors
        shared, outer = _by_key_head(q, k), _by_key_head(outer, k)
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        of_q, of_k, of_v = torch.empty_like(shared), torch.zeros_like(keys), torch.zeros_like(values)
        along = (mixed * outer).sum(-1, keepdim=True)
        for block, probabilities in zip(_blocks(q.shape[2]), kept, strict=True):
            seen, own = slice(block.stop), _rows(outer, block)
            of_v[:, seen].baddbmm_(_flat(probabilities).transpose(1, 2), own)
            of_scores = (own @ values[:, seen].transpose(1, 2)).view_as(probabilities)
            of_scores = _flat(of_scores.sub_(along[:, :, block]).mul_(probabilities))
            _put(of_q, block, (of_scores @ keys[:, seen]).mul_(ctx.scale))
            of_k[:, seen].baddbmm_(of_scores.transpose(1, 2), _rows(shared, block), alpha=ctx.scale)
        return of_q.view_as(q), of_k.view_as(k), of_v.view_as(v), None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function under `NAME`: [B, heads, L, D] and keys, values -> [B, L, heads, D]."""
    length = query.shape[2]
    plain = attention_mask is None and not dropout and key.shape[2] == length and query.shape[1] % key.shape[1] == 0
    causal = options.get("is_causal") is not False and getattr(module, "is_causal", True)
    fits = 1 < length <= LONGEST_IN_BLOCKS and query.numel() >= FEWEST
    if not plain or not causal or not fits or query.device.type != "cpu":
        options |= {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        wide = torch.promote_types(query.dtype, torch.float32)
        mixed = CausalAttention.apply(query.to(wide), key.to(wide), value.to(wide), scale)
    return mixed.to(query.dtype).transpose(1, 2), None


def attend_in_blocks(model: PreTrainedModel) -> None:
    """Makes a model use this attention; its files and its configuration on disk do not change."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend_as_teacher(model: PreTrainedModel) -> PreTrainedModel:
    """A teacher that uses this attention if it is wide; forward passes alone of a narrow one take longer with it."""
    if model.config.hidden_size >= WIDE:
        attend_in_blocks(model)
    return model


def _by_key_head(x: Tensor, keys: Tensor) -> Tensor:
    """[B, heads, L, D] -> [B x kv heads, heads per key head, L, D]."""
    return x.reshape(x.shape[0] * keys.shape[1], -1, *x.shape[2:])


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _rows(x: Tensor, block: slice) -> Tensor:
    """The queries of a block of all heads that share a key: [G, R, L, D] -> [G, R x block, D]."""
    return _flat(x[:, :, block])


def _put(x: Tensor, block: slice, rows: Tensor) -> None:
    """The inverse of `_rows`, into x."""
    x[:, :, block] = rows.view(x.shape[0], x.shape[1], -1, x.shape[3])


def _flat(x: Tensor) -> Tensor:
    """[G, R, n, D] -> [G, R x n, D]."""
    return x.flatten(1, 2)


def _causal_softmax(scores: Tensor) -> Tensor:
    """Softmax of [G, R, n, m] whose last n keys are those of the n queries; later ones count for nothing."""
    queries = scores.shape[2]
    later = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., -queries:].masked_fill_(later, -torch.inf)
    return torch.softmax(scores, dim=-1)
