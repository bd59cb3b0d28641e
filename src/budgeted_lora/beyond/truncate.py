"""Truncated SVD of dense projections without distillation: the baseline that needs no training."""

import torch
from torch import Tensor

from budgeted_lora.beyond.low_rank import approximate
from budgeted_lora.method.compress import CompressedModule


@torch.no_grad()
def truncate_module(
    weight: Tensor, *, share: float, moment: Tensor | None = None, rank_multiple: int = 1
) -> CompressedModule:
    """The truncated SVD of W [d_out, d_in] whose two factors cost at most `share` of its MACs; rank 1 at least.

    Args:
        moment: second moment of the inputs, [d_in, d_in]; with it the error of the outputs is the smallest possible,
            without it the error of W.
        rank_multiple: the rank is the largest multiple of it, where one fits the share.
    """
    d_out, d_in = weight.shape
    most = min(max(1, int(share * d_in * d_out / (d_in + d_out))), d_in, d_out)
    rank = most - most % rank_multiple or most
    best = approximate(weight, rank=rank, moment=moment)
    error = torch.linalg.matrix_norm(weight.double() - best.up @ best.down).item()
    norm = torch.linalg.matrix_norm(weight.double()).item()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return CompressedModule(
        d=1.0,
        decision="svd",
        dense=None,
        down=best.down.to(dtype),
        up=best.up.to(dtype),
        lora_rank=0,
        svd_rank=rank,
        reconstruction_error=error,
        relative_error=error / norm if norm else 0.0,
        exact=rank == min(d_in, d_out),
    )
