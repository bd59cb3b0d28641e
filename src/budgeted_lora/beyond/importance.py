"""What each layer of a decoder changes: the block influence of ShortGPT (arXiv 2403.03853), for `init: importance`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def block_influence(model: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """1 - cos(input, output) of every layer, the mean over valid positions; summed in float64.

    A layer whose output points where its input did changes little, and can be left out.

    Args:
        batches: token ids [B, L] and which of them are valid, of the same shape.
    """
    layers = model.model.layers
    sums, mask = [0.0] * len(layers), torch.empty(0)

    def watch(number: int) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosines = functional.cosine_similarity(inputs[0][mask].double(), after[mask].double(), dim=-1)
            sums[number] += (1.0 - cosines).sum().item()

        return hook

    handles = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(layers)]
    for ids, valid in batches:
        mask = valid
        model.model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    seen = sum(int(valid.sum()) for _, valid in batches)
    return [total / seen for total in sums]
