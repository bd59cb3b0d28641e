"""The rows of tables, and the sweeps of compression that a row can name."""

from typing import Any, Self

from pydantic import model_validator

from budgeted_lora.config.messages import in_yaml
from budgeted_lora.config.types import (
    Above0,
    BelowOne,
    Betas,
    Between0And1,
    ControllerKind,
    Elastic,
    ElasticBudgets,
    Fraction,
    GateHardening,
    GateLogit,
    Init,
    LowRankInit,
    Method,
    Packing,
    Positive,
    Ranks,
    RemovalOrder,
    Seed,
    Strict,
    TrainDense,
    Truncation,
    key,
)


class Lists(Strict):
    """Keys that can list several values; refuses an empty list and a repeated value, which ask for nothing."""

    @model_validator(mode="after")
    def _has_no_idle_lists(self) -> Self:
        for name, values in self:
            if not isinstance(values, list):
                continue
            if not values:
                raise ValueError(f"{name} is [], expected at least one value, or no {name}")
            twice: Any = next((value for place, value in enumerate(values) if value in values[:place]), None)
            if twice is not None:
                raise ValueError(f"{name} is {in_yaml(values)}, which lists {in_yaml(twice)} twice")
        return self


class Row(Lists):
    """One row of a table: what differs from the scale's defaults; each value of a list makes one cell."""

    method: Method = key(..., "How the student is trained. [S]")
    teacher: str | list[str] | None = key(None, "Name in `teacher_ladder`; the first one when empty. [S]")
    budget: Fraction | Elastic | list[Fraction] | None = key(
        None,
        "Final dense fraction F: required for budgeted_lora, refused for other methods. elastic (ours): one training "
        "for every F; the row's sweep says to which F the student is cut. Such rows stand in the table `elastic`, or "
        "in one of a name of your own. [S]",
    )
    elastic_budgets: ElasticBudgets | None = key(None, "Replaces `budget.elastic_budgets`; elastic only. [ours]")
    init: Init | list[Init] | None = key(None, "Replaces `training.init`. [S]")
    schedule: str | list[str] | None = key(None, "Name in `budget.schedules`; replaces `budget.schedule`. [S]")
    controller: ControllerKind | None = key(None, "Replaces `budget.controller`. [S]")
    temperature: Above0 | None = key(None, "Replaces `training.temperature`. [S]")
    kd_weight: Fraction | None = key(None, "Replaces `training.kd_weight`. [S]")
    rank: Positive | list[Positive] | None = key(None, "Replaces `lora.rank`. [S]")
    alpha: Above0 | None = key(None, "Replaces `lora.alpha`; when empty, alpha / rank stays that of `lora`. [U]")
    macs_of_budget: Fraction | list[Fraction] | None = key(
        None,
        "kd_full only: train a smaller dense student with the MACs that this F leaves: the fewest layers that reach "
        "them, or `student_layers`, and feed-forwards as narrow as they must be. [ours]",
    )
    student_layers: Positive | list[Positive] | None = key(
        None, "Replaces `student.layers`, in the tables `beyond`, `controls`, `tokens` and your own. [ours]"
    )
    student_ffn: Positive | list[Positive] | None = key(
        None, "Feed-forward neurons that each layer of the student keeps, in the same tables; all without it. [ours]"
    )
    tokens: Positive | list[Positive] | None = key(None, "Replaces `training.tokens`. [ours]")
    learning_rate: Above0 | None = key(None, "Replaces the method's `training.learning_rate`. [U]")
    betas: Betas | None = key(None, "Replaces `training.betas`. [U]")
    rows: Packing | None = key(None, "Replaces `rows`, in training only. [U]")
    train_embeddings_head_norms: bool | None = key(None, "Replaces `training.train_embeddings_head_norms`. [U]")
    low_rank_init: LowRankInit | None = key(None, "Replaces `lora.low_rank_init`. [ours]")
    ranks: Ranks | None = key(None, "Replaces `lora.ranks`. [ours]")
    order: RemovalOrder | None = key(None, "Replaces `budget.order`. [ours]")
    whole: bool | None = key(None, "Replaces `budget.whole`. [ours]")
    train_dense: TrainDense | None = key(None, "Replaces `budget.train_dense`. [ours]")
    gate_logit: GateLogit | None = key(None, "Replaces `budget.gate_logit`. [U]")
    gate_lr_multiplier: Above0 | None = key(None, "Replaces `budget.gate_lr_multiplier`. [U]")
    smoothing: BelowOne | None = key(None, "Replaces `budget.smoothing`. [U]")
    drop_threshold: Between0And1 | None = key(None, "Replaces `budget.drop_threshold`. [U]")
    seed: Seed | list[Seed] | None = key(None, "Replaces `training.seed`. [ours]")
    compression: str | None = key(
        None, "Name in `sweeps`: compress and score the trained student in each of its variants. [ours]"
    )


class Sweep(Lists):
    """Variants to compress one trained student in: every combination of the lists, other keys as in `compression`."""

    budget: list[Fraction] | None = key(None, "Replaces `compression.budget`; elastic students need it. [ours]")
    rank_threshold: list[Fraction] | None = key(None, "Replaces `compression.rank_threshold`. [U]")
    svd_threshold: list[Fraction] | None = key(None, "Replaces `compression.svd_threshold`. [U]")
    r_max: list[Positive] | None = key(None, "Replaces `compression.r_max`. [U]")
    rank_multiple: list[Positive] | None = key(None, "Replaces `compression.rank_multiple`. [ours]")
    gate_hardening: list[GateHardening] | None = key(None, "Replaces `compression.gate_hardening`. [U]")
    macs_of_budget: list[Fraction] | None = key(None, "Replaces `compression.macs_of_budget`. [ours]")
    truncation: list[Truncation] | None = key(None, "Replaces `compression.truncation`. [ours]")
    undistilled: list[bool] | None = key(None, "Replaces `compression.undistilled`. [ours]")
