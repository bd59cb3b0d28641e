"""From a row of the configuration to the complete recipe of a student."""

from typing import Any

from budgeted_lora.config.messages import in_yaml
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.rows import Row
from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, dense_macs
from budgeted_lora.method.structure import Structure, structure

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
