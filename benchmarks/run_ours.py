"""One training run of ours, in turns: `method.loop.train` on the files of a world. See `turns`."""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import recipe, shape_named
from benchmarks.turns import Turns
from benchmarks.world import World
from budgeted_lora.method.loop import Progress, train
from budgeted_lora.models.device import compute_dtype, prepare
from budgeted_lora.models.load import load_model
from budgeted_lora.training.cache import HiddenCache, OnlineTeacher
from budgeted_lora.training.install import install_method


class TurnLog:
    """`method.loop.RunLog` that writes nothing and waits for its turn at the end of a step."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def restore(self, student: Any, optimizer: torch.optim.Optimizer) -> Progress:
        return Progress()

    def __enter__(self) -> "TurnLog":
        self.turns.begin()
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def step(self, values: Tensor, *, rate: float, controller: Any) -> None:
        self.turns.step(loss=lambda: float(values[0]))


def main(options: dict[str, Any]) -> None:
    """Trains; `options` has shape, quick, world, method, teacher, cached, steps, threads, device and changes."""
    turns = Turns()
    shape = shape_named(options["shape"], quick=options["quick"])
    world, kind = World(Path(options["world"])), options["teacher"]
    place = prepare(options["device"], threads=options["threads"])
    chosen = recipe(
        shape, options["method"], steps=options["steps"], precision=options["precision"], **options["changes"]
    )
    precision = compute_dtype(chosen.precision, place)
    windows = world.windows(length=shape.length)
    if options["cached"]:
        teacher: Any = HiddenCache.open(
            world.cache(kind), teacher=world.teacher(kind), windows=windows, count=windows.count, device=place
        )
    else:
        teacher = OnlineTeacher(load_model(world.teacher(kind), dtype=precision).to(place))
    student = load_model(world.student, dtype=torch.float32).to(place)
    as_training_does(student, teacher, place)
    modules, low_rank = install_method(student, chosen)
    trim_memory()
    train(
        student, modules, teacher, windows, chosen, log=TurnLog(turns), removal_order=low_rank.order, device=place,
        precision=precision,
    )  # fmt: skip


def as_training_does(student: Any, teacher: Any, place: torch.device) -> None:
    """Training's own attention and choice of products, where the commit that is measured has them (row 9)."""
    try:
        from budgeted_lora.models.attention import attend_in_blocks

        attend_in_blocks(student)
        from budgeted_lora.models.attention import attend_as_teacher
        from budgeted_lora.models.device import multiply_wide
    except ImportError:
        return
    multiply_wide(student.config.hidden_size, place)
    if isinstance(teacher, OnlineTeacher):
        attend_as_teacher(teacher.model)


def trim_memory() -> None:
    """Gives what loading left behind back to the system, so that peak memory is that of training."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
