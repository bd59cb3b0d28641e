"""Stage: one student, from its untrained model to the files of its cell."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from budgeted_lora.beyond.elastic import ElasticController, scheduled_fraction
from budgeted_lora.beyond.statistics import InputStatistics
from budgeted_lora.config.recipe import Recipe, compute_values
from budgeted_lora.config.types import Positive
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import sha256_file, short_hash, write_digest, write_with
from budgeted_lora.method.cost import train_compute
from budgeted_lora.method.loop import Processes, Progress, StatesDiffer, TeacherStates, train
from budgeted_lora.method.projections import BudgetedLinear, model_shape
from budgeted_lora.method.schedule import trained_share
from budgeted_lora.models.attention import attend_as_teacher, attend_in_blocks
from budgeted_lora.models.device import choose_device, compute_dtype, multiply_wide, peak_resident_bytes, prepare
from budgeted_lora.models.load import check_vocabulary, embedding_rows, load_model
from budgeted_lora.models.trained import Removal, save_trained
from budgeted_lora.provenance import Clock, device_in_use, write_result
from budgeted_lora.training.cache import HiddenCache, OnlineTeacher
from budgeted_lora.training.gpu_meter import GpuMeter
from budgeted_lora.training.install import HandOver, install_method
from budgeted_lora.training.progress import StateLog
from budgeted_lora.training.state import locked_folder
from budgeted_lora.workflow.code import code_digest
from budgeted_lora.workflow.curves import curves_of
from budgeted_lora.workflow.runs import discard


def train_cell(
    *,
    recipe: Recipe,
    cell: str,
    scale: str,
    student: Path,
    teacher: Path,
    tokens: Path,
    out: Path,
    state: Path,
    device: str,
    threads: Positive,
    log_every: Positive,
    checkpoint_every: Positive,
    cache: Path | None = None,
    statistics: Path | None = None,
    together: Processes | None = None,
) -> None:
    """Trains one student.

    Args:
        student, teacher: model folders; the student is untrained. Of a cached teacher only the output layer is read.
        tokens: train.bin, its .idx and .json beside it.
        cache: folder of the teacher's hidden states, or None to run the teacher beside the student.
        statistics: folder of the untrained student's statistics, where the recipe needs one.
        out: the cell's folder; gets trained/, history.csv, retention.csv, train.json and, last, trained.sha256.
        state: folder of training states; this run's own is named by cell and inputs.
        threads: CPU threads of each process; they affect the result bits.
        together: the processes that train together, all with these arguments; the first one writes. This one if None.

    Raises:
        BadInput: inputs do not fit each other, or another process trains this cell.
        TrainingDiverged: see `loop.train`.
    """
    clock, curves, processes = Clock(), curves_of(cell), together or Processes()
    place = prepare(device, threads=threads)
    precision = compute_dtype(recipe.precision, place)
    windows = training_windows(tokens, recipe, student=student, teacher=teacher, verify=processes.first)
    states = teacher_states(teacher, cache, windows, recipe, device=place, dtype=precision, verify=processes.first)
    model = load_model(student, dtype=torch.float32, verify=processes.first).to(place)
    attend_in_blocks(model)
    multiply_wide(model.config.hidden_size, place)
    seen = statistics and InputStatistics.open(statistics)
    modules, low_rank = install_method(model, recipe, seen)

    read = [student, teacher, tokens.with_suffix(".json"), cache and cache / "cache.json", statistics]
    inputs = [path for path in read if path is not None]
    devices = processes.gather(device_in_use())
    meter = GpuMeter(cuda_uuids(devices) if processes.first else [])
    key = state_key(recipe, inputs, place, precision, threads=threads, processes=processes, log_every=log_every)
    own_state = state / f"{cell}-{key}"
    with locked_folder(own_state) if processes.first else nullcontext(own_state) as folder:
        every = {"log_every": log_every, "checkpoint_every": checkpoint_every}
        log = StateLog(folder, modules, recipe, **every, meter=meter, curves=curves, writes=processes.first)
        run = {"log": log, "processes": processes} | steering(recipe, modules, low_rank.order, seen)
        try:
            progress = train(model, modules, states, windows, recipe, **run, device=place, precision=precision)
        except StatesDiffer as error:
            raise BadInput(f"{folder}: {error}") from None
        if not processes.first:
            return
        removal = Removal.of(recipe, low_rank.order)
        save_trained(out / "trained", model, method=recipe.method, modules=modules, removal=removal)
        results = summary(model, recipe, progress, device=place, precision=precision)
        results |= {"ranks": processes.count, "devices": devices, "low_rank": vars(low_rank)} | measured(meter)
        values = recipe.model_dump(mode="json") | compute_values(threads=threads, gpus_per_run=processes.count)
        about = {"scale": scale, "cell": cell, "values": values, "inputs": inputs, "clock": clock}
        write_result(out / "train.json", results, files=copy_histories(folder, out), **about)
        write_digest(out / "trained")
        discard(folder)


def steering(
    recipe: Recipe,
    modules: Mapping[str, BudgetedLinear],
    removal_order: Sequence[int] | None,
    statistics: InputStatistics | None,
) -> dict[str, Any]:
    """The arguments of `loop.train` that say which dense paths a step has and how one hands over.

    They are an order, or an elastic run's controller.
    """
    if not recipe.elastic:
        return {"removal_order": removal_order, "hand_over": HandOver.of(recipe, statistics)}
    costs = [module.macs for module in modules.values()]
    return {"controller": ElasticController.of(recipe, costs, removal_order)}


def cuda_uuids(devices: Sequence[dict[str, Any]]) -> list[str]:
    """UUIDs of the GPUs among the devices of a run's processes."""
    return [device["uuid"] for device in devices if device["type"] == "cuda"]


def measured(meter: GpuMeter) -> dict[str, Any]:
    """What the GPUs took, under `gpu`; empty where nothing was measured."""
    reading = meter.reading()
    return {} if reading is None else {"gpu": reading}


def copy_histories(folder: Path, out: Path) -> list[Path]:
    """Copies history.csv and retention.csv from a run's folder; returns the copies."""
    copies = [out / "history.csv", out / "retention.csv"]
    for copy in copies:
        write_with(copy, partial(shutil.copyfile, folder / copy.name))
    return copies


def train_together(number: int, count: int, arguments: dict[str, Any]) -> None:
    """Trains as process `number` of `count`, which torchrun started with the same arguments of `train_cell`."""
    from budgeted_lora.training.distributed import join, leave

    train_cell(**arguments, together=join(number, count, device=choose_device(arguments["device"])))
    leave()


def training_windows(tokens: Path, recipe: Recipe, *, student: Path, teacher: Path, verify: bool) -> Windows:
    """The windows of train.bin. Raises BadInput if a model has another vocabulary, or the file holds no window."""
    file = TokenFile.open(tokens, verify=verify)
    for folder, what in ((student, "student"), (teacher, "teacher")):
        check_vocabulary(folder, vocab_size=file.vocab_size, what=f"the token file {tokens} (for the {what})")
    smaller, larger = sorted((student, teacher), key=embedding_rows)
    if embedding_rows(larger) != embedding_rows(smaller):
        raise BadInput(
            f"{larger}: vocabulary of {embedding_rows(larger)}, but {smaller} has {embedding_rows(smaller)}; teacher "
            "and student must share one"
        )
    windows = Windows(file, recipe.sequence_length, recipe.rows)
    windows.refuse_empty()
    return windows


def state_key(
    recipe: Recipe,
    inputs: Sequence[Path],
    device: torch.device,
    precision: torch.dtype,
    *,
    threads: int,
    processes: Processes,
    log_every: int,
) -> str:
    """Digest of all that determines the bytes of a run; a saved state is resumed only if its key matches."""
    digests = [sha256_file(path) for path in inputs]
    values = [recipe.model_dump(mode="json"), digests, code_digest("train_cell"), torch.__version__]
    return short_hash([*values, str(device), str(precision), threads, processes.count, log_every], digits=12)


def teacher_states(
    teacher: Path,
    cache: Path | None,
    windows: Windows,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
    verify: bool,
) -> TeacherStates:
    """The teacher's hidden states, from its cache or computed beside the student."""
    if cache is None:
        return OnlineTeacher(attend_as_teacher(load_model(teacher, dtype=dtype, verify=verify)).to(device))
    count = min(recipe.steps * recipe.batch_windows, windows.count)
    return HiddenCache.open(cache, teacher=teacher, windows=windows, count=count, device=device, verify=verify)


def summary(
    model: Any, recipe: Recipe, progress: Progress, *, device: torch.device, precision: torch.dtype
) -> dict[str, Any]:
    """The results of train.json. Compute is that of the projections relative to KD Full (method.md, section 6)."""
    shape = model_shape(model)
    costs = {"method": recipe.method, "rank": recipe.rank}
    scheduled, executed = scheduled_fraction(recipe), 1.0
    loss, kl, ce, norm = progress.losses
    dense = sum(module.macs for module in model.modules() if isinstance(module, BudgetedLinear))
    trained = 0.0
    if dense:
        executed = progress.dense_macs / (dense * recipe.steps)
        trained = progress.trained_macs / (dense * recipe.steps)
    cuda = device.type == "cuda"
    return {
        "method": recipe.method,
        "loss": loss,
        "kl": kl,
        "ce": ce,
        "grad_norm": norm,
        "steps": recipe.steps,
        "tokens": recipe.tokens,
        "tokens_per_second": recipe.tokens / progress.seconds,
        "train_seconds": progress.seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else peak_resident_bytes(),
        "device": device.type,
        "computed_in": str(precision).removeprefix("torch."),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "dense_fraction": {"scheduled": scheduled, "retained": progress.retained / recipe.steps, "executed": executed},
        "train_compute": {
            "scheduled": train_compute(shape, rho=scheduled, trained=trained_share(recipe), **costs),
            "executed": train_compute(shape, rho=executed, trained=trained, **costs),
        },
    }
