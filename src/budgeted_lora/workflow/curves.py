"""Where trainings write curves for TensorBoard. Jobs are told by their environment.

A parameter of their rule would train every student again when the key is switched on or off, and no result depends
on it.
"""

import importlib.util
import os
from pathlib import Path

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput

VARIABLE = "BUDGETED_LORA_TENSORBOARD"  # tells a job the folder of the curves


def offer_curves(config: Config, results: Path | str) -> None:
    """Tells the jobs that this process will start whether to write curves, and where.

    Raises:
        BadInput: they are to be written, and the package is missing.
    """
    os.environ.pop(VARIABLE, None)
    if config.tensorboard:
        refuse_without_tensorboard()
        os.environ[VARIABLE] = f"{results}/tensorboard"


def curves_of(cell: str) -> Path | None:
    """Folder of a cell's curves; None if none are to be written. Raises BadInput if the package is missing."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    refuse_without_tensorboard()
    return Path(folder) / cell


def refuse_without_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise BadInput(
            "tensorboard: true, but the package tensorboard is not installed; expected it "
            "(`pip install tensorboard`, the extra `tensorboard` of this package), or tensorboard: false"
        )
