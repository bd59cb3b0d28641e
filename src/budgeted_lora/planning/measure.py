"""A short measurement that replaces an assumed utilisation: a few training steps of each kind, with random weights.

The step is the pipeline's own (`method.loop.accumulate_gradients` and the optimiser), at the scale's shapes and
micro-batch; only the corpus and the checkpoints are made up. A budgeted student is timed with its dense paths whole
and without them; the time of a run lies between the two by its mean dense fraction. With several GPUs per student
(`gpus_per_run`) the part of one GPU is timed, without the sum of gradients over all.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from budgeted_lora.config.anatomy import SIZES, Anatomy
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.method.cost import forward_flops
from budgeted_lora.method.loop import accumulate_gradients, apply_gradients, new_optimizer
from budgeted_lora.method.projections import set_retentions
from budgeted_lora.models.attention import attend_as_teacher, attend_in_blocks
from budgeted_lora.models.device import compute_dtype, multiply_wide, peak_resident_bytes, prepare
from budgeted_lora.models.load import mistral_config, new_model
from budgeted_lora.planning.costs import Measured, ScaleCosts, calibration_key
from budgeted_lora.planning.devices import Device, of_one_process
from budgeted_lora.training.cache import OnlineTeacher
from budgeted_lora.training.install import install_method
from budgeted_lora.workflow.recipes import first_anatomy

WARM_UP, STEPS = 1, 3
MOST_SECONDS = 30.0  # a micro-batch that would take longer at the assumed rate is not measured


@dataclass(frozen=True)
class RandomWindows:
    """Windows of random tokens in place of a token file."""

    vocab_size: int
    sequence_length: int
    count: int

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.random.default_rng(0).integers(0, self.vocab_size, (len(indices), self.sequence_length))
        return ids, np.ones_like(ids, dtype=bool)


@dataclass(frozen=True)
class RandomCache:
    """Hidden states of the right size in place of a teacher's cache."""

    head: torch.Tensor

    def hidden(self, windows: np.ndarray, ids: torch.Tensor) -> torch.Tensor:
        return torch.randn(*ids.shape, self.head.shape[1], device=ids.device, dtype=self.head.dtype)


def calibrate(costs: ScaleCosts, *, threads: int) -> tuple[dict[str, Measured], list[str]]:
    """Time training steps of every kind that a scale's cells are made of.

    The caller must hold a device slot (`slots.gpu_slots`). Kinds whose micro-batch would take longer than
    `MOST_SECONDS`, such as the paper's sizes on a CPU, keep the assumed rate.

    Returns:
        The measurements by `calibration_key`, and a line for each kind that was skipped.
    """
    place = prepare("auto" if costs.device.is_gpu else "cpu", threads=threads)
    measured: dict[str, Measured] = {}
    skipped: list[str] = []
    for key, name, recipe in _kinds(costs):
        cost = next(cell for cell in costs.cells if cell.cell == name)
        recipe = of_one_process(recipe, processes=cost.processes)
        tokens = recipe.micro_batch_windows * recipe.sequence_length
        expected = cost.train_seconds * cost.processes / cost.tokens * tokens
        if expected > MOST_SECONDS:
            skipped.append(f"{key}: about {expected:.0f} s per micro-batch, not measured")
            continue
        try:
            measured[key] = _measured(costs, recipe, place=place)
        except torch.OutOfMemoryError:
            skipped.append(f"{key}: out of memory at {recipe.micro_batch_windows} windows per micro-batch")
            torch.cuda.empty_cache()
    return measured, skipped


@torch.no_grad()
def forward_measured(costs: ScaleCosts, *, threads: int) -> Device:
    """The device with the rate at which it runs the first teacher as texts are scored: one window, random weights.

    The rate of a step with gradients, which other jobs than trainings take too, keeps its ratio to this one. A GPU
    keeps the rates of the table.
    """
    if costs.device.is_gpu:
        return costs.device
    place, length = prepare("cpu", threads=threads), costs.config.sequence_length
    about = {"vocab_size": costs.vocab_size, "context": length, "end_id": 0}
    sizes = _sizes(first_anatomy(costs.config))
    model = new_model(mistral_config(**sizes, **about), seed=0).to(place).eval()
    multiply_wide(model.config.hidden_size, place)
    ids = torch.from_numpy(RandomWindows(costs.vocab_size, length, 1).read(np.arange(1))[0])
    times = []
    for _ in range(WARM_UP + STEPS):
        start = _now(place)
        model(input_ids=ids, use_cache=False)
        times.append(_now(place) - start)
    teacher = costs.teacher(costs.config.first_teacher)
    flops = length * forward_flops(teacher.shape, vocab_size=costs.vocab_size, sequence_length=length)
    share = flops / float(np.median(times[WARM_UP:])) / costs.device.float32
    return replace(costs.device, forward=share, step=share * costs.device.step / costs.device.forward)


def _kinds(costs: ScaleCosts) -> Iterator[tuple[str, str, Recipe]]:
    seen = set()
    for name in costs.graph.cells:
        recipe = costs.graph.recipe_of(name)
        key = calibration_key(recipe)
        if key not in seen:
            seen.add(key)
            yield key, name, recipe


def _measured(costs: ScaleCosts, recipe: Recipe, *, place: torch.device) -> Measured:
    """Seconds per token of one kind of student."""
    precision = compute_dtype(recipe.precision, place)
    ladder = costs.config.teacher_ladder
    first, taught_by = first_anatomy(costs.config), ladder[recipe.teacher].anatomy
    about = {"vocab_size": costs.vocab_size, "context": recipe.sequence_length, "end_id": 0}
    shape = _sizes(first) | {"layers": recipe.student_layers, "ffn": recipe.student_ffn or first.ffn}
    student = new_model(mistral_config(**shape, **about), seed=0).to(place)
    attend_in_blocks(student)
    multiply_wide(student.config.hidden_size, place)
    if costs.graph.cached:
        teacher: Any = RandomCache(torch.randn(costs.vocab_size, taught_by.hidden, device=place, dtype=precision))
    else:
        with torch.device(place):
            beside = new_model(mistral_config(**_sizes(taught_by), **about), seed=0).to(precision)
        teacher = OnlineTeacher(attend_as_teacher(beside))
    # How low-rank paths start, and in which order dense paths go, takes no time; both would need input statistics.
    plain = {"low_rank_init": None, "order": None, "rank_step": None, "statistics_windows": None}
    modules, _ = install_method(student, recipe.model_copy(update=plain))
    optimizer = new_optimizer(student, recipe)
    student.train()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    source = RandomWindows(costs.vocab_size, recipe.sequence_length, recipe.batch_windows)
    data = (student, teacher, source, np.arange(recipe.micro_batch_windows), recipe)
    accumulate = partial(accumulate_gradients, *data, device=place, precision=precision)
    times = []
    for retention in (1.0, 0.0) if recipe.method == "budgeted_lora" else (1.0,):
        set_retentions(modules, [retention] * len(modules))
        times.append(_seconds_per_token(accumulate, partial(apply_gradients, optimizer, modules), recipe, place=place))
    peak = torch.cuda.max_memory_allocated() if place.type == "cuda" else peak_resident_bytes()
    return Measured(whole=times[0], without=times[-1], peak_bytes=peak)


def _sizes(anatomy: Anatomy) -> dict[str, Any]:
    """Of a network, for a decoder of the paper's kind; biases and norms of heads take hardly any time."""
    return {name: getattr(anatomy, name) for name in (*SIZES, "head_dim", "tied")}


def _seconds_per_token(
    accumulate: Callable[[], object], update: Callable[[], object], recipe: Recipe, *, place: torch.device
) -> float:
    """Seconds per token of a whole step: the median time of a micro-batch, and of one update of the weights."""
    micro_batches, updates = [], []
    for _ in range(WARM_UP + STEPS):
        start = _now(place)
        accumulate()
        middle = _now(place)
        update()
        micro_batches.append(middle - start)
        updates.append(_now(place) - middle)
    per_window = float(np.median(micro_batches[WARM_UP:])) / recipe.micro_batch_windows
    update_per_window = float(np.median(updates[WARM_UP:])) / recipe.batch_windows
    return (per_window + update_per_window) / recipe.sequence_length


def _now(place: torch.device) -> float:
    if place.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
