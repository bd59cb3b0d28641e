"""The training loop of KD Full, KD LoRA and Budgeted LoRA (paper, section on training; method.md, section 4).

The loop knows no files. Teacher, windows, log and processes are handed to it; the protocols below say what it needs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput
from budgeted_lora.method.controller import Controller, Dial
from budgeted_lora.method.loss import Losses, distillation_loss
from budgeted_lora.method.projections import BudgetedLinear, set_retentions
from budgeted_lora.method.schedule import BudgetRule


class TeacherStates(Protocol):
    """Gives the teacher's final hidden states, computed on the spot or read from a cache."""

    head: Tensor  # [V, H'], output weights

    def hidden(self, windows: np.ndarray, ids: Tensor) -> Tensor:
        """Final hidden states of windows, [B, L, H'], in the head's dtype; `ids` are their tokens, [B, L]."""


class TrainingWindows(Protocol):
    """The training tokens, cut into windows; at least one."""

    count: int

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [B, L] of windows by number, and which of them are valid, of the same shape."""


@dataclass
class Progress:
    """How far a run has got: what a resumed run needs besides tensors, and sums over all steps."""

    step: int = 0  # steps done
    retentions: list[float] | None = None  # of the controller
    dense_macs: int = 0  # sum over steps of the dense MACs per token in the forward pass
    trained_macs: int = 0  # those of them whose weights have a gradient
    retained: float = 0.0  # sum over steps of the retained fraction
    seconds: float = 0.0
    history: int = 0  # bytes of history.csv
    retention: int = 0  # bytes of retention.csv
    losses: tuple[float, ...] = ()  # loss, KL, CE and gradient norm of the last row

    def count(self, step: int, modules: Mapping[str, BudgetedLinear], controller: Dial | None) -> None:
        """Counts a step that is done, the `step`-th."""
        self.step = step
        self.dense_macs += sum(module.macs for module in modules.values() if module.retention != 0.0)
        self.trained_macs += sum(module.macs for module in modules.values() if module.trains_dense)
        self.retained += 1.0 if controller is None else controller.retained_fraction
        self.retentions = None if controller is None else list(controller.retentions)


class RunLog(Protocol):
    """Records a run and saves its state. The loop reports every step; the log chooses what it writes, and when."""

    def restore(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Puts a saved state into student, optimizer and random generators, and returns how far it was."""

    def __enter__(self) -> "RunLog": ...

    def __exit__(self, *error: object) -> None: ...

    def step(self, values: Tensor, *, rate: float, controller: Dial | None) -> None:
        """Takes loss, KL, CE and gradient norm of the step that `Progress` counted last, [4] on the device.

        Raises:
            TrainingDiverged: one of them is not finite.
        """


class StatesDiffer(BadInput):
    """Processes that train together restored states of different steps; the message names no file."""


class Processes:
    """The processes that train one student, as one of them sees them. This is one process alone."""

    first = True  # whether this process writes files
    count = 1

    def attach(self, student: nn.Module, *, step: int) -> None:
        """Prepares to sum gradients of a student that has been restored at `step`, the same in every process.

        Raises:
            StatesDiffer: it is not the same.
        """

    def micro_batches(self, windows: int, *, micro_batch_windows: int) -> Iterator[tuple[slice, bool]]:
        """The micro-batches of a step of `windows` windows in order, and whether this process computes them."""
        for start in range(0, windows, micro_batch_windows):
            yield slice(start, start + micro_batch_windows), True

    def skip(self, student: nn.Module, *, windows: int, length: int, device: torch.device) -> None:
        """Draws the random numbers of a micro-batch that another process computes."""

    def forward(self, function: Callable[..., Any], student: nn.Module, *arguments: Any, last: bool) -> Any:
        """function(student, *arguments); `last` marks the last micro-batch that this process computes in a step."""
        return function(student, *arguments)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this process's share of a loss."""
        loss.backward()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order; small and JSON-like."""
        return [value]


def train(
    student: Any,
    modules: Mapping[str, BudgetedLinear],
    teacher: TeacherStates,
    windows: TrainingWindows,
    recipe: Recipe,
    *,
    log: RunLog,
    removal_order: Sequence[int] | None = None,
    controller: Dial | None = None,
    hand_over: Callable[[str, BudgetedLinear], None] | None = None,
    processes: Processes | None = None,
    device: torch.device,
    precision: torch.dtype,
) -> Progress:
    """Trains `student` in place, continuing from the state in `log` if a run was cut short.

    The same recipe, files, machine and thread count give the same bytes, whether or not the run was killed on the way.
    Seeds torch's global generators, from which dropout draws.

    Args:
        student: the causal language model; every parameter that requires a gradient is trained.
        modules: its budgeted projections by name; empty for KD Full.
        removal_order: indices of the projections in the order in which their dense paths go; the paper's when None.
        controller: sets the retentions of each step; the recipe's own when None, see `new_controller`.
        hand_over: called with name and projection before the first step at which a dense path that trained fades; it
            may set the low-rank path anew, whose moments in the optimiser are forgotten.
        processes: the processes that train together; this one alone when None. All end with the same weights.
        precision: bfloat16 for autocast, or float32.

    Raises:
        BadInput: the processes cannot share a step's windows equally.
        StatesDiffer: they restored states of different steps.
        TrainingDiverged: the loss or gradient is not finite; names the first such step.
    """
    processes = processes or Processes()
    numbers = window_order(recipe, available=windows.count)
    controller = controller or new_controller(recipe, modules, removal_order)
    optimizer = new_optimizer(student, recipe)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.manual_seed(recipe.seed)
    progress = log.restore(student, optimizer)
    if controller is not None and progress.retentions is not None:
        controller.load(progress.retentions)
        set_retentions(modules, controller.retentions)  # needed if the run was killed after its last step
    student.train()
    processes.attach(student, step=progress.step)

    with log:
        for n in range(progress.step, recipe.steps):
            if controller is not None:
                fading = move_retentions(modules, controller.step(n, steps=recipe.steps))
                start_anew({name: modules[name] for name in fading}, optimizer, hand_over)
            rate = learning_rate(n, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_multiplier"]

            chosen = numbers[n * recipe.batch_windows : (n + 1) * recipe.batch_windows]
            losses = accumulate_gradients(
                student, teacher, windows, chosen, recipe, device=device, precision=precision, processes=processes
            )
            norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
            apply_gradients(optimizer, modules)

            progress.count(n + 1, modules, controller)
            log.step(torch.cat([losses, norm.detach().reshape(1)]), rate=rate, controller=controller)
    return progress


def move_retentions(modules: Mapping[str, BudgetedLinear], retentions: Sequence[float]) -> list[str]:
    """Sets the retentions of a step; returns the names of projections whose dense path trained until now and fades."""
    trained = [name for name, module in modules.items() if module.trains_dense]
    set_retentions(modules, retentions)
    return [name for name in trained if not modules[name].trains_dense]


def start_anew(
    modules: Mapping[str, BudgetedLinear],
    optimizer: torch.optim.Optimizer,
    hand_over: Callable[[str, BudgetedLinear], None] | None,
) -> None:
    """Hands projections over to their low-rank paths, whose moments in the optimiser are those of other weights."""
    for name, module in modules.items():
        if hand_over is not None:
            hand_over(name, module)
            module.forget_merged()
            for parameter in (module.lora_a, module.lora_b):
                optimizer.state.pop(parameter, None)


def apply_gradients(optimizer: torch.optim.Optimizer, modules: Mapping[str, BudgetedLinear]) -> None:
    """One update of the weights; merged weights of the projections no longer hold after it."""
    optimizer.step()
    optimizer.zero_grad()
    for module in modules.values():
        module.forget_merged()


@dataclass(frozen=True)
class MicroBatch:
    """A part of one step.

    Attributes:
        ids: tokens, [B, L].
        scored: the N positions of the flattened batch that are scored.
        labels: the token that follows each of them, [N].
        teacher_hidden: the teacher's final hidden states there, [N, H'].
        count: scored positions of the whole step, by which the loss is divided.
    """

    ids: Tensor
    scored: Tensor
    labels: Tensor
    teacher_hidden: Tensor
    count: int


def accumulate_gradients(
    student: Any,
    teacher: TeacherStates,
    windows: TrainingWindows,
    chosen: np.ndarray,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: torch.dtype,
    processes: Processes | None = None,
) -> Tensor:
    """Adds the gradient of the `chosen` windows of one step, micro-batch by micro-batch.

    Every part is divided by the scored positions of the whole step, so the sum does not depend on how it is cut.

    Returns:
        loss, KL and CE of the whole step, [3], on the device.
    """
    processes = processes or Processes()
    ids, mask = windows.read(chosen)
    scored = np.zeros_like(mask)  # position i predicts token i + 1, so the last one of a window predicts nothing
    scored[:, :-1] = mask[:, :-1] & mask[:, 1:]
    count = int(scored.sum())
    total = torch.zeros(3, device=device)
    parts = list(processes.micro_batches(len(chosen), micro_batch_windows=recipe.micro_batch_windows))
    last = max(number for number, (_, mine) in enumerate(parts) if mine)
    for number, (part, mine) in enumerate(parts):
        if not mine:
            processes.skip(student, windows=len(chosen[part]), length=recipe.sequence_length, device=device)
            continue
        positions = np.flatnonzero(scored[part])
        labels = torch.from_numpy(ids[part].ravel()[positions + 1]).to(device)
        index, batch = torch.from_numpy(positions).to(device), torch.from_numpy(ids[part]).to(device)
        hidden = teacher.hidden(chosen[part], batch).flatten(0, 1).index_select(0, index)
        micro = MicroBatch(batch, index, labels, hidden, count)
        losses = processes.forward(student_loss, student, micro, teacher.head, recipe, precision, last=number == last)
        processes.backward(losses.loss)
        total += torch.stack([losses.loss.detach(), losses.kl, losses.ce])
    return processes.sum(total)


def student_loss(
    student: Any, micro: MicroBatch, teacher_head: Tensor, recipe: Recipe, precision: torch.dtype
) -> Losses:
    """Forward pass and loss of one micro-batch; `teacher_head` is [V, H']."""
    with torch.autocast(micro.ids.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden = student.model(input_ids=micro.ids, use_cache=False).last_hidden_state
        return distillation_loss(
            hidden.flatten(0, 1).index_select(0, micro.scored),
            student.lm_head.weight,
            micro.teacher_hidden,
            teacher_head,
            micro.labels,
            temperature=recipe.temperature,
            kd_weight=recipe.kd_weight,
            count=micro.count,
        )


def window_order(recipe: Recipe, *, available: int) -> np.ndarray:
    """Window numbers in the order of training, [steps * batch].

    A run uses the first N windows of the file, where N is what it needs (or all there are, several times over),
    permuted again for each epoch by the seed. So every cell reads the front of the same teacher cache.
    """
    needed = recipe.steps * recipe.batch_windows
    used = min(needed, available)
    epochs = [
        np.random.default_rng([recipe.seed, epoch]).permutation(used) for epoch in range(math.ceil(needed / used))
    ]
    return np.concatenate(epochs)[:needed]


def learning_rate(n: int, recipe: Recipe) -> float:
    """Rate of step n = 0 .. steps - 1: linear warm-up to the peak, then a cosine that reaches 0 after the last step."""
    warmup = min(round(recipe.warmup_fraction * recipe.steps), recipe.warmup_cap)
    if n < warmup:
        return recipe.learning_rate * (n + 1) / warmup
    return recipe.learning_rate * (1 + math.cos(math.pi * (n - warmup) / (recipe.steps - warmup))) / 2


def new_controller(
    recipe: Recipe, modules: Mapping[str, BudgetedLinear], removal_order: Sequence[int] | None = None
) -> Controller | None:
    """The controller of a budgeted run; None for the methods whose dense paths stay."""
    if recipe.method != "budgeted_lora":
        return None
    costs = [module.macs for module in modules.values()]
    return Controller(costs, BudgetRule.of(recipe), removal_order=removal_order)


def new_optimizer(student: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters that train: frozen weights have no moments.

    Gates are a group of their own, and so are dense paths beside a low-rank one; each has its own rate.
    """
    budgeted = [module for module in student.modules() if isinstance(module, BudgetedLinear)]
    gates = {id(module.gate_logits) for module in budgeted}
    dense = {id(module.weight) for module in budgeted}
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in trained if id(p) not in gates | dense], "lr_multiplier": 1.0}]
    if own := [p for p in trained if id(p) in gates]:
        groups.append({"params": own, "lr_multiplier": recipe.gate_lr_multiplier})
    if own := [p for p in trained if id(p) in dense]:
        groups.append({"params": own, "lr_multiplier": recipe.dense_learning_rate / recipe.learning_rate})
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
