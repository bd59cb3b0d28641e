"""Truncated SVD of a dense projection without distillation, the baseline that needs no training."""

import torch
from torch import Tensor

from budgeted_lora.beyond.low_rank import low_rank_factors
from budgeted_lora.method.compress import Compressed


@torch.no_grad()
def truncate_module(weight: Tensor, *, share: float, moment: Tensor | None = None) -> Compressed:
    """The truncated SVD of a dense W [d_out, d_in] whose two factors cost at most `share` of its MACs, rank 1 at least.

    It is what one would do without the paper's method, and is not retrained. With the second moment of the inputs
    [d_in, d_in] it is the outputs that are kept as well as can be.
    """
    d_out, d_in = weight.shape
    rank = min(max(1, int(share * d_in * d_out / (d_in + d_out))), d_in, d_out)
    up, down = low_rank_factors(weight, rank=rank, moment=moment)
    error = torch.linalg.matrix_norm(weight.double() - up @ down).item()
    norm = torch.linalg.matrix_norm(weight.double()).item()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    record = {
        "d": 1.0,
        "decision": "svd",
        "lora_rank": 0,
        "svd_rank": rank,
        "dense_macs": d_in * d_out,
        "macs": rank * (d_in + d_out),
        "reconstruction_error": error,
        "relative_error": error / norm if norm else 0.0,
        "exact": rank == min(d_in, d_out),
    }
    return Compressed("svd", None, down.to(dtype), up.to(dtype), record)
