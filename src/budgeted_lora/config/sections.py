"""The sections of a scale file."""

from typing import Literal

from pydantic import Field, model_validator

from budgeted_lora.config.types import (
    Above0,
    BelowOne,
    Between0And1,
    ControllerKind,
    Fraction,
    GateHardening,
    Init,
    LowRankInit,
    Positive,
    Precision,
    Ranks,
    RemovalOrder,
    Seed,
    Strict,
    Truncation,
)


class Threads(Strict):
    training: Positive = Field(1, description="CPU threads of one training or caching process. [ours]")
    evaluation: Positive = Field(1, description="CPU threads of one evaluation job. [ours]")
    timing: Positive = Field(
        2, description="CPU threads of a timing job; all cores, so that nothing runs beside it. [ours]"
    )


class Tokenizer(Strict):
    vocab_size: Positive = Field(
        2048,
        description="Vocabulary of a tokenizer trained here (teachers: pretrain); others come with one. [ours]",
    )


class Teacher(Strict):
    layers: Positive = Field(description="Decoder layers. [S]")
    hidden: Positive = Field(description="Hidden size. [S]")
    ffn: Positive = Field(description="Feed-forward size. [S]")
    heads: Positive = Field(description="Attention heads. [S]")
    kv_heads: Positive = Field(description="Key/value heads. [S]")
    hub: str | None = Field(
        None, description="Checkpoint on the Hub (teachers: hub); `paper.yaml` notes which names are in the paper. [S]"
    )
    revision: str | None = Field(None, description="Pinned commit of the checkpoint. [ours]")
    folder: str | None = Field(None, description="Checkpoint folder (teachers: folder). [ours]")
    tokens: Positive | None = Field(None, description="Pretraining tokens (teachers: pretrain). [ours]")
    learning_rate: Above0 | None = Field(
        None, description="Replaces `pretraining.learning_rate` for this teacher. [ours]"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> "Teacher":
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} must divide hidden {self.hidden}, and kv_heads {self.kv_heads} must divide heads"
            )
        return self

    @property
    def kv(self) -> int:
        """Width of the key and value projections."""
        return self.hidden // self.heads * self.kv_heads


class Pretraining(Strict):
    """How a teacher is trained on the token files it is given."""

    batch_windows: Positive = Field(16, description="Windows in one optimiser step. [ours]")
    micro_batch_windows: Positive = Field(
        4, description="Windows in one forward pass; the rest is gradient accumulation. [ours]"
    )
    learning_rate: Above0 = Field(3e-3, description="Peak rate of AdamW (embeddings, head, norms). [ours]")
    matrix_learning_rate: Above0 | None = Field(
        None, description="Peak rate of Muon for the projection matrices; they use AdamW too when empty. [ours]"
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay. [ours]")
    warmup_fraction: Fraction = Field(0.03, description="Fraction of the steps in which the rate rises. [ours]")
    clip: Above0 = Field(1.0, description="Largest gradient norm. [ours]")
    compile: bool = Field(
        False, description="Let torch compile the step (needs a C++ compiler); a third faster on a CPU. [ours]"
    )
    seed: Seed = Field(0, description="Seed of the weights and of the window order. [ours]")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "Pretraining":
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError(
                f"pretraining.batch_windows {self.batch_windows} is not a multiple of micro_batch_windows "
                f"{self.micro_batch_windows}"
            )
        return self


class TeachersMade(Pretraining):
    """The section: how teachers are trained, and what their token files hold."""

    function_share: BelowOne | None = Field(
        None,
        description="Share of function documents in the token files of teachers and of their tokenizer; "
        "`corpus.function_share` when empty. [ours]",
    )


class Student(Strict):
    layers: Positive = Field(6, description="Layers of the student, cut from the first teacher of the ladder. [S]")


class LearningRates(Strict):
    kd_full: Above0 = Field(1e-3, description="Peak rate of KD Full. [U]")
    kd_lora: Above0 = Field(1e-3, description="Peak rate of KD LoRA. [U]")
    budgeted_lora: Above0 = Field(1e-3, description="Peak rate of Budgeted LoRA. [U]")


class Training(Strict):
    tokens: Positive = Field(2_550_000_000, description="Tokens of one main run, rounded down to whole steps. [S]")
    batch_windows: Positive = Field(64, description="Windows in one optimiser step (2^16 tokens at 1024). [U]")
    micro_batch_windows: Positive = Field(
        8, description="Windows in one forward pass; the rest is gradient accumulation. [ours]"
    )
    learning_rate: LearningRates = Field(
        default_factory=LearningRates, description="Peak learning rate of each method."
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW betas. [U]")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay. [S]")
    clip: Above0 = Field(1.0, description="Largest gradient norm. [S]")
    warmup_fraction: Fraction = Field(0.03, description="Fraction of the steps in which the rate rises. [S]")
    warmup_cap: Positive = Field(2000, description="Largest number of warm-up steps. [S]")
    temperature: Above0 = Field(3.0, description="Distillation temperature T. [D]")
    kd_weight: Fraction = Field(0.8, description="Weight a of the distillation term. [D]")
    precision: Precision = Field("bfloat16", description="bfloat16 is autocast, on devices that support it. [S]")
    train_embeddings_head_norms: bool = Field(
        False, description="Whether kd_lora and budgeted_lora also train embeddings, head and norms. [U]"
    )
    teacher_cache: Literal["hidden", "online"] = Field(
        "online",
        description="hidden: compute the teacher's final hidden states once; online: run it with each student. [ours]",
    )
    seed: Seed = Field(0, description="Seed of the low-rank paths, of dropout and of the window order. [ours]")
    init: Init = Field("mixed", description="Which layers of the first teacher a student gets. [S]")
    log_every: Positive = Field(10, description="Steps between rows of history.csv and retention.csv. [ours]")
    checkpoint_every: Positive = Field(500, description="Steps between two saves of the training state. [ours]")


class Lora(Strict):
    rank: Positive = Field(128, description="Rank r of the low-rank paths. [S]")
    alpha: Above0 = Field(256, description="The low-rank paths are scaled by alpha / r. [S]")
    dropout: BelowOne = Field(0.05, description="Dropout before A. [U]")
    low_rank_init: LowRankInit = Field(
        "zero",
        description="zero: A Kaiming-uniform and B zero, beside the whole W; svd: the top-r SVD of W, and the dense "
        "path holds the residual; activation_svd: that SVD in the metric of the inputs' second moment. [U]",
    )
    ranks: Ranks = Field(
        "fixed",
        description="allocated: the MACs of equal ranks, spread so that most of the outputs is kept. [ours]",
    )
    rank_step: Positive = Field(4, description="Allocated ranks are multiples of it. [ours]")
    statistics_windows: Positive = Field(
        64, description="Training windows on which second moments and gradients are measured. [ours]"
    )


class Budget(Strict):
    schedules: dict[str, tuple[Fraction, Fraction]] = Field(
        default_factory=lambda: {"none": (0.0, 0.0), "short": (0.1, 0.3), "long": (0.1, 0.9)},
        description="Start and end of the decay as fractions of training. [S]",
    )
    schedule: str = Field("short", description="Schedule of rows that name no other. [S]")
    controller: ControllerKind = Field(
        "greedy", description="greedy: one dense path after another; uniform: one d for all. [S]"
    )
    order: RemovalOrder = Field(
        "mac",
        description="Which dense path the greedy controller removes first. mac: the one with the fewest MACs. Others: "
        "the one with the least estimated harm per MAC, by the weights' energy outside the top r singular directions "
        "(energy), the outputs' energy (activation), or the first-order change of the loss (gradient). [S]",
    )
    smoothing: BelowOne = Field(0.9, description="EMA factor beta of the dense coefficients. [U]")
    drop_threshold: Between0And1 = Field(
        0.05, description="A dense coefficient below it becomes exactly 0 (tau_drop). [U]"
    )
    gate_logit: float = Field(2.0, description="Initial gate logit. [U]")
    gate_lr_multiplier: Above0 = Field(1.0, description="Learning rate of the gates over the base rate. [U]")


class Compression(Strict):
    rank_threshold: Fraction = Field(0.5, description="Ranks with a gate at or below it are removed (tau_rank). [U]")
    svd_threshold: Fraction = Field(
        0.5, description="Dense paths with a coefficient below it are approximated by SVD (tau_svd). [D]"
    )
    r_max: Positive = Field(64, description="SVD rank for a coefficient of 1; in general round(d r_max). [U]")
    gate_hardening: GateHardening = Field(
        "soft", description="soft: remaining gates keep their value; one: they become 1. [U]"
    )
    macs_of_budget: Fraction | None = Field(
        None,
        description="kd_full only: truncate every projection by SVD, in equal shares and without retraining, to the "
        "MACs that this F leaves. [ours]",
    )
    truncation: Truncation = Field(
        "weights",
        description="What the SVD of macs_of_budget preserves best: the weights, or the outputs on training windows "
        "(undistilled students only). [ours]",
    )
    undistilled: bool = Field(
        False, description="kd_full only: compress the student as it was before distillation. [ours]"
    )

    @model_validator(mode="after")
    def _has_what_truncation_needs(self) -> "Compression":
        if self.truncation == "outputs" and (self.macs_of_budget is None or not self.undistilled):
            lacks = "macs_of_budget" if self.macs_of_budget is None else "undistilled: true"
            raise ValueError(f"truncation: outputs needs {lacks}; expected both macs_of_budget and undistilled: true")
        return self


class Evaluation(Strict):
    batch_windows: Positive = Field(16, description="Windows per forward pass of the perplexity. [ours]")
    shots: Positive = Field(10, description="Demonstrations in a prompt. [S]")
    demonstration_seeds: list[Seed] = Field([0, 1, 2], min_length=1, description="Seeds of the demonstrations. [U]")
    queries: Positive = Field(
        210, description="Queries per probe at most; fewer if the held-out part is smaller. [ours]"
    )
    icl_batch: Positive = Field(64, description="Prompts decoded together. [ours]")
    context: Positive | None = Field(
        None,
        description="Largest number of tokens of a prompt with its answer; longer ones are refused. `sequence_length` "
        "when empty. [ours]",
    )
    probes: Literal["generated", "folder"] = Field(
        "generated", description="generated: our probes; folder: the original files. [ours]"
    )
    probes_folder: str | None = Field(None, description="Folder of the 19 original files (probes: folder). [S]")


class Speed(Strict):
    batch: Positive = Field(8, description="Sequences in a prefill. [ours]")
    length: Positive = Field(256, description="Tokens of a prefill sequence. [ours]")
    decode_tokens: Positive = Field(32, description="Tokens decoded one by one after a short prompt. [ours]")
    repeats: int = Field(15, ge=3, description="Timed repeats; the dense and the compressed model take turns. [ours]")


class Report(Strict):
    bootstrap: Positive = Field(1000, description="Resamples of the paired bootstrap over windows. [ours]")
    confidence: Between0And1 = Field(0.95, description="Coverage of the printed intervals. [ours]")


class Calibration(Strict):
    teachers: bool = Field(
        False,
        description="Compare the teachers' perplexities with Table 1 of the paper before any student trains. Only for "
        "its checkpoints, corpus and tokenizer; the report then shows Table 1 beside them. [ours]",
    )
    tolerance: Above0 = Field(0.02, description="Largest relative difference from the published value. [ours]")
    on_miss: Literal["warn", "stop"] = Field(
        "warn", description="If a teacher is further off: warn and continue, or stop before training. [ours]"
    )
