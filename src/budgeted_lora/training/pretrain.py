"""Making a teacher: plain next-token training of a decoder on the mix, from random weights, in one leg or several."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput, TrainingDiverged
from budgeted_lora.files import write_text
from budgeted_lora.training.state import TrainingState

CHECKPOINT_EVERY = 100  # steps; at mini about two minutes


@dataclass(frozen=True)
class PretrainPlan:
    """How long and how fast; steps follow from tokens.

    A leg goes on from the weights of the one before, in half precision, as a teacher is kept. Its optimizers are new,
    and so is its schedule: a teacher can be trained further long after its training state is gone.
    """

    legs: list[int]  # tokens of each
    sequence_length: int
    packing: str
    batch_windows: int
    micro_batch_windows: int
    learning_rate: float
    matrix_learning_rate: float | None
    weight_decay: float
    warmup_fraction: float
    clip: float
    seed: int
    compile: bool

    @property
    def leg_steps(self) -> list[int]:
        return [tokens // (self.batch_windows * self.sequence_length) for tokens in self.legs]

    @property
    def steps(self) -> int:
        return sum(self.leg_steps)

    @property
    def later_starts(self) -> list[int]:
        """The first step of each leg but the first."""
        return list(accumulate(self.leg_steps))[:-1]

    @property
    def rate_factors(self) -> list[float]:
        """What the peak rates are multiplied by, for each step."""
        fraction = self.warmup_fraction
        return [
            rate_factor(step, steps=steps, warmup_fraction=fraction)
            for steps in self.leg_steps
            for step in range(steps)
        ]


def window_order(windows: int, *, count: int, seed: int) -> np.ndarray:
    """`count` window numbers: seeded permutations of all windows, one after another."""
    generator = np.random.default_rng(seed)
    epochs = math.ceil(count / windows)
    return np.concatenate([generator.permutation(windows) for _ in range(epochs)])[:count]


def rate_factor(step: int, *, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up to 1, then linear decay that would reach 0 one step after the last."""
    warmup = max(1, round(warmup_fraction * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def optimizers(model: nn.Module, plan: PretrainPlan) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the projection matrices and AdamW for embeddings, head and norms."""
    matrices = [p for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    tables = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith("_proj.weight")]
    decayed = tables if plan.matrix_learning_rate else tables + matrices
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)
    ]
    if plan.matrix_learning_rate:
        made.append(
            torch.optim.Muon(
                matrices,
                lr=plan.matrix_learning_rate,
                weight_decay=plan.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return made


def next_token_loss(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token given those before it, padding unscored. Shapes: (windows, length)."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden).float()
    labels = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def new_leg(model: nn.Module, plan: PretrainPlan) -> list[torch.optim.Optimizer]:
    """Rounds the weights in place as they are kept between legs, to half precision, and returns new optimizers."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return optimizers(model, plan)


LossOf = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def add_gradients(
    model: nn.Module, loss_of: LossOf, ids: np.ndarray, mask: np.ndarray, *, rows: int, dtype: torch.dtype
) -> float:
    """Adds the gradients of the mean loss over all windows, `rows` at a time; returns that loss."""
    device = next(model.parameters()).device
    scored, total = int(mask[:, 1:].sum()), 0.0
    for first in range(0, len(ids), rows):
        part = slice(first, first + rows)
        inside = int(mask[part, 1:].sum())
        if not inside:  # windows of one token predict nothing, and an empty mean is NaN
            continue
        share = inside / scored  # so that a padded row counts for its tokens, however the batch is cut
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(model, torch.from_numpy(ids[part]).to(device), torch.from_numpy(mask[part]).to(device))
        (loss * share).backward()
        total += loss.item() * share
    return total


@dataclass
class PretrainRun:
    """What a run has done so far, over all of its processes.

    Attributes:
        losses: of every step.
        seconds: spent on the last `timed_steps` steps; a run that began at shipped weights knows no others.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    timed_steps: int = 0


def pretrain(
    model: nn.Module,
    tokens: TokenFile,
    plan: PretrainPlan,
    *,
    state: TrainingState | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
    dtype: torch.dtype = torch.float32,
    title: str = "pretrain",
) -> PretrainRun:
    """Trains in place, going on from `state` if a run was cut short.

    The bytes are the same whether or not the run was killed on the way. Products are computed in `dtype`, float32 or
    bfloat16 (by autocast).

    Raises:
        BadInput: fewer tokens than one step takes, asked for or in the file.
        TrainingDiverged: the loss is not finite; names the step.
    """
    windows = Windows(tokens, plan.sequence_length, plan.packing)
    if not all(plan.leg_steps) or not windows.count:
        raise BadInput(
            f"{title}: {min(plan.legs)} tokens from {windows.count} windows of {tokens.path}; expected at least one "
            f"window and one step of {plan.batch_windows * plan.sequence_length} tokens"
        )
    order = window_order(windows.count, count=plan.steps * plan.batch_windows, seed=plan.seed)
    made = optimizers(model, plan)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in made]
    factors, later_starts = plan.rate_factors, plan.later_starts
    loss_of = torch.compile(next_token_loss, dynamic=False) if plan.compile else next_token_loss
    model.train()
    run = PretrainRun(**((state and state.restore(model, *made)) or {}))
    losses = run.losses
    begun, start = len(losses), time.perf_counter()
    step_tokens, timed, spent = plan.batch_windows * plan.sequence_length, run.timed_steps, run.seconds
    bar = tqdm(range(begun, plan.steps), initial=begun, total=plan.steps, desc=title, mininterval=10, unit="step")
    for step in bar:
        if step in later_starts:
            made = new_leg(model, plan)
        ids, mask = windows.read(order[step * plan.batch_windows : (step + 1) * plan.batch_windows])
        losses.append(add_gradients(model, loss_of, ids, mask, rows=plan.micro_batch_windows, dtype=dtype))
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for optimizer, rates in zip(made, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factors[step]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(losses[-1]):
            raise TrainingDiverged(f"{title}: loss {losses[-1]} at step {step}; lower pretraining.learning_rate")
        run.timed_steps = timed + step + 1 - begun
        run.seconds = spent + time.perf_counter() - start
        if state and ((step + 1) % checkpoint_every == 0 or step + 1 == plan.steps):
            state.save(model, *made, values=asdict(run))
        if step % 20 == 0:
            speed = run.timed_steps * step_tokens / run.seconds
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", tokens_per_s=f"{speed:.0f}")
    return run


def write_losses(path: Path, losses: list[float]) -> None:
    """history.csv of a pretraining run: step, loss."""
    write_text(path, "step,loss\n" + "".join(f"{step},{loss:.6f}\n" for step, loss in enumerate(losses)))
