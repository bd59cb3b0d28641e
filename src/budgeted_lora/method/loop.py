"""The training loop, one for KD Full, KD LoRA and Budgeted LoRA (paper, section on training; method.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.method.controller import Controller
from budgeted_lora.method.loss import Losses, linear_distillation_loss
from budgeted_lora.method.projections import BudgetedLinear, set_dense
from budgeted_lora.training.distributed import Ranks, draw_dropout
from budgeted_lora.training.state import TrainingState


def train(
    student: Any,
    modules: Mapping[str, BudgetedLinear],
    teacher: TeacherSource,
    tokens: TokenFile,
    recipe: Recipe,
    *,
    order: Sequence[int] | None = None,
    state: TrainingState,
    device: torch.device,
    precision: torch.dtype,
    log_every: int,
    checkpoint_every: int,
    ranks: Ranks | None = None,
) -> Progress:
    """Trains `student` in place, going on from `state` if a run was cut short.

    Same recipe, files, machine and thread count give the same bytes, whether or not the run was killed on the way.
    The state is saved at logged steps only, so checkpoint_every is rounded up to the next of them. Seeds torch's
    global generators, which dropout draws from.

    Args:
        student: the causal language model; what requires a gradient is trained.
        modules: its budgeted projections by name; empty for KD Full.
        order: indices of the projections in the order of removal; the paper's when None.
        precision: bfloat16 for autocast, or float32.
        log_every: steps between rows of history.csv and retention.csv, which lie in the state's folder. A row holds
            the means of loss, KL, CE and gradient norm since the last one, and the values of its own step else.
        ranks: the processes that train together; this one alone when None. The first one writes state and history, the
            others end with the same weights.

    Raises:
        BadInput: the token file holds no window, or the ranks cannot share a step's windows equally.
        TrainingDiverged: the loss or gradient is not finite; names the first such step. The history is on disk.
    """
    from budgeted_lora.training.progress import Log

    ranks = ranks or Ranks()
    available = tokens.len_windows(recipe.sequence_length, recipe.rows)
    if not available:
        raise BadInput(f"{tokens.path}: holds no window of {recipe.sequence_length} tokens; expected at least one")
    numbers = window_order(recipe, available=available)
    controller = new_controller(recipe, modules, order)
    optimizer = new_optimizer(student, recipe)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.manual_seed(recipe.seed)
    progress = Progress(**(state.restore(student, optimizer) or {}))
    if len(steps := set(ranks.gather(progress.step))) > 1:
        raise BadInput(f"{state.file}: the ranks read states of steps {sorted(steps)}; expected one, run again")
    if controller is not None and progress.coefficients is not None:
        controller.load(progress.coefficients)
        set_dense(modules, controller.coefficients)  # a run killed after its last step takes no other
    student.train()
    ranks.attach(student)
    saved_at, recent = progress.step, []

    with Log(state.folder, modules, recipe, progress) if ranks.first else nullcontext() as log:
        for n in range(progress.step, recipe.steps):
            if controller is not None:
                set_dense(modules, controller.step(n, steps=recipe.steps))
            rate = learning_rate(n, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_multiplier"]

            windows = numbers[n * recipe.batch_windows : (n + 1) * recipe.batch_windows]
            losses = accumulate_gradients(
                student, teacher, tokens, windows, recipe, device=device, precision=precision, ranks=ranks
            )
            norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimizer.step()
            optimizer.zero_grad()

            progress.step = n + 1
            if not ranks.first:
                continue
            recent.append(torch.cat([losses, norm.detach().reshape(1)]))
            progress.dense_macs += sum(module.macs for module in modules.values() if module.dense != 0.0)
            progress.retained += 1.0 if controller is None else controller.retained_fraction
            if progress.step % log_every == 0 or progress.step == recipe.steps:
                log.row(recent, rate=rate, controller=controller)
                recent = []
                if progress.step - saved_at >= checkpoint_every or progress.step == recipe.steps:
                    progress.coefficients = controller and controller.state()
                    state.save(student, optimizer, values=asdict(progress))
                    saved_at = progress.step
    return progress


def accumulate_gradients(
    student: Any,
    teacher: TeacherSource,
    tokens: TokenFile,
    windows: np.ndarray,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: torch.dtype,
    ranks: Ranks | None = None,
) -> Tensor:
    """Adds the gradient of one step's windows, a micro-batch at a time.

    Every part is divided by the valid positions of the whole step, so the sum does not depend on how it is cut.

    Returns:
        loss, KL and CE of the whole step, [3], on the device.
    """
    ranks = ranks or Ranks()
    ids, mask = tokens.windows(windows, sequence_length=recipe.sequence_length, packing=recipe.rows)
    scored = np.zeros_like(mask)  # position i predicts token i + 1, so the last one of a row predicts nothing
    scored[:, :-1] = mask[:, :-1] & mask[:, 1:]
    total = torch.zeros(3, device=device)
    parts = list(ranks.micro_batches(len(windows), micro_batch_windows=recipe.micro_batch_windows))
    last = max(number for number, (_, mine) in enumerate(parts) if mine)
    for number, (part, mine) in enumerate(parts):
        if not mine:
            draw_dropout(student, windows=len(windows[part]), length=recipe.sequence_length, device=device)
            continue
        positions = np.flatnonzero(scored[part])
        labels = torch.from_numpy(ids[part].ravel()[positions + 1]).to(device)
        index, batch = torch.from_numpy(positions).to(device), torch.from_numpy(ids[part]).to(device)
        target = teacher.hidden(windows[part], batch).flatten(0, 1).index_select(0, index)
        count = int(scored.sum())
        inputs = batch, index, labels, target, teacher.head, recipe, count, precision
        losses = ranks.forward(student_loss, student, *inputs, last=number == last)
        ranks.backward(losses.loss)
        total += torch.stack([losses.loss.detach(), losses.kl, losses.ce])
    return ranks.sum(total)


def student_loss(
    student: Any,
    batch: Tensor,
    index: Tensor,
    labels: Tensor,
    target: Tensor,
    teacher_head: Tensor,
    recipe: Recipe,
    count: int,
    precision: torch.dtype,
) -> Losses:
    """Forward pass and loss of one micro-batch.

    Args:
        batch: token ids, [B, L].
        index: the N positions of the flattened batch that are scored.
        labels: the token that follows each, [N].
        target: the teacher's final hidden states there, [N, H'].
        count: scored positions of the whole step.
    """
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden = student.model(input_ids=batch, use_cache=False).last_hidden_state
        return linear_distillation_loss(
            hidden.flatten(0, 1).index_select(0, index),
            student.lm_head.weight,
            target,
            teacher_head,
            labels,
            temperature=recipe.temperature,
            kd_weight=recipe.kd_weight,
            count=count,
        )


def window_order(recipe: Recipe, *, available: int) -> np.ndarray:
    """Window numbers in the order of training, [steps * batch].

    The first N windows of the file, where N is what the run needs (or all there are, several times over), permuted
    anew by seed and epoch: so every cell reads the front of one and the same teacher cache.
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
    recipe: Recipe, modules: Mapping[str, BudgetedLinear], order: Sequence[int] | None = None
) -> Controller | None:
    """The controller of a budgeted run; None for the methods whose dense paths stay."""
    if recipe.method != "budgeted_lora":
        return None
    return Controller(
        [module.macs for module in modules.values()],
        budget=recipe.budget,
        start=recipe.schedule_start,
        end=recipe.schedule_end,
        smoothing=recipe.smoothing,
        drop_threshold=recipe.drop_threshold,
        kind=recipe.controller,
        order=order,
    )


def new_optimizer(student: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what trains, and nothing else: frozen weights have no moments. Gates are a group of their own."""
    named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    gates = [parameter for name, parameter in named if name.endswith(".gate_logits")]
    groups = [
        {
            "params": [parameter for name, parameter in named if not name.endswith(".gate_logits")],
            "lr_multiplier": 1.0,
        }
    ]
    if gates:
        groups.append({"params": gates, "lr_multiplier": recipe.gate_lr_multiplier})
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )


class TeacherSource(Protocol):
    """What the training loop asks of a teacher."""

    head: Tensor  # [V, H'], in the teacher's dtype

    def hidden(self, windows: np.ndarray, ids: Tensor) -> Tensor:
        """Final hidden states [B, L, H'] of windows given by number and by their tokens [B, L]."""
        ...


@dataclass
class Progress:
    """How far a run is: what a resumed one needs besides tensors, and what is summed over all steps."""

    step: int = 0  # steps done
    coefficients: list[float] | None = None  # of the controller
    dense_macs: int = 0  # sum over steps of the dense MACs a token cost in the forward pass
    retained: float = 0.0  # sum over steps of the retained fraction
    seconds: float = 0.0
    history: int = 0  # bytes of history.csv
    retention: int = 0  # bytes of retention.csv
    losses: tuple[float, ...] = ()  # loss, KL, CE and gradient norm of the last row
