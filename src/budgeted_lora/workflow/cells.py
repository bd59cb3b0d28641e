"""From tables to cells: which students a configuration asks for, each once.

A cell's id is a readable slug and a hash of everything that determines its weights, so an edited value gives
new ids to the cells it concerns and to no others. Nothing here imports torch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from budgeted_lora.config.messages import describe, row_place
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.rows import Row
from budgeted_lora.config.scale import CLAIM_TABLES, DEFAULT_VARIANT, MAIN_CELLS, Config
from budgeted_lora.config.sections import Compression
from budgeted_lora.errors import BadInput
from budgeted_lora.files import short_hash
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import steps_needed
from budgeted_lora.reporting.contents import BEYOND, CONTROLS, ELASTIC, FIGURES, TABLES, TOKENS
from budgeted_lora.workflow.recipes import SHAPE_KEYS, recipe, recipe_shape, step_text, tokens_per_step

VARIANT_SLUG = {
    "budget": "F",
    "rank_threshold": "gate",
    "svd_threshold": "svd",
    "r_max": "rmax",
    "rank_multiple": "multiple",
    "gate_hardening": "gates-",
    "macs_of_budget": "macsF",
    "truncation": "by-",
    "undistilled": "undistilled-",
}
SLUG = {"kd_full": "kd-full", "kd_lora": "kd-lora", "budgeted_lora": "budgeted-lora"}
SHOW_SHAPES = frozenset({BEYOND, CONTROLS, TOKENS})  # tables that relate costs to the scale's dense student
AVERAGED = ("table2", "table8")
SENSITIVITY = "sensitivity"
# Keys of a row that take lists.
LISTED = (
    "teacher", "budget", "init", "schedule", "rank", "macs_of_budget", "student_layers", "student_ffn", "tokens",
    "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One trained student, the tables that list it, and its id.

    `variants` names the ways in which it is compressed and scored, each with the tables that list it; `default` is
    always among them, and first, unless the student is elastic: without a budget it cannot be compressed.
    """

    id: str
    recipe: Recipe
    variants: dict[str, tuple[str, ...]]

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables that list the cell, in the order of the configuration."""
        return tuple(dict.fromkeys(table for tables in self.variants.values() for table in tables))


# Keys of the corpus that only affect what a finished student is scored on.
SCORED_ON = frozenset({"validation_tokens", "overlap_ngram", "overlap_share"})
# Keys of a teacher that say where it comes from, for each kind of teachers.
ORIGIN = {"shipped": (), "pretrain": ("tokens", "learning_rate"), "folder": ("folder",), "hub": ("hub", "revision")}


def upstream(config: Config, teacher: str) -> dict[str, Any]:
    """What else determines a student's weights: the recipes of corpus, tokenizer, its teacher and the first teacher."""
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


def student_name(values: Recipe) -> str:
    """Folder of the untrained student, e.g. `mixed`, `scratch_s1` or `mixed_L4_ffn320`."""
    parts = [values.init]
    if values.student_ffn is not None:
        parts.append(f"L{values.student_layers}_ffn{values.student_ffn}")
    if values.init == "scratch" and values.seed:
        parts.append(f"s{values.seed}")
    return "_".join(parts)


def variants_of(config: Config, row: Row) -> dict[str, Compression]:
    """The variants that a row lists, by folder name: `default`, or a slug of what differs. Raises BadInput."""
    refuse_variant(config.compression, row.method, key="compression")
    if row.compression is None and row.budget != "elastic":
        return {DEFAULT_VARIANT: config.compression}
    if row.compression is None:
        raise BadInput("budget: elastic needs compression: the name of a sweep with budget, the fractions F to cut to")
    if row.compression not in config.sweeps:
        raise BadInput(f"compression {row.compression!r} is not among sweeps: {', '.join(config.sweeps) or 'none'}")
    lists = config.sweeps[row.compression].model_dump(exclude_none=True)
    variants = {}
    for combination in itertools.product(*lists.values()):
        values = dict(zip(lists, combination, strict=True))
        try:
            variant = Compression.model_validate(config.compression.model_dump() | values)
        except ValidationError as error:
            raise BadInput(f"sweeps.{row.compression}: {describe(error, Compression)}") from None
        refuse_variant(variant, row.method, key=f"sweeps.{row.compression}")
        refuse_budget(variant, row, sweep=row.compression)
        differing = {name: value for name, value in values.items() if value != getattr(config.compression, name)}
        slug = "_".join(f"{VARIANT_SLUG[name]}{value}" for name, value in differing.items())
        variants[slug or DEFAULT_VARIANT] = variant
    return variants


def refuse_variant(variant: Compression, method: str, *, key: str) -> None:
    """Raises BadInput if a method other than KD Full is truncated by MACs or compressed undistilled."""
    used = {"macs_of_budget": variant.macs_of_budget is not None, "undistilled": variant.undistilled}
    for name in used:
        if used[name] and method != "kd_full":
            raise BadInput(f"{method} does not use {key}.{name}; remove it, or use kd_full")


def refuse_budget(variant: Compression, row: Row, *, sweep: str) -> None:
    """Raises BadInput if a variant of an elastic student names no budget, or one of another student does."""
    elastic = row.budget == "elastic"
    if elastic and variant.budget is None:
        raise BadInput(f"sweeps.{sweep} has no budget; budget: elastic needs the fractions F that it is cut to")
    if not elastic and variant.budget is not None:
        raise BadInput(f"sweeps.{sweep}.budget is for rows with budget: elastic; remove it, or use another sweep")


def refuse_table(table: str, row: Row) -> None:
    """Raises BadInput if a row stands in a table that cannot show its students.

    Most tables know one compressed student of each cell, which an elastic one is not; and students of the scale's
    shape, to which they relate costs.
    """
    known = {*MAIN_CELLS, *CLAIM_TABLES, *TABLES, *FIGURES}
    shape = [name for name in (*SHAPE_KEYS, "macs_of_budget") if getattr(row, name) is not None]
    if shape and table in known - SHOW_SHAPES:
        places = ", ".join(sorted(SHOW_SHAPES))
        raise BadInput(f"{shape[0]} stands in the tables {places} or in one of a name of your own, not in {table}")
    if shape and table == CONTROLS and row.method != "kd_full":
        raise BadInput(f"{shape[0]} of {row.method} stands in {BEYOND}; students of {CONTROLS} are dense")
    if row.budget == "elastic" and table in known - {ELASTIC}:
        raise BadInput(f"budget: elastic stands in the table {ELASTIC} or in one of a name of your own, not in {table}")


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
        if values.whole:
            parts.append("whole")
        if values.train_dense is not None:
            parts.append(f"dense-{values.train_dense}")
        if values.schedule != "short":
            parts.append(values.schedule)
    if values.elastic:
        parts += ["elastic", values.order]
    if values.rank is not None and values.rank != config.lora.rank:
        parts.append(f"r{values.rank}")
    if values.low_rank_init is not None:
        parts.append(values.low_rank_init.replace("activation_", "a"))
    if values.rank_step is not None:
        parts.append("ranks")
    parts.append(f"s{values.seed}")
    # Without the empty fields: a new field that is empty by default then changes no id.
    recipe_values = values.model_dump(mode="json", exclude_none=True)
    determined_by = {"recipe": recipe_values, "upstream": upstream(config, values.teacher)}
    if values.rows != config.rows and (values.statistics_windows or values.init == "importance"):
        determined_by["rows"] = config.rows  # statistics and importance read windows as the scale cuts them
    return "_".join(parts) + "-" + short_hash(determined_by)


def cells(config: Config) -> list[Cell]:
    """Every cell of every table, each once, in the order the tables first name them.

    Raises:
        BadInput: a row cannot be trained as it says; the message names table and row.
    """
    recipes: dict[str, Recipe] = {}
    variants: dict[str, dict[str, list[str]]] = {}
    for table, rows in config.tables.items():
        for number, row in enumerate(rows, start=1):
            listed = {name: getattr(row, name) for name in LISTED if isinstance(getattr(row, name), list)}
            for combination in itertools.product(*listed.values()):
                try:
                    refuse_table(table, row)
                    values = recipe(config, row, **dict(zip(listed, combination, strict=True)))
                    check(config, values)
                    names = variants_of(config, row)
                except (BadInput, ValidationError) as error:
                    message = error if isinstance(error, BadInput) else describe(error, Recipe)
                    place = row_place(table, number, row.model_dump(exclude_unset=True))
                    raise BadInput(f"{place}: {message}") from None
                key = cell_id(config, values)
                recipes[key] = values
                listing = variants.setdefault(key, {} if values.elastic else {DEFAULT_VARIANT: []})
                for name in names:
                    listing[name] = list(dict.fromkeys([*listing.get(name, []), table]))
    made = [
        Cell(key, values, {name: tuple(tables) for name, tables in variants[key].items()})
        for key, values in recipes.items()
    ]
    refuse_mixtures(made)
    refuse_lone_shapes(made)
    refuse_lone_constants(made)
    return made


def recipes_of(made: Sequence[Cell], *tables: str) -> list[Recipe]:
    """The recipes of the cells that some of these tables list."""
    return [cell.recipe for cell in made if not set(tables).isdisjoint(cell.tables)]


def refuse_lone_shapes(made: Sequence[Cell]) -> None:
    """Raises BadInput if `beyond` has students of other shapes alone: its costs and figures are of the scale's."""
    listed = recipes_of(made, BEYOND)
    shaped = any(recipe.student_ffn is not None for recipe in listed)
    if shaped and not any(one.method == "budgeted_lora" and one.student_ffn is None for one in listed):
        raise BadInput(
            "tables.beyond: students of another shape stand beside budgeted ones of the scale's; expected such a row"
        )


def refuse_mixtures(made: Sequence[Cell]) -> None:
    """Raises BadInput if a line of Table 2 or 8, a method at a budget over seeds, would average other recipes too."""
    for table in AVERAGED:
        first: dict[tuple[str, float | None], Recipe] = {}
        for values in recipes_of(made, table):
            other = first.setdefault((values.method, values.budget), values)
            names = [name for name in Recipe.model_fields if getattr(values, name) != getattr(other, name)]
            if names := [name for name in names if name not in ("teacher", "seed")]:
                raise BadInput(
                    f"tables.{table} lists {values.method} with {names[0]} {getattr(other, names[0])} and "
                    f"{getattr(values, names[0])}; expected one, since a line of it is a mean over seeds"
                )


def refuse_lone_constants(made: Sequence[Cell]) -> None:
    """Raises BadInput if `sensitivity` varies a student that Tables 2 and 8 do not have, or has several of one kind."""
    tried = recipes_of(made, SENSITIVITY)
    beside = {(one.method, one.budget, one.teacher, one.seed) for one in recipes_of(made, *AVERAGED)}
    for values in tried:
        if (values.method, values.budget, values.teacher, values.seed) not in beside:
            budget = "" if values.budget is None else f" at F = {values.budget:g}"
            raise BadInput(
                f"tables.{SENSITIVITY} varies {values.method}{budget} (teacher {values.teacher}, seed {values.seed}), "
                "of which table2 and table8 list no student to compare with; add one there"
            )
    for name in ("teacher", "seed"):
        if len(several := {getattr(values, name) for values in tried}) > 1:
            raise BadInput(f"tables.{SENSITIVITY} has {len(several)} values of {name}; expected one")


def check(config: Config, values: Recipe) -> None:
    """Refuse a recipe that cannot be trained as it says.

    Raises:
        BadInput: the teacher is unknown, the rank exceeds a projection's dimension, or the run is too short for its
            schedule.
    """
    if values.teacher not in config.teacher_ladder:
        raise BadInput(f"teacher {values.teacher!r} is not in teacher_ladder: {', '.join(config.teacher_ladder)}")
    shape = recipe_shape(config, values)
    narrowest = shape.narrowest
    if values.rank is not None and values.rank > narrowest:
        raise BadInput(f"rank {values.rank} exceeds {narrowest}, the smallest dimension of a projection")
    if values.method == "budgeted_lora" and not values.elastic:
        needed = steps_needed(shape, BudgetRule.of(values), svd_threshold=config.compression.svd_threshold)
        if values.steps < needed:
            raise BadInput(
                f"{values.steps} steps are too few for schedule {values.schedule!r} to reach the structure of "
                f"F = {values.budget:g}; it needs {needed} steps, tokens {needed * tokens_per_step(config)}: "
                f"{step_text(config)}"
            )
