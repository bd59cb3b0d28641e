"""How far a run is, and what it prints and writes on the way: history.csv, retention.csv, a progress bar."""

import csv
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import TrainingDiverged
from budgeted_lora.files import naming
from budgeted_lora.method.controller import Controller
from budgeted_lora.method.loop import Progress
from budgeted_lora.method.projections import BudgetedLinear

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
ACTIVE_GATE = 0.5  # a rank counts as active in the history above this gate; compression has its own threshold


class Log:
    """history.csv, retention.csv and the progress bar of one run. Reads device values at logged steps only."""

    def __init__(self, folder: Path, modules: Mapping[str, BudgetedLinear], recipe: Recipe, progress: Progress) -> None:
        self.folder, self.modules, self.recipe, self.progress = folder, modules, recipe, progress

    def __enter__(self) -> "Log":
        self._files = ExitStack()
        self.history = CsvLog(self.folder / "history.csv", HISTORY, position=self.progress.history)
        self._files.callback(self.history.close)
        columns = ["step", *self.modules]
        self.retention = CsvLog(self.folder / "retention.csv", columns, position=self.progress.retention)
        self._files.callback(self.retention.close)
        interval = 0.5 if sys.stderr.isatty() else 20.0
        self.bar = tqdm(
            total=self.recipe.steps, initial=self.progress.step, desc="train", unit="step", mininterval=interval
        )
        self._files.callback(self.bar.close)
        self._tick = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def row(self, recent: list[Tensor], *, rate: float, controller: Controller | None) -> None:
        """Writes the row of the current step from the values of the steps since the last one.

        Raises:
            TrainingDiverged: one of them is not finite; the row is written first.
        """
        progress, modules = self.progress, self.modules
        values = torch.stack(recent).tolist()  # the one point where the host waits for the device
        now = time.perf_counter()
        seconds, self._tick = now - self._tick, now
        speed = len(recent) * self.recipe.batch_windows * self.recipe.sequence_length / seconds
        loss, kl, ce, norm = (sum(column) / len(column) for column in zip(*values, strict=True))
        ranks = [module.active_ranks(threshold=ACTIVE_GATE) for module in modules.values()]
        target, retained = (controller.target, controller.retained_fraction) if controller else (1.0, 1.0)
        active = sum(ranks) / len(ranks) if ranks else ""
        self.history.row([progress.step, loss, kl, ce, rate, target, retained, active, norm, round(speed)])
        self.retention.row([progress.step, *(module.dense for module in modules.values())])
        self.bar.set_postfix(loss=f"{loss:.4f}", tokens_per_s=f"{speed:.0f}", refresh=False)
        self.bar.update(len(recent))
        for step, step_values in enumerate(values, start=progress.step - len(values) + 1):
            if not all(map(math.isfinite, step_values)):
                raise TrainingDiverged(
                    f"loss {step_values[0]}, gradient norm {step_values[3]} at step {step} of {self.recipe.steps} with "
                    f"learning rate {self.recipe.learning_rate:g}; lower it (history: {self.folder / 'history.csv'})"
                )
        progress.seconds += seconds
        progress.losses = (loss, kl, ce, norm)
        progress.history, progress.retention = self.history.position, self.retention.position


class CsvLog:
    """A CSV file that rows are appended to, and that can be cut back to an earlier length."""

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
