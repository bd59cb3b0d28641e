"""What each dense path is worth: the loss of the untrained student when that path alone is replaced."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, functional

from budgeted_lora.beyond.low_rank import approximate


@torch.no_grad()
def removal_losses(
    model: Any, linears: Mapping[str, Linear], moments: Mapping[str, Tensor], batches: Sequence[tuple[Tensor, Tensor]],
    *, rank: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Increase of the cross-entropy when one projection's W gives way to what a low-rank path holds at its start.

    Args:
        linears: the model's projections by name. They have their weights again afterwards.
        moments: second moments of their inputs, [d_in, d_in].
        batches: token ids [rows, sequence_length] and which of them are valid, of the same shape.
        rank: r of the path.

    Returns:
        one entry per projection: `name`, and the increase in nats for each start: `zero` (B = 0, the paper's), `svd`,
        `activation_svd`.
    """
    whole = cross_entropy(model, batches)
    losses = []
    for name, linear in linears.items():
        weight = linear.weight.detach().clone()
        entry: dict[str, Any] = {"name": name}
        for start, moment in (("zero", None), ("svd", None), ("activation_svd", moments[name])):
            linear.weight.zero_()
            if start != "zero":
                best = approximate(weight.cpu(), rank=rank, moment=moment)
                linear.weight.copy_(best.up @ best.down)
            entry[start] = cross_entropy(model, batches) - whole
        linear.weight.copy_(weight)
        losses.append(entry)
    return losses


def cross_entropy(model: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean next-token cross-entropy over the valid positions, nats; summed in float64."""
    total, count = 0.0, 0
    for ids, valid in batches:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        scored = valid[:, :-1] & valid[:, 1:]
        total += (
            functional.cross_entropy(logits[scored].float(), ids[:, 1:][scored], reduction="none").double().sum().item()
        )
        count += int(scored.sum())
    return total / count
