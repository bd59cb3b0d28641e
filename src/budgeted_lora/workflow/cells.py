"""From tables to cells: which students a configuration asks for, each once.

A cell's id is a readable slug and a hash of everything that determines its weights, so an edited value gives
new ids to the cells it concerns and to no others. Nothing here imports torch.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from budgeted_lora.config.messages import describe, row_place
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.rows import Row
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Compression
from budgeted_lora.errors import BadInput
from budgeted_lora.files import short_hash
from budgeted_lora.method.structure import steps_needed
from budgeted_lora.workflow.recipes import recipe, step_in_words, student_shape, tokens_of_step

SETTING_SLUG = {
    "rank_threshold": "gate",
    "svd_threshold": "svd",
    "r_max": "rmax",
    "gate_hardening": "gates-",
    "macs_of_budget": "macsF",
    "truncation": "by-",
    "undistilled": "undistilled-",
}
SLUG = {"kd_full": "kd-full", "kd_lora": "kd-lora", "budgeted_lora": "budgeted-lora"}
LISTED = ("teacher", "budget", "init", "schedule", "rank", "macs_of_budget", "seed")
DEFAULT_SETTINGS = "default"  # the compression section as it stands


@dataclass(frozen=True)
class Cell:
    """One trained student, the tables that list it, and its id.

    `settings` names the compression settings it is scored with, `default` first, each with the tables that ask for it.
    """

    id: str
    recipe: Recipe
    settings: dict[str, tuple[str, ...]]

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables that list the cell, in the order of the configuration."""
        return tuple(dict.fromkeys(table for tables in self.settings.values() for table in tables))


# Keys of the corpus that only decide what a finished student is scored on.
SCORED_ON = frozenset({"validation_tokens", "overlap_ngram", "overlap_share"})
# Keys of a teacher that say where it comes from, by the source that reads them.
ORIGIN = {"shipped": (), "pretrain": ("tokens", "learning_rate"), "folder": ("folder",), "hub": ("hub", "revision")}


def upstream(config: Config, teacher: str) -> dict[str, Any]:
    """The recipes a student's weights depend on besides its own: corpus, tokenizer, its teacher and the first one."""
    unread = {key for keys in ORIGIN.values() for key in keys} - set(ORIGIN[config.teachers])
    names = {config.first_teacher, teacher}
    ladder = {name: config.teacher_ladder[name].model_dump(exclude=unread) for name in names}
    made_here = config.teachers == "pretrain"
    return {
        "corpus": config.corpus.model_dump(exclude=dict.fromkeys(SCORED_ON, True) | {"shards": {"held_out"}}),
        "tokenizer": config.tokenizer.model_dump() if made_here else None,
        "teachers": config.teachers,
        "ladder": ladder,
        "pretraining": config.pretraining.model_dump() if made_here else None,
    }


def student_name(config: Config, values: Recipe) -> str:
    """Folder of the untrained student, e.g. `mixed`, `scratch_s1` or `mixed_L4_ffn320`."""
    parts = [values.init]
    if (values.student_layers, values.student_ffn) != (config.student.layers, None):
        parts.append(f"L{values.student_layers}_ffn{values.student_ffn or student_shape(config).ffn}")
    if values.init == "scratch" and values.seed:
        parts.append(f"s{values.seed}")
    return "_".join(parts)


def settings_of(config: Config, row: Row) -> dict[str, Compression]:
    """The compression settings a row asks for, by folder name: `default`, or a slug of what differs from it.

    Raises:
        BadInput: the row names no sweep of the configuration, or settings that its method cannot be compressed with.
    """
    refuse_settings(config.compression, row.method, key="compression")
    if row.compression is None:
        return {DEFAULT_SETTINGS: config.compression}
    if row.compression not in config.sweeps:
        raise BadInput(f"compression {row.compression!r} is not among sweeps: {', '.join(config.sweeps) or 'none'}")
    lists = config.sweeps[row.compression].model_dump(exclude_none=True)
    found = {}
    for chosen in itertools.product(*lists.values()):
        values = dict(zip(lists, chosen, strict=True))
        try:
            made = Compression.model_validate(config.compression.model_dump() | values)
        except ValidationError as error:
            raise BadInput(f"sweeps.{row.compression}: {describe(error)}") from None
        refuse_settings(made, row.method, key=f"sweeps.{row.compression}")
        differs = {name: value for name, value in values.items() if value != getattr(config.compression, name)}
        slug = "_".join(f"{SETTING_SLUG[name]}{value}" for name, value in differs.items())
        found[slug or DEFAULT_SETTINGS] = made
    return found


def refuse_settings(settings: Compression, method: str, *, key: str) -> None:
    """Refuses settings that are for KD Full alone on another method's row.

    Raises:
        BadInput: see above.
    """
    for name, given in (("macs_of_budget", settings.macs_of_budget is not None), ("undistilled", settings.undistilled)):
        if given and method != "kd_full":
            raise BadInput(f"{key}.{name} on a {method} row; expected kd_full, the only method it compresses")


def cell_id(config: Config, values: Recipe) -> str:
    """Readable slug and hash, e.g. `budgeted-lora_1B_mixed_F0.4_s0-3fa91c2b`."""
    parts = [SLUG[values.method], values.teacher, values.init]
    if values.student_ffn is not None:
        parts.append(f"L{values.student_layers}_ffn{values.student_ffn}")
    if values.budget is not None:
        parts.append(f"F{values.budget:g}")
        if values.controller != "greedy":
            parts.append(values.controller)
        if values.order is not None:
            parts.append(values.order)
        if values.schedule != "short":
            parts.append(values.schedule)
    if values.rank is not None and values.rank != config.lora.rank:
        parts.append(f"r{values.rank}")
    if values.low_rank_init is not None:
        parts.append(values.low_rank_init.replace("activation_", "a"))
    if values.rank_step is not None:
        parts.append("ranks")
    parts.append(f"s{values.seed}")
    # Without the empty fields, so that a new one, empty by default, makes no student anew.
    said = values.model_dump(mode="json", exclude_none=True)
    determined_by = {"recipe": said, "upstream": upstream(config, values.teacher)}
    return "_".join(parts) + "-" + short_hash(determined_by)


def combinations(row: Row) -> list[dict[str, Any]]:
    """Every combination of the values a row lists, in the row's order."""
    listed = {name: getattr(row, name) for name in LISTED if isinstance(getattr(row, name), list)}
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


def cells(config: Config) -> list[Cell]:
    """Every cell of every table, each once, in the order the tables first name them.

    Raises:
        BadInput: a row asks for an unknown teacher or schedule, a rank above a projection's dimension, a budget
            where none belongs, or a run too short for its schedule.
    """
    recipes: dict[str, Recipe] = {}
    asked: dict[str, dict[str, list[str]]] = {}
    for table, rows in config.tables.items():
        for number, row in enumerate(rows, start=1):
            for chosen in combinations(row):
                try:
                    values = recipe(config, row, **chosen)
                    check(config, values)
                    settings = settings_of(config, row)
                except (BadInput, ValidationError) as error:
                    said = error if isinstance(error, BadInput) else describe(error, Recipe)
                    text = row.model_dump(exclude_unset=True)
                    raise BadInput(f"{row_place(table, number, text)}: {said}") from None
                key = cell_id(config, values)
                recipes[key] = values
                listing = asked.setdefault(key, {DEFAULT_SETTINGS: []})
                for name in settings:
                    listing[name] = list(dict.fromkeys([*listing.get(name, []), table]))
    return [
        Cell(key, values, {name: tuple(tables) for name, tables in asked[key].items()})
        for key, values in recipes.items()
    ]


def check(config: Config, values: Recipe) -> None:
    """Refuses a recipe that cannot be trained as it says.

    Raises:
        BadInput: see `cells`.
    """
    if values.teacher not in config.teacher_ladder:
        raise BadInput(f"teacher {values.teacher!r} is not in teacher_ladder: {', '.join(config.teacher_ladder)}")
    first = config.teacher_ladder[config.first_teacher]
    narrowest = min(first.hidden, first.kv, first.ffn)
    if values.rank is not None and values.rank > narrowest:
        raise BadInput(f"rank {values.rank} exceeds {narrowest}, the smallest dimension of a projection")
    if values.method == "budgeted_lora":
        needed = steps_needed(
            student_shape(config),
            budget=values.budget,
            start=values.schedule_start,
            end=values.schedule_end,
            smoothing=values.smoothing,
            drop_threshold=values.drop_threshold,
            controller=values.controller,
            svd_threshold=config.compression.svd_threshold,
        )
        if values.steps < needed:
            raise BadInput(
                f"{values.steps} steps are too few for schedule {values.schedule!r} to reach the structure of "
                f"F = {values.budget:g}; it needs {needed} steps, tokens {needed * tokens_of_step(config)}: "
                f"{step_in_words(config)}"
            )
