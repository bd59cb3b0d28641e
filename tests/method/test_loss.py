"""The loss against a float64 reference written with autograd, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from budgeted_lora.method import loss as loss_module
from budgeted_lora.method.loss import distillation_loss


def reference(student, teacher, labels, mask, *, temperature, kd_weight):
    """Plain double-precision form, written independently of the package's."""
    student, teacher = student[mask].double(), teacher[mask].double()
    share = torch.softmax(teacher / temperature, -1)
    kl = (share * (share.log() - torch.log_softmax(student / temperature, -1))).sum(-1).mean()
    ce = functional.cross_entropy(student, labels[mask])
    return kd_weight * temperature**2 * kl + (1 - kd_weight) * ce, kl, ce


def loss_of_logits(student, teacher, labels, mask, **arguments):
    """The loss of given logits [..., V]: hidden states of width V before a head that is the identity."""
    same = torch.eye(student.shape[-1], dtype=student.dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=student.dtype == torch.bfloat16):
        return distillation_loss(student[mask], same, teacher[mask], same.to(teacher.dtype), labels[mask], **arguments)


def batch(*, seed=0, shape=(3, 7), vocabulary=11, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = (torch.randn(*shape, vocabulary, generator=generator, dtype=torch.float64) * spread).to(dtype)
    teacher = (torch.randn(*shape, vocabulary, generator=generator, dtype=torch.float64) * spread).to(dtype)
    labels = torch.randint(vocabulary, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[0, 0] = True
    return student, teacher, labels, mask


def hidden_batch(*, seed=0, rows=23, hidden=5, teacher_hidden=7, vocabulary=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(vocabulary, (rows,), generator=generator)
    return (
        normal(rows, hidden),
        normal(vocabulary, hidden),
        normal(rows, teacher_hidden),
        normal(vocabulary, teacher_hidden),
        labels,
    )


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 2.0, 3.0]) | st.floats(0.5, 8.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.1, 1.0, 5.0]),
)
def test_values_and_gradient_agree_with_the_float64_reference(seed, temperature, kd_weight, spread):
    student, teacher, labels, mask = batch(seed=seed, spread=spread)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    losses = loss_of_logits(ours, teacher, labels, mask, temperature=temperature, kd_weight=kd_weight)
    expected, kl, ce = reference(theirs, teacher, labels, mask, temperature=temperature, kd_weight=kd_weight)
    losses.loss.backward()
    expected.backward()
    torch.testing.assert_close(losses.loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses.kl, kl.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses.ce, ce.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_gradient_is_the_closed_form_of_the_method():
    student, teacher, labels, mask = batch(seed=4)
    student.requires_grad_()
    t, a = 3.0, 0.8
    loss_of_logits(student, teacher, labels, mask, temperature=t, kd_weight=a).loss.backward()
    z_s, z_t = student.detach(), teacher
    closed = a * t * (torch.softmax(z_s / t, -1) - torch.softmax(z_t / t, -1))
    closed += (1 - a) * (torch.softmax(z_s, -1) - functional.one_hot(labels, z_s.shape[-1]))
    torch.testing.assert_close(student.grad, closed * mask[..., None] / mask.sum(), rtol=1e-10, atol=1e-14)


def test_gradient_agrees_with_finite_differences():
    student, teacher, labels, mask = batch(seed=2, shape=(2, 2), vocabulary=4)

    def loss(logits):
        return loss_of_logits(logits, teacher, labels, mask, temperature=2.0, kd_weight=0.6).loss

    loss(student.requires_grad_()).backward()
    expected = torch.zeros_like(student)
    with torch.no_grad():
        for place in np.ndindex(*student.shape):
            step = torch.zeros_like(student)
            step[place] = 1e-5
            expected[place] = (loss(student + step) - loss(student - step)) / 2e-5
    torch.testing.assert_close(student.grad, expected, rtol=1e-6, atol=1e-9)


def test_a_second_backward_pass_is_refused():
    student, teacher, labels, mask = batch()
    loss = loss_of_logits(student.requires_grad_(), teacher, labels, mask, temperature=2.0, kd_weight=0.6).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given its gradients away"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_divergence_and_no_gradient_when_student_is_teacher(dtype):
    student, _, labels, mask = batch(dtype=dtype)
    student.requires_grad_()
    losses = loss_of_logits(student, student.detach(), labels, mask, temperature=3.0, kd_weight=1.0)
    losses.loss.backward()
    assert losses.kl == 0.0
    assert losses.loss == 0.0
    assert not student.grad.any()


def test_temperature_squared_keeps_the_gradient_scale():
    """For large T the KL gradient tends to (centred logit difference) / V, whatever T: that is what T^2 is for."""
    student, teacher, labels, mask = batch(seed=8)
    grads = []
    for temperature in (1e3, 2e3):
        z = student.clone().requires_grad_()
        loss_of_logits(z, teacher, labels, mask, temperature=temperature, kd_weight=1.0).loss.backward()
        grads.append(z.grad)
    difference = student - teacher
    limit = (difference - difference.mean(-1, keepdim=True)) / student.shape[-1] * mask[..., None] / mask.sum()
    torch.testing.assert_close(grads[0], grads[1], rtol=5e-2, atol=1e-4)
    torch.testing.assert_close(grads[1], limit, rtol=5e-2, atol=1e-4)


def test_masked_positions_do_not_count():
    student, teacher, labels, mask = batch(seed=3)
    arguments = {"temperature": 3.0, "kd_weight": 0.8}
    before = loss_of_logits(student, teacher, labels, mask, **arguments).loss
    student[~mask], teacher[~mask], labels[~mask] = 1e6, -1e6, 0
    student.requires_grad_()
    after = loss_of_logits(student, teacher, labels, mask, **arguments).loss
    after.backward()
    assert before == after
    assert not student.grad[~mask].any()


def test_an_empty_mask_gives_zero_and_not_nan():
    student, teacher, labels, mask = batch()
    losses = loss_of_logits(student, teacher, labels, torch.zeros_like(mask), temperature=3.0, kd_weight=0.8)
    assert losses.loss == 0.0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 22))
def test_linear_form_equals_logits_form_for_any_chunk(seed, chunk_rows, block_rows, cut):
    hidden, head, teacher_hidden, teacher_head, labels = hidden_batch(seed=seed)
    arguments = {"temperature": 3.0, "kd_weight": 0.7}
    plain_hidden, plain_head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    plain = loss_of_logits(
        plain_hidden @ plain_head.T,
        teacher_hidden @ teacher_head.T,
        labels,
        torch.ones_like(labels, dtype=torch.bool),
        **arguments,
    )
    plain.loss.backward()

    hidden.requires_grad_(), head.requires_grad_()
    old = loss_module.loss_chunk, loss_module.BLOCK_ELEMENTS
    loss_module.loss_chunk = lambda vocabulary, **_: chunk_rows
    loss_module.BLOCK_ELEMENTS = block_rows * len(head)
    try:  # two unequal micro-batches, divided by the count of both
        total = 0.0
        for rows in (slice(0, cut), slice(cut, None)):
            losses = distillation_loss(
                hidden[rows], head, teacher_hidden[rows], teacher_head, labels[rows], count=len(labels), **arguments
            )
            losses.loss.backward()
            total += losses.loss.detach()
    finally:
        loss_module.loss_chunk, loss_module.BLOCK_ELEMENTS = old
    torch.testing.assert_close(total, plain.loss.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hidden.grad, plain_hidden.grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(head.grad, plain_head.grad, rtol=1e-10, atol=1e-13)


def test_micro_batches_of_unequal_valid_counts_add_up_to_one_batch():
    student, teacher, labels, mask = batch(seed=5, shape=(4, 6))
    mask[1:, 2:] = False
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    arguments = {"temperature": 3.0, "kd_weight": 0.8}
    loss_of_logits(whole, teacher, labels, mask, **arguments).loss.backward()
    for row in range(4):
        one = slice(row, row + 1)
        loss_of_logits(
            parts[one], teacher[one], labels[one], mask[one], count=int(mask.sum()), **arguments
        ).loss.backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)


def test_a_frozen_head_gets_no_gradient():
    hidden, head, teacher_hidden, teacher_head, labels = hidden_batch()
    hidden.requires_grad_()
    distillation_loss(
        hidden, head, teacher_hidden, teacher_head, labels, temperature=3.0, kd_weight=0.8
    ).loss.backward()
    assert head.grad is None
    assert hidden.grad.abs().sum() > 0


def test_float32_is_close_to_the_reference():
    student, teacher, labels, mask = batch(seed=1, shape=(4, 64), vocabulary=512, dtype=torch.float32)
    losses = loss_of_logits(student, teacher, labels, mask, temperature=3.0, kd_weight=0.8)
    expected, _, _ = reference(student, teacher, labels, mask, temperature=3.0, kd_weight=0.8)
    assert losses.loss.item() == pytest.approx(expected.item(), rel=2e-6)


def test_bfloat16_logits_are_summed_in_float32():
    student, teacher, labels, mask = batch(seed=1, shape=(4, 64), vocabulary=512, dtype=torch.bfloat16)
    losses = loss_of_logits(student, teacher, labels, mask, temperature=3.0, kd_weight=0.8)
    expected, _, _ = reference(student, teacher, labels, mask, temperature=3.0, kd_weight=0.8)
    assert losses.loss.dtype == torch.float32
    assert losses.loss.item() == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize("chunk", [3, 100])
def test_under_autocast_products_alone_are_rounded(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """A trained head in float32: against float64 of the rounded inputs, in one chunk and in eight."""
    monkeypatch.setattr(loss_module, "loss_chunk", lambda *a, **k: chunk)
    hidden, head, teacher_hidden, teacher_head, labels = hidden_batch(dtype=torch.float32)
    given = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distillation_loss(*given, teacher_hidden, teacher_head, labels, temperature=3.0, kd_weight=0.8)
    found.loss.backward()

    exact = [tensor.bfloat16().double().requires_grad_() for tensor in (hidden, head)]
    teacher = teacher_hidden.double() @ teacher_head.double().T
    every = torch.ones_like(labels, dtype=torch.bool)
    expected, *_ = reference(exact[0] @ exact[1].T, teacher, labels, every, temperature=3.0, kd_weight=0.8)
    expected.backward()
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-2, atol=1e-2)
    for mine, theirs in zip(given, exact, strict=True):
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=2e-2 * float(theirs.grad.abs().max()))
