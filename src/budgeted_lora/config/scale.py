"""The configuration of a scale: typed and complete; unknown keys are refused.

Each field's description says what it means and ends with its tag: [S] stated in the paper, [D] derived from it,
[U] not stated and known only to the authors (our default), [ours] a choice that the paper does not mention.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from budgeted_lora.config import sections
from budgeted_lora.config.anatomy import refuse_short_context
from budgeted_lora.config.brought import brought_anatomies, with_sizes
from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.files import merged_layers, origin_note, read_layers
from budgeted_lora.config.messages import joined, problems, row_place
from budgeted_lora.config.rows import Row, Sweep
from budgeted_lora.config.types import Packing, Positive, Strict, key
from budgeted_lora.errors import BadInput

# Tables whose cells `snakemake main` trains and scores in full; cells of other tables get only a perplexity.
MAIN_CELLS = ("table2", "table8", "pareto")
# Tables whose students the paper's claims are about (config/claims.yaml).
CLAIM_TABLES = frozenset({"table2", "table8", *(f"table{n}" for n in range(3, 8)), "lora_construction"})
DEFAULT_VARIANT = "default"  # the scale's compression section as it is


class Config(Strict):
    """A whole scale."""

    scale: str = key(..., "Name of the scale; results lie in `results/<scale>/`. [ours]")
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "auto uses a GPU if there is one; cuda fails without one. [ours]"
    )
    fit: Literal["refuse", "warn"] = key(
        "refuse",
        "If the machine is too small by the plan (`budgeted-lora doctor`): end before the first job, or say what "
        "is short and start. [ours]",
    )
    tensorboard: bool = key(
        False,
        "Write the curves of each training to `results/<scale>/tensorboard/<cell>` while it runs; needs the package "
        "`tensorboard`, and changes no result. [ours]",
    )
    gpus_per_run: Positive = key(
        1, "GPUs that train one student together, each computing its part of every step (processes on a CPU). [ours]"
    )
    threads: sections.Threads = key(sections.Threads(), "CPU threads; bytes repeat only with equal counts.")
    sequence_length: Positive = key(1024, "Tokens of a window. [S]")
    rows: Packing = key(
        "packed", "How documents become windows: joined and cut, or one padded document per window. [U]"
    )
    corpus: Corpus = Corpus()
    tokenizer: sections.Tokenizer = sections.Tokenizer()
    teachers: Literal["shipped", "pretrain", "folder", "hub"] = key("shipped", "Where teachers come from. [ours]")
    teacher_ladder: dict[str, sections.Teacher] = key(
        ..., "Teachers by the name they stand for, smallest first. [S]", min_length=1
    )
    calibration: sections.Calibration = sections.Calibration()
    pretraining: sections.TeachersMade = sections.TeachersMade()
    student: sections.Student = sections.Student()
    training: sections.Training = sections.Training()
    lora: sections.Lora = sections.Lora()
    budget: sections.Budget = sections.Budget()
    compression: sections.Compression = sections.Compression()
    sweeps: dict[str, Sweep] = key({}, "Lists of compression variants that a row can name, see above. [ours]")
    evaluation: sections.Evaluation = sections.Evaluation()
    speed: sections.Speed = sections.Speed()
    report: sections.Report = sections.Report()
    tables: dict[str, list[Row]] = key({}, "Rows of each table, see above. [S]")

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for check in CHECKS:
            contradiction = check(self)
            if contradiction is not None:
                raise ValueError(contradiction)
        return self

    @property
    def first_teacher(self) -> str:
        """Name of the smallest teacher, from which students are cut."""
        return next(iter(self.teacher_ladder))

    @property
    def context(self) -> int:
        """Most tokens that a model reads at once: a window, or a prompt with its answer."""
        return max(self.sequence_length, self.evaluation.context or 0)


def load_config(path: Path | str, overrides: dict[str, Any] | None = None) -> Config:
    """The validated configuration of a scale file. Raises BadInput with file, key, value and what was expected."""
    layers = read_layers(path, overrides)
    values = merged_layers(layers)
    try:
        anatomies = brought_anatomies(values)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    values = with_sizes(values, anatomies)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        texts = [text + origin_note(layers, keys) for keys, text in problems(error, Config, values).items()]
        raise BadInput(f"{path}: {joined(texts)}") from None
    for name, anatomy in anatomies.items():
        refuse_short_context(anatomy, config.context, where=f"{path}: the checkpoint of teacher_ladder.{name}")
        config.teacher_ladder[name].described_by(anatomy)
    return config


# --- contradictions between sections: the first one as a sentence, or None

# Names that a shell, a glob, a pattern and a file system all read as they are.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_names(config: Config) -> str | None:
    """Names that become parts of file names and of commands."""
    names = [("scale", config.scale), *(("teacher_ladder", name) for name in config.teacher_ladder)]
    names += [("budget.schedules", name) for name in config.budget.schedules]
    for place, name in names:
        if not PLAIN.fullmatch(name):
            return (
                f"{place}: the name {name!r} is expected to begin with a letter or digit, and to consist of at most 64 "
                "of A-Z, a-z, 0-9, dot, _ and -"
            )
    return None


# Targets that are not tables.
TARGETS = frozenset({"all", "main", "report", "ablations", "claims", "calibration"})


def check_training(config: Config) -> str | None:
    """Depth of the student, schedules, steps that do not divide, and compression that leaves no trained student."""
    first = next(iter(config.teacher_ladder.values()))
    for name, teacher in config.teacher_ladder.items():
        lacking = [f"teacher_ladder.{name}.{size}" for size, value in teacher.shape.items() if value is None]
        if lacking:
            return f"{', '.join(lacking)} must be given, since no checkpoint says it"
    if config.compression.undistilled:
        return "compression.undistilled is true: no trained student would be scored; put it in a list of sweeps"
    if config.compression.budget is not None:
        return "compression.budget stands in a list of sweeps, for rows with budget: elastic"
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


def check_tables(config: Config) -> str | None:
    """Names that a target cannot have, tables without rows, and repeated rows."""
    for name, rows in config.tables.items():
        if name in TARGETS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            targets = ", ".join(sorted(TARGETS))
            return f"tables.{name}: a table's name consists of a-z, 0-9 and _, and must not be a target: {targets}"
        if not rows:
            return f"tables.{name} has no rows, expected at least one, `- {{method: ...}}`, or no such table"
        for place, row in enumerate(rows):
            if row in rows[:place]:
                twice = row_place(name, place + 1, row.model_dump(exclude_unset=True))
                return f"{twice}: the same as row {rows.index(row) + 1}, expected each row once"
    return None


def check_sources(config: Config) -> str | None:
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
    needed = {
        "folder": ("folder", "name a checkpoint folder"),
        "hub": ("hub", "name a checkpoint"),
        "pretrain": ("tokens", "say how long to pretrain"),
    }
    for name, teacher in config.teacher_ladder.items() if config.teachers in needed else ():
        field, purpose = needed[config.teachers]
        if not getattr(teacher, field):
            return f"teacher_ladder.{name}.{field} must {purpose} when teachers is {config.teachers}"
    step = config.pretraining.batch_windows * config.sequence_length
    for name, teacher in config.teacher_ladder.items() if config.teachers == "pretrain" else ():
        if min(teacher.legs) < step:
            return f"teacher_ladder.{name}.tokens {min(teacher.legs)} is less than one step of {step} tokens"
    return None


CHECKS: tuple[Callable[[Config], str | None], ...] = (check_names, check_training, check_tables, check_sources)
