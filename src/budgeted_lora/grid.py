"""From tables to cells: which students a configuration asks for, each once.

A cell's id is a readable slug and a hash of everything that determines its weights, so an edited value gives
new ids to the cells it concerns and to no others. Nothing here imports torch.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from budgeted_lora.budget.cost import ModelShape, dense_macs
from budgeted_lora.budget.plan import Structure, steps_needed, structure
from budgeted_lora.config import Compression, Config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import short_hash
from budgeted_lora.recipe import Recipe
from budgeted_lora.rows import Row
from budgeted_lora.wording import describe, in_yaml, row_place

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
# Keys of a row that only some methods have a use for: the methods, and what they do.
IDLE = (
    (
        (
            "budget",
            "schedule",
            "controller",
            "order",
            "smoothing",
            "drop_threshold",
            "gate_logit",
            "gate_lr_multiplier",
        ),
        ("budgeted_lora",),
        "takes one",
    ),
    (("macs_of_budget",), ("kd_full",), "takes one"),
    (
        ("rank", "alpha", "low_rank_init", "ranks", "train_embeddings_head_norms"),
        ("kd_lora", "budgeted_lora"),
        "have low-rank paths",
    ),
)
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


def recipe(config: Config, row: Row, **chosen: Any) -> Recipe:
    """The complete recipe of one combination of a row's values."""
    training, lora, budget = config.training, config.lora, config.budget
    pick = {name: getattr(row, name) for name in Row.model_fields} | chosen
    method = row.method

    def either(name: str, default: Any) -> Any:
        return default if pick[name] is None else pick[name]

    refuse_idle_keys(pick, method)
    layers, ffn = config.student.layers, None
    if pick["macs_of_budget"] is not None:
        layers, ffn = control_shape(config, pick["macs_of_budget"])
    steps = whole_steps(config, pick["tokens"])
    values: dict[str, Any] = {
        "method": method,
        "teacher": pick["teacher"] or config.first_teacher,
        "init": pick["init"] or training.init,
        "student_layers": layers,
        "student_ffn": ffn,
        "temperature": pick["temperature"] or training.temperature,
        "kd_weight": either("kd_weight", training.kd_weight),
        "steps": steps,
        "batch_windows": training.batch_windows,
        "micro_batch_windows": training.micro_batch_windows,
        "sequence_length": config.sequence_length,
        "rows": either("rows", config.rows),
        "learning_rate": pick["learning_rate"] or getattr(training.learning_rate, method),
        "betas": pick["betas"] or training.betas,
        "weight_decay": training.weight_decay,
        "clip": training.clip,
        "warmup_fraction": training.warmup_fraction,
        "warmup_cap": training.warmup_cap,
        "precision": training.precision,
        "seed": either("seed", training.seed),
    }
    if method != "kd_full":
        rank = pick["rank"] or lora.rank
        values |= {
            "rank": rank,
            "alpha": pick["alpha"] or lora.alpha * rank / lora.rank,
            "dropout": lora.dropout,
            "train_embeddings_head_norms": either("train_embeddings_head_norms", training.train_embeddings_head_norms),
        }
        start, spread = pick["low_rank_init"] or lora.low_rank_init, pick["ranks"] or lora.ranks
        values |= {"low_rank_init": None if start == "zero" else start}
        values |= {"rank_step": None if spread == "fixed" else lora.rank_step}
    if method == "budgeted_lora":
        name = pick["schedule"] or budget.schedule
        if name not in budget.schedules:
            raise BadInput(f"schedule {name!r} is not among budget.schedules: {', '.join(budget.schedules)}")
        start, end = budget.schedules[name]
        values |= {
            "budget": pick["budget"],
            "schedule": name,
            "schedule_start": start,
            "schedule_end": end,
            "controller": pick["controller"] or budget.controller,
            "smoothing": either("smoothing", budget.smoothing),
            "drop_threshold": either("drop_threshold", budget.drop_threshold),
            "gate_logit": either("gate_logit", budget.gate_logit),
            "gate_lr_multiplier": either("gate_lr_multiplier", budget.gate_lr_multiplier),
        }
        order = pick["order"] or (budget.order if values["controller"] == "greedy" else "mac")
        values["order"] = None if order == "mac" else order
    refuse_order_and_step(pick, values)
    measured = {values.get("low_rank_init"), values.get("order")} & {"activation_svd", "activation", "gradient"}
    if measured or values.get("rank_step"):
        values["statistics_windows"] = lora.statistics_windows
    return Recipe.model_validate(values)


def whole_steps(config: Config, own: int | None) -> int:
    """Optimiser steps that a row's own tokens make, or the scale's, rounded down.

    Raises:
        BadInput: not one.
    """
    tokens = own or config.training.tokens
    steps = tokens // tokens_of_step(config)
    if not steps:
        name = "tokens" if own else "training.tokens"
        raise BadInput(f"{name} {tokens} make 0 steps: {step_in_words(config)}, expected at least one step")
    return steps


def tokens_of_step(config: Config) -> int:
    return config.training.batch_windows * config.sequence_length


def step_in_words(config: Config) -> str:
    """How many tokens a step takes, and why."""
    return (
        f"a step takes {tokens_of_step(config)} (training.batch_windows {config.training.batch_windows} x "
        f"sequence_length {config.sequence_length})"
    )


def refuse_idle_keys(pick: dict[str, Any], method: str) -> None:
    """Refuses keys of a row that its method has no use for: it would look as if they did something.

    Raises:
        BadInput: see above.
    """
    for names, methods, reason in IDLE:
        idle = [name for name in names if pick[name] is not None and method not in methods]
        if idle:
            told = f"{idle[0]} {in_yaml(pick[idle[0]])}"
            raise BadInput(f"{told} on a {method} row; only {' and '.join(methods)} {reason}")


def refuse_order_and_step(pick: dict[str, Any], values: dict[str, Any]) -> None:
    """Refuses an order for a controller that removes in none, and ranks below one step.

    Raises:
        BadInput: see above.
    """
    if pick["order"] is not None and values["controller"] != "greedy":
        raise BadInput(f"order {pick['order']} on a row without the greedy controller, which alone removes in order")
    if values.get("rank_step") and values["rank_step"] > values["rank"]:
        raise BadInput(f"lora.rank_step {values['rank_step']} exceeds rank {values['rank']}; expected at most the rank")


def control_shape(config: Config, budget: float) -> tuple[int, int]:
    """Layers and feed-forward size of a dense student with the MACs that `budget` leaves of the scale's student.

    As few layers as reach them at full width; the feed-forwards then give up what is too much, so that the MACs are
    those of the budget, less at most one feed-forward neuron a layer.
    """
    full = student_shape(config)
    macs = planned(config, default_budgeted(config, budget)).macs
    layers = min(full.layers, -(-macs * full.layers // dense_macs(full)))
    ffn = min(full.ffn, (macs // layers - 2 * full.hidden * (full.hidden + full.kv)) // (3 * full.hidden))
    if ffn < 1:
        raise BadInput(f"macs_of_budget {budget:g}: {layers} layers leave no MACs for feed-forwards")
    return layers, ffn


def default_budgeted(config: Config, budget: float) -> Recipe:
    """The recipe of a budgeted student with the scale's defaults."""
    return recipe(config, Row(method="budgeted_lora", budget=budget))


def differences(config: Config, values: Recipe) -> dict[str, Any]:
    """What a recipe has otherwise than the scale's default of its method and budget, in the words of a table's row.

    What follows from another value is left out: alpha in its usual ratio to the rank, the ends of a schedule.
    """
    default = recipe(config, Row(method=values.method, budget=values.budget))
    mine, usual = in_words_of_a_row(values), in_words_of_a_row(default)
    found = {name: value for name, value in mine.items() if value != usual[name] and name != "alpha"}
    scaled = values.rank is not None and values.alpha * default.rank != default.alpha * values.rank
    return found | ({"alpha": values.alpha} if scaled else {})


def in_words_of_a_row(values: Recipe) -> dict[str, Any]:
    """A recipe as the row that asks for it, every key given; the shape of a control under the recipe's own names."""
    derived = {"steps", "rank_step", "schedule_start", "schedule_end", "statistics_windows"}
    said = values.model_dump(mode="json", exclude=derived) | {"tokens": values.tokens}
    if values.method == "kd_full":
        return said
    ranks = "fixed" if values.rank_step is None else "allocated"
    return said | {"low_rank_init": values.low_rank_init or "zero", "ranks": ranks, "order": values.order or "mac"}


def student_shape(config: Config) -> ModelShape:
    """The cost model's view of the scale's student."""
    first = config.teacher_ladder[config.first_teacher]
    return ModelShape(layers=config.student.layers, hidden=first.hidden, kv=first.kv, ffn=first.ffn)


def planned(config: Config, values: Recipe) -> Structure:
    """What a budgeted recipe will leave of its student under the scale's compression settings."""
    return structure(
        student_shape(config),
        rank=values.rank,
        budget=values.budget,
        start=values.schedule_start,
        end=values.schedule_end,
        smoothing=values.smoothing,
        drop_threshold=values.drop_threshold,
        controller=values.controller,
        r_max=config.compression.r_max,
        svd_threshold=config.compression.svd_threshold,
        schedule=values.schedule,
    )


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
