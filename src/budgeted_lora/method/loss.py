"""The distillation loss and its gradient in closed form (paper, section on training; method.md, section 4).

    L = a T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - a) CE(z_s, y)
    dL/dz_s = a T (softmax(z_s / T) - softmax(z_t / T)) + (1 - a) (softmax(z_s) - onehot(y))

both divided by the number of valid positions. The formula stands once, in `_sums_and_gradient`. The gradient is known
when the loss is, so both are computed together, one chunk of positions at a time: no more than one chunk of logits
exists.
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
    """The loss from the inputs of both output layers.

    The teacher's logits are computed in its own dtype, outside autocast, so they are exactly the teacher's.

    Args:
        hidden: [N, H] final hidden states of the student at the valid positions.
        head: [V, H] output weights of the student; they get a gradient if they require one.
        teacher_hidden, teacher_head: [N, H'], [V, H'], of one dtype.
        labels: [N] int64, the token that follows each position.
        temperature: T > 0, for the KL term only.
        kd_weight: a in [0, 1].
        count: what the sums are divided by; N when None. Give the whole step's count to accumulate over
            micro-batches: their losses and gradients then add up to those of one batch.
    """
    with torch.no_grad():
        count = max(len(labels) if count is None else count, 1)  # so that an empty batch has loss 0 and not NaN
        kl = ce = torch.zeros((), dtype=_at_least_float32(hidden), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head) if head.requires_grad else None
        for chunk in _chunks(len(labels), head.shape[0], hidden.device.type):
            logits = functional.linear(hidden[chunk], head)
            with torch.autocast(hidden.device.type, enabled=False):
                teacher_logits = functional.linear(teacher_hidden[chunk], teacher_head)
            chunk_kl, chunk_ce, gradient = _sums_and_gradient(
                logits, teacher_logits, labels[chunk], temperature=temperature, kd_weight=kd_weight, count=count
            )
            kl, ce = kl + chunk_kl, ce + chunk_ce
            hidden_gradient[chunk] = gradient @ head
            if head_gradient is not None:
                head_gradient += gradient.T @ hidden[chunk]
        kl, ce = kl / count, ce / count
        loss = kd_weight * temperature**2 * kl + (1 - kd_weight) * ce
    return Losses(loss=_KnownGradient.apply(loss, hidden, hidden_gradient, head, head_gradient), kl=kl, ce=ce)


def _sums_and_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, kd_weight: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of KL, sum of CE, and dL/dz [n, V] of logits [n, V]; at least float32, in place where that saves a copy."""
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


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradients with respect to hidden states and head have been computed already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, hidden: Tensor, hidden_gradient: Tensor, head: Tensor, head_gradient: Tensor | None
    ) -> Tensor:
        ctx.hidden_gradient, ctx.head_gradient = hidden_gradient, head_gradient
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        of_head = None if ctx.head_gradient is None else ctx.head_gradient * outer
        return None, ctx.hidden_gradient * outer, None, of_head, None


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(positions: int, vocabulary: int, device: str) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS[device] // vocabulary)
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]
