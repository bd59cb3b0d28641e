"""The distillation loss and its gradient in closed form (paper, section on training; method.md, section 4).

    L = a T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - a) CE(z_s, y)
    dL/dz_s = a T (softmax(z_s / T) - softmax(z_t / T)) + (1 - a) (softmax(z_s) - onehot(y))

both divided by the number of valid positions. The formula stands once, in `_block_in_place`. The gradient is known
when the loss is, so both are computed together, one chunk of positions at a time: no more than one chunk of the
student's logits and half a chunk of the teacher's exist.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from budgeted_lora.method.cost import loss_chunk

BLOCK_ELEMENTS = 2**17  # logits in a block of elementwise work: half a megabyte in float32


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
    device = hidden.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.no_grad(), torch.autocast(device, enabled=False):
        count = max(len(labels) if count is None else count, 1)  # so that an empty batch has loss 0 and not NaN
        kl = ce = torch.zeros((), dtype=_at_least_float32(hidden), device=hidden.device)
        inputs, weights = hidden.to(narrow), head.to(narrow)  # once: autocast would round them anew for every chunk
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head) if head.requires_grad else None
        size = loss_chunk(len(head), device=device, threads=torch.get_num_threads())
        for chunk in _slices(len(labels), size):
            logits = functional.linear(inputs[chunk], weights)
            gradient = logits.to(_at_least_float32(logits))  # of one dtype they share their memory
            for half in _slices(len(gradient), -(-len(gradient) // 2)):
                teacher_logits = functional.linear(teacher_hidden[chunk][half], teacher_head)
                sums = _gradient_in_place(
                    gradient[half], teacher_logits, labels[chunk][half], temperature=temperature, kd_weight=kd_weight,
                    count=count,
                )  # fmt: skip
                kl, ce = kl + sums[0], ce + sums[1]
                del teacher_logits
            gradient = gradient.to(narrow)
            hidden_gradient[chunk] = gradient @ weights
            if head_gradient is not None and narrow == head_gradient.dtype:
                head_gradient.addmm_(gradient.T, inputs[chunk])
            elif head_gradient is not None:
                head_gradient += gradient.T @ inputs[chunk]
            del logits, gradient  # before the next chunk's are made
        kl, ce = kl / count, ce / count
        loss = kd_weight * temperature**2 * kl + (1 - kd_weight) * ce
    return Losses(loss=_KnownGradient.apply(loss, hidden, hidden_gradient, head, head_gradient), kl=kl, ce=ce)


def _gradient_in_place(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, kd_weight: float, count: int
) -> tuple[Tensor, Tensor]:
    """Sums of KL and CE of logits [n, V]; dL/dz takes the place of the student's, which are float32 or wider.

    The teacher's are used up where they have the same dtype. On a CPU the elementwise work goes through blocks that
    fit a core's cache.
    """
    teacher = teacher.to(student.dtype)
    size = max(1, BLOCK_ELEMENTS // student.shape[-1]) if student.device.type == "cpu" else len(labels)
    kl = ce = student.new_zeros(())
    for block in _slices(len(labels), size):
        block_kl, block_ce = _block_in_place(
            student[block],
            teacher[block],
            labels[block, None],
            temperature=temperature,
            kd_weight=kd_weight,
            count=count,
        )
        kl, ce = kl + block_kl, ce + block_ce
    return kl, ce


def _block_in_place(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, kd_weight: float, count: int
) -> tuple[Tensor, Tensor]:
    """Sums of KL and CE of a block of logits [n, V]; the student's become their gradient, the teacher's are used up.

    One exponential per logit serves both softmaxes of the student where T is 1, 2 or 3: exp(z - m) is
    exp((z - m) / T)^T. With q and p the softmaxes at T of teacher and student, log q - log p is the difference of the
    scaled logits less that of their log-sums. Both models go through the same operations, so that equal logits give
    exactly no divergence and no gradient.
    """
    label_logits = student.gather(-1, labels)
    teacher.div_(temperature)
    student.div_(temperature)
    difference = teacher - student
    teacher_largest, student_largest = teacher.amax(-1, keepdim=True), student.amax(-1, keepdim=True)
    teacher.sub_(teacher_largest).exp_()
    student.sub_(student_largest)
    if temperature in (1, 2, 3):
        plain = student.exp_().pow(temperature)
    else:
        plain = (student * temperature).exp_()
        student.exp_()
    teacher_sum, student_sum, plain_sum = (part.sum(-1, keepdim=True) for part in (teacher, student, plain))
    log_sums = (teacher_largest + teacher_sum.log()) - (student_largest + student_sum.log())
    kl = torch.dot(teacher.div_(teacher_sum).flatten(), difference.flatten()) - log_sums.sum()
    ce = (temperature * student_largest + plain_sum.log() - label_logits).sum()
    student.div_(student_sum).sub_(teacher).mul_(kd_weight * temperature / count)
    student.addcdiv_(plain, plain_sum, value=(1 - kd_weight) / count)
    student.scatter_add_(-1, labels, student.new_full(labels.shape, -(1 - kd_weight) / count))
    return kl, ce


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradients with respect to hidden states and head have been computed already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, hidden: Tensor, hidden_gradient: Tensor, head: Tensor, head_gradient: Tensor | None
    ) -> Tensor:
        ctx.gradients = hidden_gradient, head_gradient
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss has given its gradients away; compute it again for another backward pass")
        of_hidden, of_head = ctx.gradients
        ctx.gradients = None  # scaled in place: a copy of the output layer's is as large as a chunk of logits
        return None, of_hidden.mul_(outer), None, None if of_head is None else of_head.mul_(outer), None


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
