"""From a row of the configuration to the complete recipe of a student."""

from dataclasses import replace
from typing import Any

from budgeted_lora.config.anatomy import Anatomy
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.rows import Row
from budgeted_lora.config.scale import Config
from budgeted_lora.config.types import Elastic, Method
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, dense_macs
from budgeted_lora.method.schedule import BudgetRule, trained_share
from budgeted_lora.method.structure import Structure, structure

# Keys of a row that only some methods use.
USED_BY: dict[tuple[str, ...], tuple[str, ...]] = {
    ("kd_full",): ("macs_of_budget",),
    ("kd_lora", "budgeted_lora"): ("rank", "alpha", "low_rank_init", "ranks", "train_embeddings_head_norms"),
    ("budgeted_lora",): (
        "budget", "elastic_budgets", "schedule", "controller", "order", "whole", "train_dense", "smoothing",
        "drop_threshold", "gate_logit", "gate_lr_multiplier",
    ),
}  # fmt: skip
NEEDS_STATISTICS = {"activation_svd", "activation", "gradient"}  # values of low_rank_init and order
# One low-rank path must do at every F: so it holds the best approximation of W, and only the residual comes and goes,
# in an order that every F shares. Of each key the values that an elastic row may have, its default first.
ELASTIC_NEEDS = {"low_rank_init": ("activation_svd", "svd"), "order": ("gradient",), "controller": ("greedy",)}
SHAPE_KEYS = ("student_layers", "student_ffn")
NEED_GREEDY = ("order", "whole", "train_dense")  # the uniform controller lets all dense paths fade at once
WITHOUT_SCHEDULE = ("schedule", "smoothing", "whole", "train_dense")


def recipe(config: Config, row: Row, **chosen: Any) -> Recipe:
    """The complete recipe of one combination of a row's values: a key of the row, or else the scale's of that name.

    Args:
        chosen: one value for each key in which the row lists several.

    Raises:
        BadInput: the row has a key without effect, an unknown schedule, too few tokens, or a rank below
            `lora.rank_step`.
        ValidationError: the row has no budget, and its method needs one.
    """
    given = {name: value for name, value in row if value is not None} | chosen
    refuse_idle_keys(given, row.method)
    values = scale_values(config, row.method) | given
    values["steps"] = whole_steps(config, given.get("tokens"))
    if values["init"] != "importance":
        values["importance_windows"] = None
    values |= own_shape(config, given)
    if row.method != "kd_full":
        values.setdefault("alpha", config.lora.alpha * values["rank"] / config.lora.rank)
        values["low_rank_init"] = without(values["low_rank_init"], "zero")
        if values["ranks"] == "fixed":
            values["rank_step"] = None
        elif values["rank_step"] > values["rank"]:
            step, rank = values["rank_step"], values["rank"]
            raise BadInput(f"lora.rank_step {step} exceeds rank {rank}; expected at most the rank")
    if row.method == "budgeted_lora":
        values |= elastic_values(given, values) if row.budget == "elastic" else schedule_values(config, given, values)
        values["order"] = without(values["order"], "mac")
    if not (NEEDS_STATISTICS & {values.get("low_rank_init"), values.get("order")} or values.get("rank_step")):
        values["statistics_windows"] = None
    return Recipe.model_validate({name: value for name, value in values.items() if name in Recipe.model_fields})


def schedule_values(config: Config, given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """How a student comes to its one budget: the ends of its schedule, and an order that its controller follows.

    Args:
        given: the row's own keys; values: the same over the scale's.

    Raises:
        BadInput: the row has a key without effect, or an unknown schedule.
    """
    if "elastic_budgets" in given:
        raise BadInput("elastic_budgets has no effect without budget: elastic; remove it")
    name, schedules = values["schedule"], config.budget.schedules
    if name not in schedules:
        raise BadInput(f"schedule {name!r} is not among budget.schedules: {', '.join(schedules)}")
    start, end = schedules[name]
    chosen = {"schedule_start": start, "schedule_end": end, "order": values["order"], "elastic_budgets": None}
    chosen |= {"train_dense": None, "whole": None}
    if values["controller"] != "greedy":
        idle = next((name for name in NEED_GREEDY if name in given), None)
        if idle is not None:
            raise BadInput(f"{idle} needs controller: greedy")
        return chosen | {"order": "mac"}
    if values["whole"] and 0.0 < values["budget"] < 1.0:  # the others leave no path in part
        chosen["whole"] = True
    if values["train_dense"] == "all" and not values["low_rank_init"]:
        raise BadInput("train_dense: all needs low_rank_init: svd or activation_svd; low_rank_init is zero")
    if values["train_dense"] == "all" or (values["train_dense"] == "kept" and values["budget"]):
        chosen |= {"train_dense": values["train_dense"], "dense_learning_rate": config.training.learning_rate.kd_full}
    return chosen


def elastic_values(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What an elastic student has in place of a budget and its schedule.

    Args:
        given: the row's own keys; values: the same over the scale's.

    Raises:
        BadInput: the row has a key of the schedule, or start, order or controller are others than it needs.
    """
    idle = next((name for name in WITHOUT_SCHEDULE if name in given), None)
    if idle is not None:
        raise BadInput(f"budget: elastic does not use {idle}; remove it, or use one budget")
    for name, allowed in ELASTIC_NEEDS.items():
        value = values[name] or "zero"  # the paper's start is empty here
        if value not in allowed:
            raise BadInput(f"budget: elastic needs {name}: {' or '.join(allowed)}; {name} is {value}")
    nothing = dict.fromkeys(
        ("budget", "schedule", "schedule_start", "schedule_end", "smoothing", "whole", "train_dense")
    )
    return nothing | {"elastic_budgets": tuple(sorted(values["elastic_budgets"]))}


def scale_values(config: Config, method: str) -> dict[str, Any]:
    """The scale's values for students of a method, under the names that a row has for them; alpha is not set."""
    values = {
        "teacher": config.first_teacher,
        "student_layers": config.student.layers,
        "importance_windows": config.student.importance_windows,
        "sequence_length": config.sequence_length,
        "rows": config.rows,
        **dict(config.training),
        "learning_rate": getattr(config.training.learning_rate, method),
    }
    if method == "kd_full":
        return values | {"train_embeddings_head_norms": True}
    values |= {name: value for name, value in config.lora if name != "alpha"}
    return values | (dict(config.budget) if method == "budgeted_lora" else {})


def without(value: str, of_the_paper: str) -> str | None:
    """A choice as a recipe holds it: empty if it is the paper's."""
    return None if value == of_the_paper else value


def whole_steps(config: Config, own: int | None) -> int:
    """Optimiser steps for the row's own tokens, or else the scale's, rounded down. Raises BadInput if not one step."""
    tokens = own or config.training.tokens
    steps = tokens // tokens_per_step(config)
    if not steps:
        name = "tokens" if own else "training.tokens"
        raise BadInput(f"{name} {tokens} make 0 steps: {step_text(config)}, expected at least one step")
    return steps


def tokens_per_step(config: Config) -> int:
    return config.training.batch_windows * config.sequence_length


def step_text(config: Config) -> str:
    """How many tokens a step takes, and why."""
    return (
        f"a step takes {tokens_per_step(config)} (training.batch_windows {config.training.batch_windows} x "
        f"sequence_length {config.sequence_length})"
    )


def refuse_idle_keys(given: dict[str, Any], method: str) -> None:
    """Refuse keys of a row that its method does not use. Raises BadInput if there is such a key."""
    for methods, names in USED_BY.items():
        idle = next((name for name in names if name in given and method not in methods), None)
        if idle is not None:
            raise BadInput(f"{method} does not use {idle}; remove it, or use {' or '.join(methods)}")


def own_shape(config: Config, given: dict[str, Any]) -> dict[str, int | None]:
    """Layers and feed-forward size of a student; without the size if it has the scale's shape.

    Args:
        given: the row's own keys.

    Raises:
        BadInput: the row asks for more than the first teacher has, or for a feed-forward size and MACs at once.
    """
    asked = {name: given[name] for name in SHAPE_KEYS if name in given}
    most = dict(zip(SHAPE_KEYS, (first_anatomy(config).layers, student_shape(config).ffn), strict=True))
    for name, value in asked.items():
        if value > most[name]:
            raise BadInput(f"{name} {value} exceeds {most[name]}, that of the first teacher {config.first_teacher}")
    if "macs_of_budget" in given:
        if "student_ffn" in asked:
            raise BadInput("macs_of_budget chooses the size of the feed-forwards; remove it, or student_ffn")
        shape = control_shape(config, given["macs_of_budget"], layers=given.get("student_layers"))
        return dict(zip(SHAPE_KEYS, shape, strict=True))
    usual = {"student_layers": config.student.layers, "student_ffn": most["student_ffn"]}
    return usual | ({"student_ffn": None} if usual | asked == usual else asked)


def control_shape(config: Config, budget: float, *, layers: int | None = None) -> tuple[int, int]:
    """Layers and feed-forward size of a dense student with the MACs that `budget` leaves of the scale's student.

    Without `layers` it has the fewest that reach these MACs at full width. Its feed-forwards are then narrowed until
    the MACs match, to less than one feed-forward neuron per layer.

    Raises:
        BadInput: the budget leaves no MACs for feed-forwards, or more than so many layers have.
    """
    macs = planned(config, default_recipe(config, "budgeted_lora", budget)).totals.macs
    layers, ffn = narrowed(student_shape(config), macs=macs, layers=layers)
    if ffn < 1:
        raise BadInput(f"macs_of_budget {budget:g}: {layers} layers leave no MACs for feed-forwards")
    whole = replace(student_shape(config), layers=layers)
    if macs - dense_macs(whole) >= 3 * whole.hidden * layers and layers < config.student.layers:
        raise BadInput(
            f"macs_of_budget {budget:g}: {layers} whole layers have fewer MACs; expected more student_layers"
        )
    return layers, ffn


def narrowed(full: ModelShape, *, macs: int, layers: int | None = None) -> tuple[int, int]:
    """Layers and feed-forward size of a dense student of `macs` (see `control_shape`); a size below 1 is none."""
    layers = layers or min(full.layers, -(-macs * full.layers // dense_macs(full)))
    ffn = (macs // layers - 2 * full.hidden * (full.attention + full.kv)) // (3 * full.hidden)
    return layers, min(full.ffn, ffn)


def default_recipe(config: Config, method: Method, budget: float | Elastic | None) -> Recipe:
    """The recipe of a student with the scale's defaults; an elastic one starts and orders as it must."""
    needed = {name: values[0] for name, values in ELASTIC_NEEDS.items()} if budget == "elastic" else {}
    return recipe(config, Row(method=method, budget=budget, **needed))


def default_of(config: Config, values: Recipe) -> Recipe:
    """The scale's default for the method and budget of a recipe."""
    return default_recipe(config, values.method, "elastic" if values.elastic else values.budget)


def differences(config: Config, values: Recipe) -> dict[str, Any]:
    """Where a recipe differs from the scale's default for its method and budget, under the names that a row has.

    What follows from another value is left out: alpha in its usual ratio to the rank, the ends of a schedule.
    """
    default = default_of(config, values)
    mine, usual = as_row(values), as_row(default)
    differing = {name: value for name, value in mine.items() if value != usual[name] and name != "alpha"}
    if values.rank is not None and values.alpha * default.rank != default.alpha * values.rank:
        differing["alpha"] = values.alpha
    return differing


def as_row(values: Recipe) -> dict[str, Any]:
    """A recipe under the names of a row, with every key given; a control's shape is under the recipe's own names."""
    derived = {"steps", "rank_step", "schedule_start", "schedule_end", "statistics_windows", "importance_windows"}
    derived |= {"dense_learning_rate"}
    row = values.model_dump(mode="json", exclude=derived) | {"tokens": values.tokens}
    if values.method == "kd_full":
        return row
    ranks = "fixed" if values.rank_step is None else "allocated"
    choices = {"low_rank_init": values.low_rank_init or "zero", "ranks": ranks, "order": values.order or "mac"}
    return row | choices | {"train_dense": values.train_dense or "none", "whole": values.whole or False}


def first_anatomy(config: Config) -> Anatomy:
    """The network that students are cut from."""
    return config.teacher_ladder[config.first_teacher].anatomy


def student_shape(config: Config) -> ModelShape:
    """The cost model's view of the scale's student."""
    return shape_of(first_anatomy(config), layers=config.student.layers)


def recipe_shape(config: Config, values: Recipe) -> ModelShape:
    """The same of the student of a recipe."""
    return shape_of(first_anatomy(config), layers=values.student_layers, ffn=values.student_ffn)


def shape_of(anatomy: Anatomy, *, layers: int | None = None, ffn: int | None = None) -> ModelShape:
    """The cost model's view of a network, or of one with other layers or feed-forwards."""
    return ModelShape(
        layers=layers or anatomy.layers,
        hidden=anatomy.hidden,
        kv=anatomy.kv,
        ffn=ffn or anatomy.ffn,
        attention=anatomy.attention,
    )


def planned(config: Config, values: Recipe) -> Structure:
    """The structure that a budgeted recipe leaves of its student, compressed as the scale says."""
    compression = config.compression
    return structure(
        recipe_shape(config, values), BudgetRule.of(values), rank=values.rank, schedule=values.schedule,
        r_max=compression.r_max, rank_multiple=compression.rank_multiple, svd_threshold=compression.svd_threshold,
        trained_share=trained_share(values),
    )  # fmt: skip
