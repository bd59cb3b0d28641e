"""Stage: one student, from its untrained model to the files of its cell."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from budgeted_lora.beyond.low_rank import InputStatistics
from budgeted_lora.config.recipe import Recipe, compute_values
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.files import (
    sha256_file,
    short_hash,
    write_digest,
    write_with,
)
from budgeted_lora.method.cost import train_compute
from budgeted_lora.method.loop import Progress, TeacherSource, train
from budgeted_lora.method.projections import BudgetedLinear, model_shape
from budgeted_lora.method.schedule import mean_fraction
from budgeted_lora.models.device import compute_dtype, peak_resident_bytes, prepare
from budgeted_lora.models.load import check_vocabulary, load_model
from budgeted_lora.models.trained import save_trained
from budgeted_lora.provenance import Clock, device_in_use, write_result
from budgeted_lora.training.cache import HiddenCache, OnlineTeacher
from budgeted_lora.training.distributed import Ranks
from budgeted_lora.training.install import install_method
from budgeted_lora.training.state import TrainingState, locked_folder
from budgeted_lora.workflow.code import code_digest


def train_cell(
    *,
    recipe: Recipe,
    cell: str,
    scale: str,
    student: Path,
    teacher: Path,
    tokens: Path,
    cache: Path | None,
    statistics: Path | None = None,
    out: Path,
    state: Path,
    device: str,
    threads: int,
    log_every: int,
    checkpoint_every: int,
    ranks: Ranks | None = None,
) -> None:
    """Trains one student.

    Args:
        student: model folder of the untrained student.
        teacher: model folder of the teacher; of a cached one only the output layer is read.
        tokens: train.bin, its .idx and .json beside it.
        cache: folder of the teacher's hidden states, or None to run the teacher beside the student.
        statistics: folder of the untrained student's statistics, where the recipe needs one.
        out: the cell's folder; gets trained/ (model.safetensors, adapter.json), history.csv, retention.csv,
            train.json and, last, trained.sha256.
        state: folder under which the training state lies while the run is not done, named by cell and inputs.
        device: auto, cpu or cuda.
        threads: CPU threads of each process; part of what makes bytes repeat.
        ranks: the processes that train together; this one alone when None. All call this with the same arguments, and
            the first one alone writes files.

    Raises:
        BadInput: inputs do not fit each other, or another process trains this cell.
        TrainingDiverged: see `loop.train`.
    """
    clock = Clock()
    ranks = ranks or Ranks()
    place = prepare(device, threads=threads)
    precision = compute_dtype(recipe.precision, place)
    file = TokenFile.open(tokens, verify=ranks.first)
    for folder, what in ((student, "student"), (teacher, "teacher")):
        check_vocabulary(folder, vocab_size=file.vocab_size, what=f"the token file {tokens} (for the {what})")
    source = teacher_source(teacher, cache, file, recipe, device=place, dtype=precision, verify=ranks.first)
    model = load_model(student, dtype=torch.float32, verify=ranks.first).to(place)
    found = None if statistics is None else InputStatistics.open(statistics)
    modules, low_rank = install_method(model, recipe, found)

    inputs = [student, teacher, tokens.with_suffix(".json"), *([cache / "cache.json"] if cache else [])]
    inputs += [statistics] if statistics else []
    own_state = state / f"{cell}-{state_key(recipe, inputs, place, threads=threads, ranks=ranks)}"
    with locked_folder(own_state) if ranks.first else nullcontext(own_state) as folder:
        run = TrainingState(folder)
        progress = train(
            model,
            modules,
            source,
            file,
            recipe,
            order=low_rank.order,
            state=run,
            device=place,
            precision=precision,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            ranks=ranks,
        )
        devices = ranks.gather(device_in_use())
        if not ranks.first:
            return
        save_trained(out / "trained", model, method=recipe.method, modules=modules)
        for name in ("history.csv", "retention.csv"):
            write_with(out / name, lambda path, name=name: shutil.copyfile(folder / name, path))
        results = summary(model, recipe, progress, device=place, precision=precision) | {
            "ranks": ranks.count,
            "devices": devices,
            "low_rank": vars(low_rank),
        }
        about = {
            "scale": scale,
            "cell": cell,
            "values": recipe.model_dump(mode="json") | compute_values(threads=threads, gpus_per_run=ranks.count),
            "inputs": inputs,
            "clock": clock,
        }
        write_result(out / "train.json", results, files=[out / "history.csv", out / "retention.csv"], **about)
        write_digest(out / "trained")
        run.discard()


def state_key(recipe: Recipe, inputs: Sequence[Path], device: torch.device, *, threads: int, ranks: Ranks) -> str:
    """Digest of all that determines the bytes of a run: a state under another key is not gone on from."""
    digests = [sha256_file(path) for path in inputs]
    values = [recipe.model_dump(mode="json"), digests, code_digest("train"), torch.__version__, str(device)]
    return short_hash([*values, threads, ranks.count], digits=12)


def teacher_source(
    teacher: Path,
    cache: Path | None,
    tokens: TokenFile,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
    verify: bool,
) -> TeacherSource:
    """The teacher as the loop sees it, cached or online."""
    if cache is None:
        return OnlineTeacher(load_model(teacher, dtype=dtype, verify=verify).to(device))
    available = tokens.len_windows(recipe.sequence_length, recipe.rows)
    return HiddenCache.open(
        cache,
        teacher=teacher,
        tokens=tokens,
        windows=min(recipe.steps * recipe.batch_windows, available),
        sequence_length=recipe.sequence_length,
        packing=recipe.rows,
        device=device,
        verify=verify,
    )


def summary(
    model: Any, recipe: Recipe, progress: Progress, *, device: torch.device, precision: torch.dtype
) -> dict[str, Any]:
    """The results of train.json. Compute is that of the projections relative to KD Full (method.md, section 6)."""
    shape = model_shape(model)
    costs = {"method": recipe.method, "rank": recipe.rank}
    scheduled = executed = 1.0
    if recipe.method == "budgeted_lora":
        scheduled = mean_fraction(budget=recipe.budget, start=recipe.schedule_start, end=recipe.schedule_end)
    loss, kl, ce, norm = progress.losses
    dense = sum(module.macs for module in model.modules() if isinstance(module, BudgetedLinear))
    if dense:
        executed = progress.dense_macs / (dense * recipe.steps)
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
        "dense_fraction": {
            "scheduled": scheduled,
            "retained": progress.retained / recipe.steps,
            "executed": executed,
        },
        "train_compute": {
            "scheduled": train_compute(shape, rho=scheduled, **costs),
            "executed": train_compute(shape, rho=executed, **costs),
        },
    }
