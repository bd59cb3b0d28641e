"""What no section of a configuration can see by itself: values that contradict each other."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from budgeted_lora.wording import row_place

if TYPE_CHECKING:
    from budgeted_lora.config import Config

# Targets that are no table.
TARGETS = frozenset({"all", "main", "report", "ablations", "claims", "calibration"})


def inconsistency(config: "Config") -> str | None:
    """The first contradiction between sections of a scale, as one sentence; None without one."""
    return next(filter(None, (check(config) for check in CHECKS)), None)


def of_training(config: "Config") -> str | None:
    """Depth of the student, schedules, steps that cannot be shared out, scores of nothing that was trained."""
    first = next(iter(config.teacher_ladder.values()))
    if config.compression.undistilled:
        reason = "no student would be scored as it was trained; expected it in a list of sweeps"
        return f"compression.undistilled is true: {reason}"
    if config.student.layers > first.layers:
        return f"student.layers {config.student.layers} exceeds the {first.layers} layers of the first teacher"
    if config.budget.schedule not in config.budget.schedules:
        known = ", ".join(config.budget.schedules) or "none"
        return f"budget.schedule {config.budget.schedule!r} is not among budget.schedules: {known}"
    for name, (start, end) in config.budget.schedules.items():
        if start > end:
            return f"budget.schedules.{name}: start {start} is after end {end}"
    windows = f"training.batch_windows {config.training.batch_windows} is not a multiple of"
    if config.training.batch_windows % config.training.micro_batch_windows:
        return f"{windows} micro_batch_windows {config.training.micro_batch_windows}"
    if config.training.batch_windows % config.gpus_per_run:
        return f"{windows} gpus_per_run {config.gpus_per_run}"
    return None


def of_tables(config: "Config") -> str | None:
    """Names that no target can have, tables that ask for nothing, rows that stand twice."""
    for name, rows in config.tables.items():
        if name in TARGETS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            return (
                f"tables.{name}: a table is a target, its name is made of a-z, 0-9 and _ and none of "
                f"{', '.join(sorted(TARGETS))}"
            )
        if not rows:
            return f"tables.{name} has no rows, expected at least one, `- {{method: ...}}`, or no such table"
        for place, row in enumerate(rows):
            if row in rows[:place]:
                said = row_place(name, place + 1, row.model_dump(exclude_unset=True))
                return f"{said}: the same as row {rows.index(row) + 1}, expected each row once"
    return None


def of_sources(config: "Config") -> str | None:
    """Where documents, probes and teachers come from."""
    if config.evaluation.probes == "folder" and not config.evaluation.probes_folder:
        return "evaluation.probes_folder must name the folder when evaluation.probes is folder"
    if config.corpus.source == "docstrings" and not config.corpus.packages:
        return "corpus.packages must name at least one package when corpus.source is docstrings"
    if config.corpus.source == "files" and not config.corpus.files:
        return "corpus.files must name at least one file when corpus.source is files"
    if config.calibration.teachers and config.teachers not in ("hub", "folder"):
        return f"calibration.teachers needs the paper's checkpoints, but teachers is {config.teachers}"
    if config.corpus.shards is not None and config.teachers == "pretrain":
        return "corpus.shards needs teachers that have a tokenizer; teachers: pretrain makes one"
    for name, teacher in config.teacher_ladder.items():
        if config.teachers == "folder" and not teacher.folder:
            return f"teacher_ladder.{name}.folder must name a checkpoint folder when teachers is folder"
        if config.teachers == "hub" and not teacher.hub:
            return f"teacher_ladder.{name}.hub must name a checkpoint when teachers is hub"
        if config.teachers == "pretrain" and not teacher.tokens:
            return f"teacher_ladder.{name}.tokens must say how long to pretrain when teachers is pretrain"
    return None


CHECKS: tuple[Callable[["Config"], str | None], ...] = (of_training, of_tables, of_sources)
