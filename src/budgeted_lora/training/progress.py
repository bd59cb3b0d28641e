"""The record of a run: history.csv, retention.csv, a progress bar, and the saved state from which it continues."""

import csv
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import TrainingDiverged
from budgeted_lora.files import naming
from budgeted_lora.method.controller import Dial
from budgeted_lora.method.loop import Progress
from budgeted_lora.method.projections import BudgetedLinear
from budgeted_lora.training.curves import Curves
from budgeted_lora.training.gpu_meter import GpuMeter
from budgeted_lora.training.state import TrainingState

HISTORY = (
    "step",
    "loss",
    "kl",
    "ce",
    "lr",
    "target_fraction",
    "retained_fraction",
    "active_ranks",
    "grad_norm",
    "tokens_per_second",
)
GPU = "gpu"  # in a saved state, what the meter counted
ACTIVE_GATE = 0.5  # a rank counts as active in the history above this gate; compression has its own threshold


class StateLog:
    """The log of one run in the folder of its state (`method.loop.RunLog`). Reads device values at logged steps only.

    Args:
        folder: holds the state, history.csv and retention.csv.
        log_every: steps between rows of the two files. A row holds the means of loss, KL, CE and gradient norm since
            the last row, and the values of its own step otherwise.
        checkpoint_every: steps between saved states, rounded up to the next logged step.
        meter: measures the GPUs of the run while the log is open.
        curves: folder for the same rows as event files of TensorBoard; none without it.
        writes: False for a process that trains along and leaves the files to the first one.
    """

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, BudgetedLinear],
        recipe: Recipe,
        *,
        log_every: int,
        checkpoint_every: int,
        meter: GpuMeter | None = None,
        curves: Path | None = None,
        writes: bool = True,
    ) -> None:
        self.folder, self.modules, self.recipe, self.writes = folder, modules, recipe, writes
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.state = TrainingState(folder)
        self._curves_folder, self._curves = curves, None
        self.meter = meter or GpuMeter([])
        self._recent: list[Tensor] = []
        self._files = ExitStack()

    def restore(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        saved = self.state.restore(student, optimizer) or {}
        if saved:
            self.meter.resume(saved.pop(GPU, None))
        self.progress = Progress(**saved)
        self._trained, self._saved_at = (student, optimizer), self.progress.step
        return self.progress

    def __enter__(self) -> "StateLog":
        if not self.writes:
            return self
        self._files.enter_context(self.meter)
        self.history = CsvLog(self.folder / "history.csv", HISTORY, position=self.progress.history)
        self._files.callback(self.history.close)
        columns = ["step", *self.modules]
        self.retention = CsvLog(self.folder / "retention.csv", columns, position=self.progress.retention)
        self._files.callback(self.retention.close)
        if self._curves_folder is not None:
            self._curves = Curves(self._curves_folder, self.folder / "history.csv")
            self._files.callback(self._curves.close)
        interval = 0.5 if sys.stderr.isatty() else 20.0
        self.bar = tqdm(
            total=self.recipe.steps, initial=self.progress.step, desc="train", unit="step", mininterval=interval
        )
        self._files.callback(self.bar.close)
        self._tick = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def step(self, values: Tensor, *, rate: float, controller: Dial | None) -> None:
        if not self.writes:
            return
        self._recent.append(values)
        ended = self.progress.step == self.recipe.steps
        if not ended and self.progress.step % self.log_every:
            return
        self._write_row(rate=rate, controller=controller)
        if ended or self.progress.step - self._saved_at >= self.checkpoint_every:
            self.state.save(*self._trained, values=asdict(self.progress) | {GPU: self.meter.state()})
            self._saved_at = self.progress.step

    def _write_row(self, *, rate: float, controller: Dial | None) -> None:
        """Writes the rows of the current step from the values of the steps since the last row."""
        progress, modules = self.progress, self.modules
        values = torch.stack(self._recent).tolist()  # the one point where the host waits for the device
        self._recent = []
        now = time.perf_counter()
        seconds, self._tick = now - self._tick, now
        speed = len(values) * self.recipe.batch_windows * self.recipe.sequence_length / seconds
        loss, kl, ce, norm = (sum(column) / len(column) for column in zip(*values, strict=True))
        ranks = [module.active_ranks(threshold=ACTIVE_GATE) for module in modules.values()]
        target, retained = (controller.target, controller.retained_fraction) if controller else (1.0, 1.0)
        active = sum(ranks) / len(ranks) if ranks else ""
        row = [progress.step, loss, kl, ce, rate, target, retained, active, norm, round(speed)]
        self.history.row(row)
        if self._curves is not None:
            self._curves.row(dict(zip(HISTORY, row, strict=True)))
        self.retention.row([progress.step, *(module.retention for module in modules.values())])
        self.bar.set_postfix(loss=f"{loss:.4f}", tokens_per_s=f"{speed:.0f}", refresh=False)
        self.bar.update(len(values))
        self._refuse_divergence(values)
        progress.seconds += seconds
        progress.losses = (loss, kl, ce, norm)
        progress.history, progress.retention = self.history.position, self.retention.position

    def _refuse_divergence(self, values: list[list[float]]) -> None:
        """Raises TrainingDiverged if a value of the last steps is not finite; their row has been written."""
        for step, step_values in enumerate(values, start=self.progress.step - len(values) + 1):
            if not all(map(math.isfinite, step_values)):
                raise TrainingDiverged(
                    f"loss {step_values[0]}, gradient norm {step_values[3]} at step {step} of {self.recipe.steps} with "
                    f"learning rate {self.recipe.learning_rate:g}; lower it (history: {self.folder / 'history.csv'})"
                )


class CsvLog:
    """A CSV file to which rows are appended, and which can be cut back to an earlier length."""

    def __init__(self, file: Path, columns: Sequence[str], *, position: int) -> None:
        self._file = file
        self._stream = file.open("a+", newline="", encoding="utf-8")
        self._stream.truncate(position)
        self._stream.seek(0, os.SEEK_END)
        self._writer = csv.writer(self._stream)
        if position == 0:
            self.row(columns)

    def row(self, values: Sequence[Any]) -> None:
        """Appends one row, on disk when this returns."""
        with naming(self._file):
            self._writer.writerow(values)
            self._stream.flush()
            os.fsync(self._stream.fileno())

    @property
    def position(self) -> int:
        """Length in bytes, for `position` of a later run."""
        return self._stream.tell()

    def close(self) -> None:
        with naming(self._file):
            self._stream.close()
