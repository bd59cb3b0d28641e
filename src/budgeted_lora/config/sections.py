"""The sections of a scale file."""

from typing import ClassVar, Literal, Self

from pydantic import PrivateAttr, model_validator

from budgeted_lora.config.anatomy import SIZES, Anatomy, sizes_given
from budgeted_lora.config.types import (
    Above0,
    BelowOne,
    Betas,
    Between0And1,
    ControllerKind,
    ElasticBudgets,
    Fraction,
    GateHardening,
    GateLogit,
    Growing,
    Init,
    Legs,
    LocalPath,
    LowRankInit,
    Packing,
    Positive,
    Precision,
    Ranks,
    RemovalOrder,
    Seed,
    Strict,
    TrainDense,
    Truncation,
    key,
)


class Threads(Strict):
    training: Positive = key(1, "CPU threads of one training or caching process. [ours]")
    evaluation: Positive = key(1, "CPU threads of one evaluation job. [ours]")
    timing: Positive = key(2, "CPU threads of a timing job; all cores, so that nothing runs beside it. [ours]")


class Tokenizer(Strict):
    vocab_size: Positive = key(2048, "Vocabulary of the tokenizer trained with teachers: pretrain. [ours]")


class Teacher(Growing):
    LATER: ClassVar[frozenset[str]] = frozenset({"head_dim"})

    layers: Positive | None = key(
        None,
        "Decoder layers. This and the other sizes are needed with teachers: shipped and pretrain. Checkpoints "
        "(teachers: folder and hub) say them themselves; those given here must agree. [S]",
    )
    hidden: Positive | None = key(None, "Hidden size. [S]")
    ffn: Positive | None = key(None, "Feed-forward size. [S]")
    heads: Positive | None = key(None, "Attention heads. [S]")
    kv_heads: Positive | None = key(None, "Key/value heads. [S]")
    head_dim: Positive | None = key(None, "Width of a head; hidden / heads when empty. [ours]")
    hub: str | None = key(None, "Checkpoint on the Hub (teachers: hub). [S]")
    revision: str | None = key(None, "Pinned commit of the checkpoint. [ours]")
    folder: LocalPath | None = key(None, "Checkpoint folder (teachers: folder). [ours]")
    tokens: Positive | Legs | None = key(
        None,
        "Pretraining tokens (teachers: pretrain). A list gives those of legs: each goes on from the weights of the one "
        "before, in the half precision they are kept in, with a schedule of its own. [ours]",
    )
    learning_rate: Above0 | None = key(None, "Replaces `pretraining.learning_rate` for this teacher. [ours]")

    _anatomy: Anatomy | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _heads_divide(self) -> "Teacher":
        width = self.head_dim is None and None not in (self.hidden, self.heads) and self.hidden % self.heads
        if width or (None not in (self.heads, self.kv_heads) and self.heads % self.kv_heads):
            raise ValueError(
                f"heads {self.heads} must divide hidden {self.hidden}, and kv_heads {self.kv_heads} must divide heads"
            )
        return self

    @property
    def given_sizes(self) -> dict[str, int]:
        """The sizes that are given, by key; head_dim too where the others are."""
        return sizes_given(dict(self))

    @property
    def shape(self) -> dict[str, int]:
        """The sizes of the network, by key."""
        return {name: getattr(self, name) for name in SIZES}

    @property
    def legs(self) -> list[int]:
        """The tokens of each leg of its pretraining; empty if it is not made here."""
        if self.tokens is None:
            return []
        return self.tokens if isinstance(self.tokens, list) else [self.tokens]

    @property
    def anatomy(self) -> Anatomy:
        """The network: what its checkpoint says, if that is here, or else the paper's decoder of these sizes."""
        if self._anatomy is not None:
            return self._anatomy
        return Anatomy(**self.shape, head_dim=self.head_dim or self.hidden // self.heads)

    def described_by(self, anatomy: Anatomy) -> None:
        """Says that the checkpoint is here, with this network."""
        self._anatomy = anatomy


class Pretraining(Growing):
    """How a teacher is trained on the token files it is given."""

    LATER: ClassVar[frozenset[str]] = frozenset({"precision"})

    batch_windows: Positive = key(16, "Windows in one optimiser step. [ours]")
    micro_batch_windows: Positive = key(4, "Windows in one forward pass; the rest is gradient accumulation. [ours]")
    learning_rate: Above0 = key(3e-3, "Peak rate of AdamW (embeddings, head, norms). [ours]")
    matrix_learning_rate: Above0 | None = key(None, "Peak rate of Muon for projections; AdamW when empty. [ours]")
    weight_decay: float = key(0.1, "Decoupled weight decay. [ours]", ge=0)
    warmup_fraction: Fraction = key(0.03, "Fraction of the steps in which the rate rises. [ours]")
    clip: Above0 = key(1.0, "Largest gradient norm. [ours]")
    compile: bool = key(False, "Let torch compile the step (needs a C++ compiler); a third faster on a CPU. [ours]")
    precision: Precision = key(
        "float32", "As `training.precision`; in bfloat16 a CPU that multiplies in it is half as fast again. [ours]"
    )
    seed: Seed = key(0, "Seed of the weights and of the window order. [ours]")

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

    function_share: BelowOne | None = key(
        None,
        "Share of function documents in the token files of teachers and of their tokenizer; "
        "`corpus.function_share` when empty. [ours]",
    )


class Student(Strict):
    layers: Positive = key(
        6, "Layers of the student, cut from the first teacher of the ladder; all of them compresses without a cut. [S]"
    )
    importance_windows: Positive = key(
        64, "Training windows on which `init: importance` measures what each layer of the first teacher changes. [ours]"
    )


class LearningRates(Strict):
    kd_full: Above0 = key(1e-3, "Peak rate of KD Full. [U]")
    kd_lora: Above0 = key(1e-3, "Peak rate of KD LoRA. [U]")
    budgeted_lora: Above0 = key(1e-3, "Peak rate of Budgeted LoRA. [U]")


class Training(Strict):
    tokens: Positive = key(2_550_000_000, "Tokens of one main run, rounded down to whole steps. [S]")
    batch_windows: Positive = key(64, "Windows in one optimiser step (2^16 tokens at 1024). [U]")
    micro_batch_windows: Positive = key(8, "Windows in one forward pass; the rest is gradient accumulation. [ours]")
    learning_rate: LearningRates = key(LearningRates(), "Peak learning rate of each method.")
    betas: Betas = key((0.9, 0.999), "AdamW betas. [U]")
    weight_decay: float = key(0.0, "AdamW weight decay. [S]", ge=0)
    clip: Above0 = key(1.0, "Largest gradient norm. [S]")
    warmup_fraction: Fraction = key(0.03, "Fraction of the steps in which the rate rises. [S]")
    warmup_cap: Positive = key(2000, "Largest number of warm-up steps. [S]")
    temperature: Above0 = key(3.0, "Distillation temperature T. [D]")
    kd_weight: Fraction = key(0.8, "Weight a of the distillation term. [D]")
    precision: Precision = key(
        "bfloat16",
        "bfloat16 is autocast on GPUs and CPUs that multiply in it (AVX512_BF16, AMX); others use float32. [S]",
    )
    train_embeddings_head_norms: bool = key(False, "Whether LoRA methods also train embeddings, head and norms. [U]")
    teacher_cache: Literal["hidden", "online"] = key(
        "online", "hidden: compute the teacher's final hidden states once; online: run it with each student. [ours]"
    )
    seed: Seed = key(0, "Seed of the low-rank paths, of dropout and of the window order. [ours]")
    init: Init = key(
        "mixed",
        "Which layers of the first teacher a student gets: the first, middle or last ones; mixed: the first, the last "
        "and evenly spaced ones between; importance (ours): those that change hidden states most; scratch: none. [S]",
    )
    log_every: Positive = key(10, "Steps between rows of history.csv and retention.csv. [ours]")
    checkpoint_every: Positive = key(500, "Steps between two saves of the training state. [ours]")


class Lora(Strict):
    rank: Positive = key(128, "Rank r of the low-rank paths. [S]")
    alpha: Above0 = key(256, "The low-rank paths are scaled by alpha / r. [S]")
    dropout: BelowOne = key(0.05, "Dropout before A. [U]")
    low_rank_init: LowRankInit = key(
        "zero",
        "zero: A Kaiming-uniform and B zero, beside the whole W; svd: the top-r SVD of W, and the dense path "
        "holds the residual; activation_svd: that SVD in the metric of the inputs' second moment. [U]",
    )
    ranks: Ranks = key(
        "fixed", "allocated: the MACs of equal ranks, spread so that most of the outputs is kept. [ours]"
    )
    rank_step: Positive = key(4, "Allocated ranks are multiples of it. [ours]")
    statistics_windows: Positive = key(
        64, "Training windows on which second moments and gradients are measured. [ours]"
    )


class Budget(Strict):
    schedules: dict[str, tuple[Fraction, Fraction]] = key(
        {"none": (0.0, 0.0), "short": (0.1, 0.3), "long": (0.1, 0.9)},
        "Start and end of the decay as fractions of training. [S]",
    )
    schedule: str = key("short", "Schedule of rows that name no other. [S]")
    controller: ControllerKind = key("greedy", "greedy: one dense path after another; uniform: one d for all. [S]")
    order: RemovalOrder = key(
        "mac",
        "Which dense path the greedy controller removes first. mac: the one with the fewest MACs. Others: the one "
        "with the least estimated harm per MAC, by the weights' energy outside the top r singular directions "
        "(energy), the outputs' energy (activation), or the first-order change of the loss (gradient). [S]",
    )
    whole: bool = key(
        False,
        "Leave no dense path in part: the one that the budget would cut goes, and such as went before it and still fit "
        "stay. Compression then approximates nothing. [ours]",
    )
    train_dense: TrainDense = key(
        "none",
        "Which dense paths train, too, at kd_full's learning rate. kept: those that the budget leaves whole; all: each "
        "until its retention falls; its low-rank path then starts anew from the weights as trained. [ours]",
    )
    smoothing: BelowOne = key(0.9, "EMA factor beta of the retentions. [U]")
    drop_threshold: Between0And1 = key(0.05, "A retention d below it becomes exactly 0 (tau_drop). [U]")
    gate_logit: GateLogit = key(2.0, "Initial gate logit. [U]")
    gate_lr_multiplier: Above0 = key(1.0, "Learning rate of the gates over the base rate. [U]")
    elastic_budgets: ElasticBudgets = key(
        [0.0, 0.2, 0.4, 0.6, 0.8],
        "Budgets that the steps of a row with `budget: elastic` draw from; every other step takes the lowest and the "
        "highest in turn. [ours]",
    )

    @model_validator(mode="after")
    def _budgets_differ(self) -> "Budget":
        if len(set(self.elastic_budgets)) < len(self.elastic_budgets):
            raise ValueError("budget.elastic_budgets names a budget twice, expected each once")
        return self


class Compression(Growing):
    LATER: ClassVar[frozenset[str]] = frozenset({"budget", "rank_multiple"})

    budget: Fraction | None = key(
        None, "Elastic students only: the F that the trained student is cut to; stands in a list of sweeps. [ours]"
    )

    rank_threshold: Fraction = key(0.5, "Ranks with a gate at or below it are removed (tau_rank). [U]")
    svd_threshold: Fraction = key(0.5, "Dense paths with a retention below it are approximated by SVD (tau_svd). [D]")
    r_max: Positive = key(64, "SVD rank for a retention of 1; in general round(d r_max). [U]")
    rank_multiple: Positive = key(
        1,
        "SVD ranks are multiples of it, as kernels and groups of quantised weights want: the nearest, but none that "
        "makes two factors cost more than the dense layer. LoRA ranks are `lora.rank`. [ours]",
    )
    gate_hardening: GateHardening = key("soft", "soft: remaining gates keep their value; one: they become 1. [U]")
    macs_of_budget: Fraction | None = key(
        None,
        "kd_full only: truncate every projection by SVD, in equal shares and without retraining, to the MACs that "
        "this F leaves. [ours]",
    )
    truncation: Truncation = key(
        "weights",
        "What the SVD of macs_of_budget preserves best: the weights, or the outputs on training windows "
        "(undistilled students only). [ours]",
    )
    undistilled: bool = key(False, "kd_full only: compress the student as it was before distillation. [ours]")

    @model_validator(mode="after")
    def _has_what_truncation_needs(self) -> "Compression":
        if self.truncation == "outputs" and (self.macs_of_budget is None or not self.undistilled):
            lacks = "macs_of_budget" if self.macs_of_budget is None else "undistilled: true"
            raise ValueError(f"truncation: outputs needs {lacks}; expected both macs_of_budget and undistilled: true")
        return self


class Scoring(Growing):
    """How perplexity and in-context learning are measured."""

    LATER: ClassVar[frozenset[str]] = frozenset({"skip_windows"})

    batch_windows: Positive = key(16, "Windows per forward pass of the perplexity. [ours]")
    skip_windows: int = key(
        0,
        "Windows of held-out prose before those that are scored; settings are tried on windows of their own. [ours]",
        ge=0,
    )
    shots: Positive = key(10, "Demonstrations in a prompt. [S]")
    demonstration_seeds: list[Seed] = key([0, 1, 2], "Seeds of the demonstrations. [U]", min_length=1)
    queries: Positive = key(210, "Queries per probe at most; fewer if the held-out part is smaller. [ours]")
    icl_batch: Positive = key(64, "Prompts decoded together. [ours]")
    context: Positive | None = key(
        None,
        "Largest number of tokens of a prompt with its answer; longer ones are refused. `sequence_length` when "
        "empty. [ours]",
    )
    probes: Literal["generated", "folder"] = key(
        "generated", "generated: our probes; folder: the original files. [ours]"
    )
    probes_folder: LocalPath | None = key(None, "Folder of the 19 original files (probes: folder). [S]")

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        if len(set(self.demonstration_seeds)) < len(self.demonstration_seeds):
            raise ValueError("evaluation.demonstration_seeds names a seed twice, expected each once")
        return self


class Evaluation(Scoring):
    """The section: what is measured besides."""

    LATER: ClassVar[frozenset[str]] = Scoring.LATER | {"lm_eval", "lm_eval_folder", "lm_eval_limit", "int8"}

    lm_eval: list[str] = key(
        [],
        "Tasks of lm-evaluation-harness on which the models of the main tables are scored, too; needs its package. "
        "[ours]",
    )
    lm_eval_folder: LocalPath | None = key(
        None, "Folder of tasks of your own, YAML files as the harness has them. [ours]"
    )
    lm_eval_limit: Positive | None = key(None, "Examples of each task at most; all when empty. [ours]")
    int8: bool = key(
        False,
        "Measure size, perplexity and speed of the main tables' students with int8 weights and activations, too; needs "
        "torchao. [ours]",
    )

    @property
    def asked(self) -> frozenset[str]:
        """Tables of the report that this section asks for, by name."""
        return frozenset(name for name in ("lm_eval", "int8") if getattr(self, name))

    @model_validator(mode="after")
    def _has_tasks(self) -> "Evaluation":
        if not self.lm_eval and (self.lm_eval_folder or self.lm_eval_limit):
            given = "lm_eval_folder" if self.lm_eval_folder else "lm_eval_limit"
            raise ValueError(f"evaluation.{given} has no effect without evaluation.lm_eval, a list of tasks")
        if len(set(self.lm_eval)) < len(self.lm_eval):
            raise ValueError("evaluation.lm_eval names a task twice, expected each once")
        return self


class EvaluationOptions(Scoring):
    """What an evaluation job is told: the section, with the keys of windows and held-out slice that it depends on."""

    sequence_length: Positive = key(..., "Tokens of a window, and the most a prompt with its answer may have.")
    rows: Packing = key(..., "Packing: documents joined and cut, or one document per window.")
    validation_tokens: Positive = key(..., "Maximum number of tokens to measure perplexity on.")
    slice_per_mille: int = key(..., "Which (probe, input) pairs are queries.", ge=1, lt=1000)
    hold_out_words: bool = key(..., "Whether queries use only words that no training demonstration has.")
    prompt_space: bool = key(..., "Whether a space follows `Q:` and `A:`.")


class Speed(Strict):
    batch: Positive = key(8, "Sequences in a prefill. [ours]")
    length: Positive = key(256, "Tokens of a prefill sequence. [ours]")
    decode_tokens: Positive = key(32, "Tokens decoded one by one after a short prompt. [ours]")
    repeats: int = key(15, "Timed repeats; the dense and the compressed model take turns. [ours]", ge=3)


class Report(Strict):
    bootstrap: Positive = key(1000, "Resamples of the paired bootstrap over windows. [ours]")
    confidence: Between0And1 = key(0.95, "Coverage of the printed intervals. [ours]")


class Calibration(Strict):
    teachers: bool = key(
        False,
        "Compare the teachers' perplexities with Table 1 of the paper before any student trains. Only for its "
        "checkpoints, corpus and tokenizer; the report then shows Table 1 beside them. [ours]",
    )
    tolerance: Above0 = key(0.02, "Largest relative difference from the published value. [ours]")
    on_miss: Literal["warn", "stop"] = key(
        "warn", "If a teacher is further off: warn and continue, or stop before training. [ours]"
    )
