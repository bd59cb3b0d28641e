"""The history of a run as event files, which TensorBoard shows while the run goes on."""

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgeted_lora.files import naming

FLUSH_SECONDS = 10


class Curves:
    """A curve per column of history.csv.

    Args:
        folder: of this run alone; emptied first, since a resumed run writes its steps again.
        history: the rows of the part of the run before this one, which are written first.
    """

    def __init__(self, folder: Path, history: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, an extra

        self.folder = folder
        with naming(folder):
            shutil.rmtree(folder, ignore_errors=True)
            self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        with history.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                self.row(row)

    def row(self, values: Mapping[str, Any]) -> None:
        """Adds a row of the history; a column without a value has no point there."""
        with naming(self.folder):
            for name, value in values.items():
                if name != "step" and value != "":
                    self._writer.add_scalar(name, float(value), int(values["step"]))

    def close(self) -> None:
        with naming(self.folder):
            self._writer.close()
