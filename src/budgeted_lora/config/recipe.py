"""The recipe of one student: what a training job receives, and what its cell's id is a hash of."""

from pydantic import Field, model_validator

from budgeted_lora.config.types import (
    BelowOne,
    ControllerKind,
    Fraction,
    Init,
    Method,
    OwnLowRankInit,
    OwnRemovalOrder,
    OwnTrainDense,
    Packing,
    Positive,
    Precision,
    Strict,
)


class Recipe(Strict):
    """How one student is trained, complete.

    A field is filled by `workflow.recipes` from the key of the same name: the row's, or else the scale's section's.
    Fields that a method does not use are empty, and so are choices that are the paper's: an empty field is no part of
    the id, so a new field that is empty by default leaves all ids as they are.
    """

    method: Method
    teacher: str
    init: Init
    student_layers: Positive
    student_ffn: Positive | None = None
    importance_windows: Positive | None = None
    temperature: float = Field(gt=0)
    kd_weight: Fraction
    rank: Positive | None = None
    alpha: float | None = None
    dropout: float = 0.0
    budget: Fraction | None = None
    elastic_budgets: tuple[BelowOne, ...] | None = None
    schedule: str | None = None
    schedule_start: Fraction | None = None
    schedule_end: Fraction | None = None
    controller: ControllerKind | None = None
    smoothing: float | None = None
    drop_threshold: float | None = None
    gate_logit: float | None = None
    gate_lr_multiplier: float | None = None
    low_rank_init: OwnLowRankInit | None = None
    order: OwnRemovalOrder | None = None
    whole: bool | None = None
    train_dense: OwnTrainDense | None = None
    dense_learning_rate: float | None = Field(default=None, gt=0)
    rank_step: Positive | None = None
    statistics_windows: Positive | None = None
    train_embeddings_head_norms: bool = True
    steps: Positive
    batch_windows: Positive
    micro_batch_windows: Positive
    sequence_length: Positive
    rows: Packing
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    warmup_fraction: Fraction
    warmup_cap: Positive
    precision: Precision
    seed: int

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        if self.method != "kd_full" and (self.rank is None or self.alpha is None):
            raise ValueError(f"{self.method} needs rank and alpha")
        if self.method == "budgeted_lora" and self.budget is None and not self.elastic:
            raise ValueError("budgeted_lora needs budget, the final dense fraction F from 0 to 1")
        if self.method != "budgeted_lora" and (self.budget is not None or self.elastic):
            raise ValueError(f"{self.method} takes no budget")
        if self.elastic and self.budget is not None:
            raise ValueError(f"budget {self.budget:g} beside elastic_budgets; expected one budget or several")
        return self

    @property
    def plain(self) -> bool:
        """Whether removal order and ranks are the paper's: then the structure is known before training."""
        return self.order is None and self.rank_step is None

    @property
    def elastic(self) -> bool:
        """Whether one training serves several budgets; compression then chooses one."""
        return self.elastic_budgets is not None

    @property
    def tokens(self) -> int:
        """Tokens the student sees."""
        return self.steps * self.batch_windows * self.sequence_length


def compute_values(*, threads: int, gpus_per_run: int) -> dict[str, int]:
    """Thread and GPU counts, which also affect the result's bits; a single GPU is the default and omitted."""
    return {"threads": threads} | ({"gpus_per_run": gpus_per_run} if gpus_per_run > 1 else {})
