"""What a table asks for: its rows, and the compression settings that a row can name."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from budgeted_lora.config.messages import in_yaml
from budgeted_lora.config.types import (
    Fraction,
    Init,
    Method,
    Positive,
    Seed,
    Strict,
)


def refuse_idle_lists(model: BaseModel) -> None:
    """Refuses lists that ask for nothing: an empty one makes no student, and a repeated value no second one.

    Raises:
        ValueError: see above.
    """
    for name in type(model).model_fields:
        values: Any = getattr(model, name)
        if not isinstance(values, list):
            continue
        if not values:
            raise ValueError(f"{name} is [], expected at least one value, or no {name}")
        twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if twice is not None:
            raise ValueError(f"{name} is {in_yaml(values)}, in which {in_yaml(twice)} stands twice")


class Row(Strict):
    """One row of a table: what differs from the scale's defaults; a list means one cell each."""

    method: Method = Field(description="How the student is trained. [S]")
    teacher: str | list[str] | None = Field(None, description="Name in `teacher_ladder`; the first one when empty. [S]")
    budget: Fraction | list[Fraction] | None = Field(
        None, description="Final dense fraction F: required with budgeted_lora, refused elsewhere. [S]"
    )
    init: Init | list[Init] | None = Field(None, description="Instead of `training.init`. [S]")
    schedule: str | list[str] | None = Field(
        None, description="Name in `budget.schedules`, instead of `budget.schedule`. [S]"
    )
    controller: Literal["greedy", "uniform"] | None = Field(None, description="Instead of `budget.controller`. [S]")
    temperature: float | None = Field(None, gt=0, description="Instead of `training.temperature`. [S]")
    kd_weight: Fraction | None = Field(None, description="Instead of `training.kd_weight`. [S]")
    rank: Positive | list[Positive] | None = Field(None, description="Instead of `lora.rank`. [S]")
    alpha: float | None = Field(None, gt=0, description="If empty, alpha / rank stays that of the scale. [U]")
    macs_of_budget: Fraction | list[Fraction] | None = Field(
        None,
        description="kd_full only: a shallower student with narrower feed-forwards, of the MACs this F leaves. [ours]",
    )
    tokens: Positive | None = Field(None, description="Instead of `training.tokens`. [ours]")
    learning_rate: float | None = Field(None, gt=0, description="Instead of the method's `training.learning_rate`. [U]")
    betas: tuple[Fraction, Fraction] | None = Field(None, description="Instead of `training.betas`. [U]")
    rows: Literal["packed", "document"] | None = Field(None, description="Instead of `rows`, in training only. [U]")
    train_embeddings_head_norms: bool | None = Field(
        None, description="Instead of `training.train_embeddings_head_norms`. [U]"
    )
    low_rank_init: Literal["zero", "svd", "activation_svd"] | None = Field(
        None, description="Instead of `lora.low_rank_init`. [ours]"
    )
    ranks: Literal["fixed", "allocated"] | None = Field(None, description="Instead of `lora.ranks`. [ours]")
    order: Literal["mac", "energy", "activation", "gradient"] | None = Field(
        None, description="Instead of `budget.order`. [ours]"
    )
    gate_logit: float | None = Field(None, description="Instead of `budget.gate_logit`. [U]")
    gate_lr_multiplier: float | None = Field(None, gt=0, description="Instead of `budget.gate_lr_multiplier`. [U]")
    smoothing: float | None = Field(None, ge=0, lt=1, description="Instead of `budget.smoothing`. [U]")
    drop_threshold: float | None = Field(None, gt=0, lt=1, description="Instead of `budget.drop_threshold`. [U]")
    seed: Seed | list[Seed] | None = Field(None, description="Instead of `training.seed`. [ours]")
    compression: str | None = Field(
        None, description="Name in `sweeps`: the trained student is compressed and scored with each setting. [ours]"
    )

    @model_validator(mode="after")
    def _lists_ask_for_something(self) -> "Row":
        refuse_idle_lists(self)
        return self


class Sweep(Strict):
    """Settings tried on one trained student: every combination of the lists, anything else as in `compression`."""

    rank_threshold: list[Fraction] | None = Field(None, description="Instead of `compression.rank_threshold`. [U]")
    svd_threshold: list[Fraction] | None = Field(None, description="Instead of `compression.svd_threshold`. [U]")
    r_max: list[Positive] | None = Field(None, description="Instead of `compression.r_max`. [U]")
    gate_hardening: list[Literal["soft", "one"]] | None = Field(
        None, description="Instead of `compression.gate_hardening`. [U]"
    )
    macs_of_budget: list[Fraction] | None = Field(None, description="Instead of `compression.macs_of_budget`. [ours]")
    truncation: list[Literal["weights", "outputs"]] | None = Field(
        None, description="Instead of `compression.truncation`. [ours]"
    )
    undistilled: list[bool] | None = Field(None, description="Instead of `compression.undistilled`. [ours]")

    @model_validator(mode="after")
    def _lists_ask_for_something(self) -> "Sweep":
        refuse_idle_lists(self)
        return self
