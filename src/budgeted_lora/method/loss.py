"""The distillation loss and its gradient in closed form (paper section on training; method.md, section 4).

    L = a T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - a) CE(z_s, y)
    dL/dz_s = a T (softmax(z_s / T) - softmax(z_t / T)) + (1 - a) (softmax(z_s) - onehot(y))

both divided by the number of valid positions. The formula stands once, in `_sums_and_gradient`. Since the gradient is
known when the loss is, it is computed beside it, a chunk of rows at a time: no more than one chunk of logits exists.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from budgeted_lora.method.cost import CHUNK_ELEMENTS


@dataclass(frozen=True)
class Losses:
    """Means over valid positions. `loss` carries the gradient; `kl` (at temperature T, without T^2) and `ce` do not."""

    loss: Tensor
    kl: Tensor
    ce: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    kd_weight: float,
    count: int | None = None,
) -> Losses:
    """The loss of given logits.

    Args:
        student_logits, teacher_logits: [..., V]; position i predicts labels[i], so the shift by one is the caller's.
        labels: [...] int64.
        mask: [...] bool, False where a position does not count.
        temperature: T > 0, for the KL term only.
        kd_weight: a in [0, 1].
        count: what the sums are divided by; the valid positions of `mask` when None. Give the whole step's count to
            accumulate over micro-batches: their losses and gradients then add up to those of one batch.
    """
    rows = student_logits[mask]
    valid = labels[mask]
    with torch.no_grad():
        total = _count(valid, count)
        kl, ce, gradient = _sums_and_gradient(
            rows, teacher_logits[mask], valid, temperature=temperature, kd_weight=kd_weight, count=total
        )
    return _losses(kl, ce, {0: (rows, gradient)}, temperature=temperature, kd_weight=kd_weight, count=total)


def linear_distillation_loss(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    kd_weight: float,
    count: int | None = None,
) -> Losses:
    """The same loss from the inputs of both output layers, never holding more than a chunk of logits.

    The teacher's logits are computed in its own dtype, outside autocast, so they are exactly the teacher's.

    Args:
        hidden: [N, H] final hidden states of the student at the valid positions.
        head: [V, H] output weights of the student; get a gradient if they require one.
        teacher_hidden, teacher_head: [N, H'], [V, H'], of one dtype.
        labels: [N] int64, the token that follows each position.
        temperature, kd_weight, count: as in `distillation_loss`.
    """
    with torch.no_grad():
        total = _count(labels, count)
        kl = ce = torch.zeros((), dtype=_at_least_float32(hidden), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head) if head.requires_grad else None
        for rows in _chunks(len(labels), head.shape[0], hidden.device.type):
            logits = functional.linear(hidden[rows], head)
            with torch.autocast(hidden.device.type, enabled=False):
                teacher_logits = functional.linear(teacher_hidden[rows], teacher_head)
            chunk_kl, chunk_ce, gradient = _sums_and_gradient(
                logits, teacher_logits, labels[rows], temperature=temperature, kd_weight=kd_weight, count=total
            )
            kl, ce = kl + chunk_kl, ce + chunk_ce
            hidden_gradient[rows] = gradient @ head
            if head_gradient is not None:
                head_gradient += gradient.T @ hidden[rows]
    known = {0: (hidden, hidden_gradient), 1: (head, head_gradient)}
    return _losses(kl, ce, known, temperature=temperature, kd_weight=kd_weight, count=total)


def _sums_and_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, kd_weight: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of KL, sum of CE, and dL/dz [n, V] of rows of logits; at least float32, in place where that saves a copy."""
    dtype = _at_least_float32(student)
    student, teacher = student.to(dtype), teacher.to(dtype)
    log_teacher = (teacher / temperature).log_softmax(-1)
    log_student = (student / temperature).log_softmax(-1)
    log_plain = student.log_softmax(-1)

    teacher_share = log_teacher.exp()
    kl = torch.dot(teacher_share.flatten(), log_teacher.sub_(log_student).flatten())
    ce = -log_plain.gather(-1, labels[:, None]).sum()

    gradient = log_student.exp_().sub_(teacher_share).mul_(kd_weight * temperature / count)
    gradient.add_(log_plain.exp_(), alpha=(1 - kd_weight) / count)
    gradient.scatter_add_(-1, labels[:, None], gradient.new_full((len(labels), 1), -(1 - kd_weight) / count))
    return kl, ce, gradient


def _losses(
    kl: Tensor,
    ce: Tensor,
    known: dict[int, tuple[Tensor, Tensor | None]],
    *,
    temperature: float,
    kd_weight: float,
    count: int,
) -> Losses:
    kl, ce = kl / count, ce / count
    value = kd_weight * temperature**2 * kl + (1 - kd_weight) * ce
    inputs, gradients = zip(*known.values(), strict=True)
    return Losses(loss=_KnownGradient.apply(value, gradients, *inputs), kl=kl, ce=ce)


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradients with respect to some tensors have been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else known * outer[0] for known in ctx.gradients)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _count(labels: Tensor, count: int | None) -> int:
    """The divisor; 1 where nothing is valid, so that an empty batch has loss 0 and not NaN."""
    return max(labels.numel() if count is None else count, 1)


def _chunks(rows: int, vocabulary: int, device: str) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS[device] // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
