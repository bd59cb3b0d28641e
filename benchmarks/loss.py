"""Row 3: the distillation loss alone, from hidden states to gradients of hidden states and output layer."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import goals
from benchmarks.context import Context
from benchmarks.measures import Measure, arm, limits, ratio, say, take_turns
from benchmarks.memory import Peak, peak_of
from benchmarks.shapes import Shape
from budgeted_lora.method.loss import distillation_loss
from budgeted_lora.models.device import multiply_wide, prepare

TEMPERATURE, KD_WEIGHT = 3.0, 0.8
SAME_LOSS = 1e-4
LIGER = "Liger's chunked loss"


@dataclass(frozen=True)
class Inputs:
    """[N, H], [V, H] of student and teacher, and [N] labels."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    labels: Tensor

    def gradients(self) -> list[Tensor]:
        return [tensor.grad for tensor in (self.hidden, self.head) if tensor.grad is not None]

    def clear(self) -> None:
        self.hidden.grad = self.head.grad = None


def inputs(shape: Shape, *, positions: int, head_trained: bool, device: torch.device) -> Inputs:
    """As in training: the student's are float32, the teacher's bfloat16 on a GPU, where the rest is in autocast."""
    generator = torch.Generator().manual_seed(0)
    teacher_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def normal(*size: int, scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(device, dtype)

    hidden = normal(positions, shape.hidden, scale=1.0)
    head = normal(shape.vocab_size, shape.hidden, scale=0.05)
    teacher_hidden = normal(positions, shape.hidden, scale=1.0, dtype=teacher_dtype)
    teacher_head = normal(shape.vocab_size, shape.hidden, scale=0.05, dtype=teacher_dtype)
    labels = torch.randint(shape.vocab_size, (positions,), generator=generator).to(device)
    return Inputs(hidden.requires_grad_(), head.requires_grad_(head_trained), teacher_hidden, teacher_head, labels)


def ours(given: Inputs) -> Tensor:
    return distillation_loss(
        given.hidden, given.head, given.teacher_hidden, given.teacher_head, given.labels, temperature=TEMPERATURE,
        kd_weight=KD_WEIGHT,
    ).loss  # fmt: skip


def eager(given: Inputs) -> Tensor:
    """The formula on whole float32 logits."""
    student = functional.linear(given.hidden, given.head).float()
    with torch.no_grad():
        teacher = functional.linear(given.teacher_hidden, given.teacher_head).float()
    kl = functional.kl_div(
        functional.log_softmax(student / TEMPERATURE, dim=-1),
        functional.softmax(teacher / TEMPERATURE, dim=-1),
        reduction="batchmean",
    )
    return KD_WEIGHT * TEMPERATURE**2 * kl + (1 - KD_WEIGHT) * functional.cross_entropy(student, given.labels)


def liger() -> Callable[[Inputs], Tensor]:
    """Liger's loss with the same weights of both terms; it always computes the gradient of the output layer.

    Raises:
        ImportError: it is not installed.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    function = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - KD_WEIGHT, weight_soft_loss=KD_WEIGHT * TEMPERATURE**2, beta=0.0,
        temperature=TEMPERATURE, compiled=False,
    )  # fmt: skip

    def run(given: Inputs) -> Tensor:
        teacher = (given.teacher_hidden, given.teacher_head)
        return function(given.hidden, given.head, *teacher, given.labels)

    return run


def value_of(function: Callable[[Inputs], Tensor], given: Inputs) -> Tensor:
    """The loss, in autocast on a GPU."""
    kind = given.hidden.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
        return function(given)


def timed(function: Callable[[Inputs], Tensor], given: Inputs, *, hidden: int) -> Callable[[], float]:
    """A turn of `function`, with the products that training chooses for a hidden size; 0 leaves torch's own."""

    def run() -> float:
        multiply_wide(hidden, given.hidden.device)
        given.clear()
        wait(given)
        start = time.perf_counter()
        value_of(function, given).backward()
        wait(given)
        return time.perf_counter() - start

    return run


def wait(given: Inputs) -> None:
    if given.hidden.device.type == "cuda":
        torch.cuda.synchronize()


def measure(context: Context) -> Iterator[Measure]:
    place = prepare(context.device, threads=context.threads)
    torch.use_deterministic_algorithms(False)  # a user of the peers would not ask for it
    for name in [name for name in context.shapes if name != "1B"]:
        shape = context.shape(name)
        positions = shape.tokens - shape.windows
        for head_trained in (True, False):
            say(f"  {name}: {positions} positions, head {'trained' if head_trained else 'frozen'}")
            given = inputs(shape, positions=positions, head_trained=head_trained, device=place)
            yield from times(context, shape, given, head_trained=head_trained)
        yield memory(context, shape, positions=4 * positions, device=place)


def times(context: Context, shape: Shape, given: Inputs, *, head_trained: bool) -> Iterator[Measure]:
    functions, note = {"ours": ours, "eager float32": eager}, ""
    if head_trained:
        try:
            value_of(liger(), given)
            functions[LIGER] = liger()
        except (ImportError, RuntimeError) as error:
            note = f"{LIGER}: {str(error).splitlines()[0]}"
    values = {name: float(value_of(function, given)) for name, function in functions.items()}
    samples = take_turns(
        {
            name: timed(function, given, hidden=shape.hidden if name == "ours" else 0)
            for name, function in functions.items()
        },
        rounds=context.rounds(7, quick=3),
    )
    for peer in [name for name in functions if name != "ours"]:
        difference = abs(values["ours"] - values[peer]) / abs(values[peer])
        same = "" if difference <= SAME_LOSS else "LOSSES DIFFER: "
        goal = goals.LOSS_TIME if shape.name == "paper" and peer == "eager float32" and head_trained else None
        yield Measure(
            row=3,
            what=f"loss, {'trained' if head_trained else 'frozen'} head, time",
            against=peer,
            shape=shape.name,
            threads=context.threads,
            peer=True,
            **ratio(samples[peer], samples["ours"]),
            **limits(goal),
            arms={name: arm(samples[name]) for name in ("ours", peer)},
            notes=[f"{same}loss differs by {difference:.0e}"],
        )
    if note:
        yield Measure(
            row=3, what="loss, trained head, time", against=LIGER, shape=shape.name, threads=context.threads,
            skipped=note,
        )  # fmt: skip


def memory(context: Context, shape: Shape, *, positions: int, device: torch.device) -> Measure:
    """Memory beyond inputs and gradients, in chunks of logits, at four times the positions that are timed."""

    def extra(function: Callable[[Inputs], Tensor], count: int) -> Peak:
        given = inputs(shape, positions=count, head_trained=True, device=device)

        def run() -> list[Tensor]:
            given.clear()
            value_of(function, given).backward()
            return given.gradients()

        run()
        given.clear()
        return peak_of(run, device=context.device)

    small, large, plain = extra(ours, positions // 4), extra(ours, positions), extra(eager, positions // 4)
    few, many, whole = (found.extra / 2**20 for found in (small, large, plain))
    notes = [f"{few:,.0f} MiB at {positions // 4} positions (eager {whole:,.0f}), {many:,.0f} MiB at {positions}"]
    head = shape.vocab_size * shape.hidden * torch.float32.itemsize
    buffers = [size for size in large.sizes if size != head]
    if not buffers:
        return Measure(
            row=3, what="loss, extra memory", against="eager float32", shape=shape.name, threads=context.threads,
            value=few / whole, better="lower", notes=notes,
        )  # fmt: skip
    return Measure(
        row=3,
        what="loss, extra memory in chunks of logits",
        shape=shape.name,
        threads=context.threads,
        value=large.extra / max(buffers),
        unit="",
        **limits(goals.LOSS_BUFFERS) if shape.name == "paper" else {"better": "lower"},
        notes=[*notes, f"a chunk has {max(buffers) / 2**20:,.1f} MiB"],
    )
