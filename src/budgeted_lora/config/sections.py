"""The sections of a scale file."""

from typing import Literal

from pydantic import Field, model_validator

from budgeted_lora.config.types import Fraction, Init, Positive, Seed, Strict


class Threads(Strict):
    training: Positive = Field(1, description="CPU threads of one training or caching process. [ours]")
    evaluation: Positive = Field(1, description="CPU threads of one evaluation job. [ours]")
    timing: Positive = Field(
        2, description="CPU threads of a timing job; give it all cores so nothing runs beside it. [ours]"
    )


class Tokenizer(Strict):
    vocab_size: Positive = Field(
        2048,
        description="Vocabulary of a tokenizer trained here (teachers: pretrain); else the checkpoint's own. [ours]",
    )


class Teacher(Strict):
    layers: Positive = Field(description="Decoder layers. [S]")
    hidden: Positive = Field(description="Hidden size. [S]")
    ffn: Positive = Field(description="Feed-forward size. [S]")
    heads: Positive = Field(description="Attention heads. [S]")
    kv_heads: Positive = Field(description="Key/value heads. [S]")
    hub: str | None = Field(
        None, description="Checkpoint on the Hub (teachers: hub); `paper.yaml` says which names the paper prints. [S]"
    )
    revision: str | None = Field(None, description="Pinned commit of the checkpoint. [ours]")
    folder: str | None = Field(None, description="Checkpoint folder (teachers: folder). [ours]")
    tokens: Positive | None = Field(None, description="Pretraining tokens (teachers: pretrain). [ours]")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak pretraining rate of this teacher, if not the common one. [ours]"
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
    """How a teacher is trained; what it reads lies in the token files it is given."""

    batch_windows: Positive = Field(16, description="Windows in one optimiser step. [ours]")
    micro_batch_windows: Positive = Field(
        4, description="Windows in one forward pass; the rest is gradient accumulation. [ours]"
    )
    learning_rate: float = Field(3e-3, gt=0, description="Peak rate of AdamW (embeddings, head, norms). [ours]")
    matrix_learning_rate: float | None = Field(
        None, gt=0, description="Peak rate of Muon on the projection matrices; AdamW throughout when empty. [ours]"
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay. [ours]")
    warmup_fraction: Fraction = Field(0.03, description="Share of the steps in which the rate rises. [ours]")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm. [ours]")
    compile: bool = Field(
        False, description="Let torch compile the step (needs a C++ compiler); a third faster on a CPU. [ours]"
    )
    seed: Seed = Field(0, description="Seed of weights and window order. [ours]")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "Pretraining":
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError(
                f"pretraining.batch_windows {self.batch_windows} is not a multiple of micro_batch_windows "
                f"{self.micro_batch_windows}"
            )
        return self


class TeachersMade(Pretraining):
    """The section: the same, and what goes into those files."""

    function_share: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="Share of function documents in what teachers made here read, and their tokenizer is trained on; "
        "corpus.function_share when empty. [ours]",
    )


class Student(Strict):
    layers: Positive = Field(6, description="Layers of the student, cut from the first teacher of the ladder. [S]")


class LearningRates(Strict):
    kd_full: float = Field(1e-3, gt=0, description="Peak rate of KD Full. [U]")
    kd_lora: float = Field(1e-3, gt=0, description="Peak rate of KD LoRA. [U]")
    budgeted_lora: float = Field(1e-3, gt=0, description="Peak rate of Budgeted LoRA. [U]")


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
    clip: float = Field(1.0, gt=0, description="Largest gradient norm. [S]")
    warmup_fraction: Fraction = Field(0.03, description="Share of the steps in which the rate rises. [S]")
    warmup_cap: Positive = Field(2000, description="Most warm-up steps. [S]")
    temperature: float = Field(3.0, gt=0, description="Distillation temperature T. [D]")
    kd_weight: Fraction = Field(0.8, description="Weight a of the distillation term. [D]")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="bfloat16 is autocast, where the device has it. [S]"
    )
    train_embeddings_head_norms: bool = Field(
        False, description="Whether the LoRA arms train embeddings, head and norms too. [U]"
    )
    teacher_cache: Literal["hidden", "online"] = Field(
        "online",
        description="hidden: the teacher's final hidden states are computed once; online: it runs beside each. [ours]",
    )
    seed: Seed = Field(0, description="Seed of adapters, dropout and window order. [ours]")
    init: Init = Field("mixed", description="Which layers of the first teacher a student gets. [S]")
    log_every: Positive = Field(10, description="Steps between rows of history.csv and retention.csv. [ours]")
    checkpoint_every: Positive = Field(500, description="Steps between saves of the training state. [ours]")


class Lora(Strict):
    rank: Positive = Field(128, description="Rank r of the low-rank paths. [S]")
    alpha: float = Field(256, gt=0, description="Scale of the low-rank paths is alpha / r. [S]")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before A. [U]")
    low_rank_init: Literal["zero", "svd", "activation_svd"] = Field(
        "zero",
        description="zero: A Kaiming-uniform, B zero, beside the whole W; svd: the top-r SVD of W, the dense path "
        "holding only the residual; activation_svd: the same in the metric of the inputs' second moment. [U]",
    )
    ranks: Literal["fixed", "allocated"] = Field(
        "fixed", description="allocated: the same MACs, spread over projections where they keep most output. [ours]"
    )
    rank_step: Positive = Field(4, description="Allocated ranks are multiples of it. [ours]")
    statistics_windows: Positive = Field(
        64, description="Training windows that second moments and gradients are measured on. [ours]"
    )


class Budget(Strict):
    schedules: dict[str, tuple[Fraction, Fraction]] = Field(
        default_factory=lambda: {"none": (0.0, 0.0), "short": (0.1, 0.3), "long": (0.1, 0.9)},
        description="Start and end of the decay as fractions of training. [S]",
    )
    schedule: str = Field("short", description="The schedule of a budgeted run that names none. [S]")
    controller: Literal["greedy", "uniform"] = Field(
        "greedy", description="greedy: ascending MACs; uniform: one d for all modules. [S]"
    )
    order: Literal["mac", "energy", "activation", "gradient"] = Field(
        "mac",
        description="Which dense path the greedy controller removes first. mac: the cheapest; else the one of least "
        "estimated harm per MAC: the weights' energy outside the top r singular directions, the outputs', or the "
        "first-order change of the loss. [S]",
    )
    smoothing: float = Field(0.9, ge=0, lt=1, description="EMA factor beta of the dense coefficients. [U]")
    drop_threshold: float = Field(
        0.05, gt=0, lt=1, description="Below it a dense coefficient becomes exactly 0 (tau_drop). [U]"
    )
    gate_logit: float = Field(2.0, description="Initial gate logit. [U]")
    gate_lr_multiplier: float = Field(1.0, gt=0, description="Gate learning rate over the base rate. [U]")


class Compression(Strict):
    rank_threshold: Fraction = Field(0.5, description="Ranks with a gate at or below it are cut (tau_rank). [U]")
    svd_threshold: Fraction = Field(
        0.5, description="Dense coefficients below it are approximated by SVD (tau_svd). [D]"
    )
    r_max: Positive = Field(64, description="SVD rank of a coefficient of 1; rank = round(d r_max). [U]")
    gate_hardening: Literal["soft", "one"] = Field(
        "soft", description="Whether surviving gates keep their value or become 1. [U]"
    )
    macs_of_budget: Fraction | None = Field(
        None,
        description="Of a KD Full student: truncated SVD of every projection to the MACs this F leaves, in equal "
        "shares and without retraining. [ours]",
    )
    truncation: Literal["weights", "outputs"] = Field(
        "weights",
        description="What macs_of_budget keeps most of: the weights, or the outputs on training windows (undistilled "
        "students only). [ours]",
    )
    undistilled: bool = Field(
        False, description="Compress the student that a KD Full run began with, not the one it made. [ours]"
    )

    @model_validator(mode="after")
    def _has_what_truncation_needs(self) -> "Compression":
        if self.truncation == "outputs" and (self.macs_of_budget is None or not self.undistilled):
            lacks = "macs_of_budget" if self.macs_of_budget is None else "undistilled: true"
            raise ValueError(f"truncation: outputs without {lacks}; expected both macs_of_budget and undistilled: true")
        return self


class Evaluation(Strict):
    batch_windows: Positive = Field(16, description="Windows in one forward pass of the perplexity. [ours]")
    shots: Positive = Field(10, description="Demonstrations in a prompt. [S]")
    demonstration_seeds: list[Seed] = Field([0, 1, 2], min_length=1, description="Seeds of the demonstrations. [U]")
    queries: Positive = Field(
        210, description="Queries of a probe at most; fewer where the held-out part is smaller. [ours]"
    )
    icl_batch: Positive = Field(64, description="Prompts decoded together. [ours]")
    context: Positive | None = Field(
        None,
        description="Most tokens of a prompt with its answer, others are refused; `sequence_length` when empty. [ours]",
    )
    probes: Literal["generated", "folder"] = Field(
        "generated", description="Our probes, or the original files in a folder. [ours]"
    )
    probes_folder: str | None = Field(None, description="Folder of the 19 original files (probes: folder). [S]")


class Speed(Strict):
    batch: Positive = Field(8, description="Sequences in a prefill. [ours]")
    length: Positive = Field(256, description="Tokens of a prefill sequence. [ours]")
    decode_tokens: Positive = Field(32, description="Tokens decoded one by one after a short prompt. [ours]")
    repeats: int = Field(15, ge=3, description="Timed repeats; dense and compressed take turns. [ours]")


class Report(Strict):
    bootstrap: Positive = Field(1000, description="Resamples of the paired bootstrap over windows. [ours]")
    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of the printed intervals. [ours]")


class Calibration(Strict):
    teachers: bool = Field(
        False,
        description="Judge the teachers' perplexities by Table 1 of the paper before any student trains: only with its "
        "checkpoints, corpus and tokenizer, and the report then sets Table 1 beside them. [ours]",
    )
    tolerance: float = Field(0.02, gt=0, description="Largest relative difference from the published value. [ours]")
    on_miss: Literal["warn", "stop"] = Field(
        "warn", description="Where a teacher is further off: say so and go on, or train nothing. [ours]"
    )
