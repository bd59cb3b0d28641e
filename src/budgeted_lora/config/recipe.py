"""The recipe of one student: what a training job receives, and what its cell's id is a hash of."""

from typing import Literal

from pydantic import Field, model_validator

from budgeted_lora.config.types import (
    Fraction,
    Init,
    Method,
    Positive,
    Strict,
)


class Recipe(Strict):
    """How one student is trained, complete: what a training job receives."""

    method: Method
    teacher: str
    init: Init
    student_layers: Positive
    student_ffn: Positive | None = None
    temperature: float = Field(gt=0)
    kd_weight: Fraction
    rank: Positive | None = None
    alpha: float | None = None
    dropout: float = 0.0
    budget: Fraction | None = None
    schedule: str | None = None
    schedule_start: Fraction | None = None
    schedule_end: Fraction | None = None
    controller: Literal["greedy", "uniform"] | None = None
    smoothing: float | None = None
    drop_threshold: float | None = None
    gate_logit: float | None = None
    gate_lr_multiplier: float | None = None
    low_rank_init: Literal["svd", "activation_svd"] | None = None  # None and the two below: as in the paper
    order: Literal["energy", "activation", "gradient"] | None = None
    rank_step: Positive | None = None
    statistics_windows: Positive | None = None
    train_embeddings_head_norms: bool = True
    steps: Positive
    batch_windows: Positive
    micro_batch_windows: Positive
    sequence_length: Positive
    rows: Literal["packed", "document"]
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    warmup_fraction: Fraction
    warmup_cap: Positive
    precision: Literal["float32", "bfloat16"]
    seed: int

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        lora = self.method != "kd_full"
        if lora and (self.rank is None or self.alpha is None):
            raise ValueError(f"{self.method} needs rank and alpha")
        if (self.method == "budgeted_lora") != (self.budget is not None):
            needs = "needs budget, the final dense fraction F from 0 to 1"
            raise ValueError(f"{self.method} {needs if self.budget is None else 'takes no budget'}")
        return self

    @property
    def plain(self) -> bool:
        """Whether the structure that the budget leaves is known before the student is: the paper's order and ranks."""
        return self.order is None and self.rank_step is None

    @property
    def tokens(self) -> int:
        """Tokens the student sees."""
        return self.steps * self.batch_windows * self.sequence_length


def compute_values(*, threads: int, gpus_per_run: int) -> dict[str, int]:
    """What else determines a student's last bits, as its result records it; one GPU a run goes without saying."""
    return {"threads": threads} | ({"gpus_per_run": gpus_per_run} if gpus_per_run > 1 else {})
