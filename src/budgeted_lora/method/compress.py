"""From a trained projection to plain linear layers: drop, approximate or keep its dense path (paper, section 3.4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from budgeted_lora.method.projections import BudgetedLinear
from budgeted_lora.method.structure import Decision, decide, svd_rank


@dataclass(frozen=True)
class CompressedModule:
    """One projection after compression: `dense` [d_out, d_in] if kept, else `down` [r, d_in] and `up` [d_out, r].

    Attributes:
        d: final retention.
        lora_rank, svd_rank: how many of the r ranks come from the low-rank path and from an SVD of W.
        reconstruction_error: Frobenius norm of the difference to the trained map.
        relative_error: the same over the norm of the trained map.
        exact: whether the compressed map is the trained one but for rounding.
    """

    d: float
    decision: Decision
    dense: Tensor | None
    down: Tensor | None
    up: Tensor | None
    lora_rank: int
    svd_rank: int
    reconstruction_error: float
    relative_error: float
    exact: bool

    @property
    def record(self) -> dict[str, Any]:
        """The module's entry in compression.json, without its name."""
        d_out, d_in = (len(self.up), self.down.shape[1]) if self.dense is None else self.dense.shape
        return {
            "d": self.d,
            "decision": self.decision,
            "lora_rank": self.lora_rank,
            "svd_rank": self.svd_rank,
            "dense_macs": d_in * d_out,
            "macs": d_in * d_out if self.dense is not None else len(self.down) * (d_in + d_out),
            "reconstruction_error": self.reconstruction_error,
            "relative_error": self.relative_error,
            "exact": self.exact,
        }


def untouched(weight: Tensor) -> CompressedModule:
    """A projection of KD Full, which has no low-rank path: W as it is."""
    return CompressedModule(1.0, "keep", weight, None, None, 0, 0, 0.0, 0.0, exact=True)


@torch.no_grad()
def compress_module(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    gates: Tensor | None,
    *,
    d: float,
    scale: float,
    rank_threshold: float,
    drop_threshold: float,
    svd_threshold: float,
    r_max: int,
    gate_hardening: Literal["soft", "one"],
    rank_multiple: int = 1,
) -> CompressedModule:
    """Compresses d W + scale B diag(g) A, in float32 or the weights' own higher precision.

    Args:
        weight, a, b: W [d_out, d_in], A [r, d_in], B [d_out, r].
        gates: gate values g in (0, 1), [r]; None for plain LoRA, whose ranks all stay.
        d: final retention.
        scale: alpha / r.
        rank_threshold: ranks with g at or below it are cut; the one with the largest gate always stays.
        r_max: SVD rank of a retention of 1.
        gate_hardening: whether surviving gates keep their value ("soft") or become 1 ("one").
        rank_multiple: what the SVD rank is rounded to, by the ranks of training, so that it is the planned one.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, a, b = weight.to(dtype), a.to(dtype), b.to(dtype)
    soft = torch.ones(len(a), dtype=dtype, device=a.device) if gates is None else gates.to(dtype)
    trained = d * weight + (b * (scale * soft)) @ a
    kept = _surviving(gates, ranks=len(a), threshold=rank_threshold).to(a.device)
    hard = torch.ones_like(soft) if gate_hardening == "one" else soft
    down, up = a[kept], b[:, kept] * (scale * hard[kept])

    decision = decide(d, drop_threshold=drop_threshold, svd_threshold=svd_threshold)
    d_out, d_in = weight.shape
    k = 0
    if decision == "svd":
        k = svd_rank(d, r_max=r_max, d_in=d_in, d_out=d_out, lora_rank=len(a), multiple=rank_multiple)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = torch.sqrt(d * values[:k])  # half to each side, so that both factors have similar magnitudes
        down, up = torch.cat([down, root[:, None] * right[:k]]), torch.cat([up, left[:, :k] * root], dim=1)
    dense = d * weight + up @ down if decision == "keep" else None

    error = torch.linalg.matrix_norm((up @ down if dense is None else dense) - trained).item()
    norm = torch.linalg.matrix_norm(trained).item()
    nothing_cut = len(kept) == len(a) and torch.equal(hard, soft)
    return CompressedModule(
        d=d,
        decision=decision,
        dense=dense,
        down=down if dense is None else None,
        up=up if dense is None else None,
        lora_rank=len(kept),
        svd_rank=k,
        reconstruction_error=error,
        relative_error=error / norm if norm else 0.0,
        exact=nothing_cut and (decision == "keep" or d == 0.0 or k == min(d_in, d_out)),
    )


def _surviving(gates: Tensor | None, *, ranks: int, threshold: float) -> Tensor:
    """Indices of the ranks that stay, ascending; never empty."""
    if gates is None:
        return torch.arange(ranks)
    kept = torch.nonzero(gates > threshold).flatten()
    return kept if len(kept) else gates.argmax().reshape(1)


def compress_modules(modules: Mapping[str, BudgetedLinear], **thresholds: Any) -> dict[str, CompressedModule]:
    """Every projection of a trained student, by name; `thresholds` as in `compress_module`."""
    return {
        name: compress_module(
            module.weight,
            module.lora_a,
            module.lora_b,
            module.gates(),
            d=module.retention,
            scale=module.scale,
            **thresholds,
        )
        for name, module in modules.items()
    }
