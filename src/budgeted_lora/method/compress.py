"""From a trained student to plain linear layers: drop, approximate or keep each dense path (paper, section 3.4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from budgeted_lora.config.sections import Compression
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import dense_macs, projections
from budgeted_lora.method.projections import model_shape
from budgeted_lora.method.structure import (
    Decision,
    decide,
    svd_rank,
)
from budgeted_lora.models.compressed import _plain_model
from budgeted_lora.models.trained import TrainedStudent

MODULE_SETTINGS = ("rank_threshold", "svd_threshold", "r_max", "gate_hardening")


@dataclass(frozen=True)
class Compressed:
    """One projection after compression: `dense` [d_out, d_in] if kept, else `down` [r, d_in] and `up` [d_out, r].

    `record` holds d, decision, lora_rank, svd_rank, dense_macs, macs, reconstruction_error (Frobenius norm of the
    difference to the trained map), relative_error (over the norm of that map), and exact: whether the compressed map
    is the trained one but for rounding.
    """

    decision: Decision
    dense: Tensor | None
    down: Tensor | None
    up: Tensor | None
    record: dict[str, Any]


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
) -> Compressed:
    """Compresses d W + scale B diag(g) A, in float32 or the weights' own higher precision.

    Args:
        weight, a, b: W [d_out, d_in], A [r, d_in], B [d_out, r].
        gates: gate values g in (0, 1), [r]; None for plain LoRA, whose ranks all stay.
        d: final dense coefficient.
        scale: alpha / r.
        rank_threshold: ranks with g at or below it are cut; the one with the largest gate always stays.
        r_max: SVD rank of a coefficient of 1.
        gate_hardening: whether surviving gates keep their value ("soft") or become 1 ("one").
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
        k = svd_rank(d, r_max=r_max, d_in=d_in, d_out=d_out)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = torch.sqrt(d * values[:k])  # half to each side, so that both factors have like magnitudes
        down, up = torch.cat([down, root[:, None] * right[:k]]), torch.cat([up, left[:, :k] * root], dim=1)
    dense = d * weight + up @ down if decision == "keep" else None

    error = torch.linalg.matrix_norm((up @ down if dense is None else dense) - trained).item()
    norm = torch.linalg.matrix_norm(trained).item()
    exact = (
        len(kept) == len(a) and torch.equal(hard, soft) and (decision == "keep" or d == 0.0 or k == min(d_in, d_out))
    )
    record = {
        "d": d,
        "decision": decision,
        "lora_rank": len(kept),
        "svd_rank": k,
        "dense_macs": d_in * d_out,
        "macs": d_in * d_out if dense is not None else (len(kept) + k) * (d_in + d_out),
        "reconstruction_error": error,
        "relative_error": error / norm if norm else 0.0,
        "exact": exact,
    }
    return Compressed(decision, dense, None if dense is not None else down, None if dense is not None else up, record)


def _surviving(gates: Tensor | None, *, ranks: int, threshold: float) -> Tensor:
    """Indices of the ranks that stay, ascending; never empty."""
    if gates is None:
        return torch.arange(ranks)
    kept = torch.nonzero(gates > threshold).flatten()
    return kept if len(kept) else gates.argmax().reshape(1)


@torch.no_grad()
def compress_student(
    student: TrainedStudent,
    *,
    settings: Compression,
    drop_threshold: float,
    macs: int | None = None,
    moments: Mapping[str, Tensor] | None = None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """A model of plain linear layers in float32, and the record of every projection, in `named_modules()` order.

    A student without anything factorised (KD Full, KD LoRA, F = 1) stays of transformers' own class.

    Args:
        macs: with settings.macs_of_budget, the MACs a KD Full student is truncated to, in equal shares.
        moments: with settings.truncation "outputs", the second moment of each projection's inputs.

    Raises:
        BadInput: macs_of_budget on a student with low-rank paths, or outputs to be kept and no moments.
    """
    if settings.macs_of_budget is not None and student.modules:
        raise BadInput(f"compression.macs_of_budget on a {student.method} student; only KD Full is truncated")
    if settings.truncation == "outputs" and moments is None:
        raise BadInput("compression.truncation: outputs needs input statistics, which only an undistilled student has")
    shape = model_shape(student.model)
    share = None if settings.macs_of_budget is None else macs / dense_macs(shape)
    state = {name: tensor.detach().float() for name, tensor in student.model.state_dict().items()}
    factorized, records = {}, []
    for projection in projections(shape):
        module = student.modules.get(projection.name)
        if module is None and share is None:
            records.append({"name": projection.name, **_untouched(projection.macs)})
            continue
        if module is None:
            moment = moments[projection.name] if settings.truncation == "outputs" else None
            from budgeted_lora.beyond.truncate import truncate_module

            done = truncate_module(state[f"{projection.name}.weight"], share=share, moment=moment)
        else:
            done = compress_module(
                module.weight,
                module.lora_a,
                module.lora_b,
                module.gates(),
                d=module.dense,
                scale=module.scale,
                drop_threshold=drop_threshold,
                **settings.model_dump(include=set(MODULE_SETTINGS)),
            )
        records.append({"name": projection.name, **done.record})
        for leaf in ("weight", "lora_a", "lora_b", "gate_logits"):
            state.pop(f"{projection.name}.{leaf}", None)
        if done.dense is not None:
            state[f"{projection.name}.weight"] = done.dense
        else:
            factorized[projection.name] = len(done.down)
            state[f"{projection.name}.down.weight"], state[f"{projection.name}.up.weight"] = done.down, done.up
    model = _plain_model(student.model, factorized)
    model.load_state_dict(state, strict=True)
    return model.eval(), records


def _untouched(macs: int) -> dict[str, Any]:
    """Record of a projection of KD Full, which has no low-rank path."""
    nothing_lost = {"reconstruction_error": 0.0, "relative_error": 0.0, "exact": True}
    return {
        "d": 1.0,
        "decision": "keep",
        "lora_rank": 0,
        "svd_rank": 0,
        "dense_macs": macs,
        "macs": macs,
        **nothing_lost,
    }
