"""The configuration of a scale: typed, complete, unknown keys refused.

Each field's description says what it means and closes with its tag: [S] stated in the paper, [D] derived,
[U] unknown outside the authors (our default), [ours] a choice the paper has no word on.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.corpus import HubDataset as HubDataset
from budgeted_lora.config.files import merged_layers, read_layers, said_elsewhere
from budgeted_lora.config.messages import describe as describe
from budgeted_lora.config.messages import problems, row_place
from budgeted_lora.config.rows import Row, Sweep
from budgeted_lora.config.sections import (
    Budget,
    Calibration,
    Compression,
    Evaluation,
    Lora,
    Report,
    Speed,
    Student,
    Teacher,
    TeachersMade,
    Threads,
    Tokenizer,
    Training,
)
from budgeted_lora.config.types import (
    Positive,
    Strict,
)
from budgeted_lora.errors import BadInput

# Tables whose cells `snakemake main` trains and scores in full; cells of other tables are scored by perplexity only.
MAIN_CELLS = frozenset({"table2", "table8", "pareto"})
# Tables whose students the paper's claims speak of (config/claims.yaml).
CLAIM_TABLES = MAIN_CELLS - {"pareto"} | {f"table{n}" for n in range(3, 8)} | {"lora_construction"}


class Config(Strict):
    """A whole scale."""

    scale: str = Field(description="Name of the scale; results lie in `results/<scale>/`. [ours]")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes a GPU where there is one; cuda fails without. [ours]"
    )
    fit: Literal["refuse", "warn"] = Field(
        "refuse",
        description="On a machine that is too small by the plan (`budgeted-lora doctor`) a run ends before its first "
        "job, or says what is short and starts. [ours]",
    )
    gpus_per_run: Positive = Field(
        1,
        description="GPUs that train one student together, each with its part of every step (processes on a CPU). "
        "[ours]",
    )
    threads: Threads = Field(default_factory=Threads, description="CPU threads; part of what makes bytes repeat.")
    sequence_length: Positive = Field(1024, description="Tokens of a window. [S]")
    rows: Literal["packed", "document"] = Field(
        "packed", description="Joined and cut, or one document a row, padded. [U]"
    )
    corpus: Corpus = Field(default_factory=Corpus)
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    teachers: Literal["shipped", "pretrain", "folder", "hub"] = Field(
        "shipped", description="Where teachers come from. [ours]"
    )
    teacher_ladder: dict[str, Teacher] = Field(
        min_length=1, description="Teachers by the name they stand for, smallest first. [S]"
    )
    calibration: Calibration = Field(default_factory=Calibration)
    pretraining: TeachersMade = Field(default_factory=TeachersMade)
    student: Student = Field(default_factory=Student)
    training: Training = Field(default_factory=Training)
    lora: Lora = Field(default_factory=Lora)
    budget: Budget = Field(default_factory=Budget)
    compression: Compression = Field(default_factory=Compression)
    sweeps: dict[str, Sweep] = Field(
        default_factory=dict, description="Compression settings that a row can ask for by name, see above. [ours]"
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    speed: Speed = Field(default_factory=Speed)
    report: Report = Field(default_factory=Report)
    tables: dict[str, list[Row]] = Field(default_factory=dict, description="Rows of each table, see above. [S]")

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        fault = inconsistency(self)
        if fault is not None:
            raise ValueError(fault)
        return self

    @property
    def first_teacher(self) -> str:
        """Name of the smallest teacher, from which students are cut."""
        return next(iter(self.teacher_ladder))


def load_config(path: Path | str, overrides: dict[str, Any] | None = None) -> Config:
    """The validated configuration of a scale file.

    Args:
        overrides: values laid on top, as given by `snakemake --config`.

    Raises:
        BadInput: one line naming the file, the key, what was found and what was expected.
    """
    layers = read_layers(path, overrides)
    values = merged_layers(layers)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = [problem.text + said_elsewhere(layers, problem.path) for problem in problems(error, Config, values)]
        raise BadInput(f"{path}: {'; '.join(found)}") from None


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
