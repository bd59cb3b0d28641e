"""The configuration of a scale: typed, complete, unknown keys refused.

Each field's description says what it means and closes with its tag: [S] stated in the paper, [D] derived,
[U] unknown outside the authors (our default), [ours] a choice the paper has no word on.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from budgeted_lora.errors import BadInput

Method = Literal["kd_full", "kd_lora", "budgeted_lora"]
Init = Literal["first", "middle", "last", "mixed", "scratch"]
# Targets that are no table.
TARGETS = frozenset({"all", "main", "report", "ablations", "claims", "calibration"})
# Tables whose cells `snakemake main` trains and scores in full; cells of other tables are scored by perplexity only.
MAIN_CELLS = frozenset({"table2", "table8", "pareto"})
# Tables whose students the paper's claims speak of (config/claims.yaml).
CLAIM_TABLES = MAIN_CELLS - {"pareto"} | {f"table{n}" for n in range(3, 8)} | {"lora_construction"}

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """Refuses unknown keys; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Threads(Strict):
    training: Positive = Field(1, description="CPU threads of one training or caching process. [ours]")
    evaluation: Positive = Field(1, description="CPU threads of one evaluation job. [ours]")
    timing: Positive = Field(
        2, description="CPU threads of a timing job; give it all cores so nothing runs beside it. [ours]"
    )


class HubDataset(Strict):
    name: str = Field("EleutherAI/the_pile_deduplicated", description="Dataset on the Hub. [D]")
    revision: str | None = Field(
        None, description="Pinned commit of the dataset; required when `corpus.source` is hub. [ours]"
    )
    split: str = Field("train", description="Split to stream. [ours]")


class Shards(Strict):
    """A large corpus, read in many files: one job a file, each read once, none held in memory."""

    pattern: str | None = Field(
        None,
        description="Name of a shard's file in the Hub dataset, `{shard:05d}` for its number from 0 and `*` for what "
        "varies (source hub). [ours]",
    )
    train: Positive = Field(
        description="Shards that are trained on, the first ones; too few for `train_tokens` is an error. [ours]"
    )
    held_out: Positive | None = Field(
        None,
        description="Shards of which the held-out documents are scored on, the first ones; `train` when empty. [ours]",
    )

    @property
    def read(self) -> int:
        """Shards that are read at all."""
        return self.held_out or self.train

    @model_validator(mode="after")
    def _more_held_out(self) -> "Shards":
        if self.read < self.train:
            raise ValueError(f"corpus.shards.held_out {self.held_out} is less than corpus.shards.train {self.train}")
        try:
            name = (self.pattern or "{shard}").format(shard=7)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"corpus.shards.pattern {self.pattern!r} is no pattern ({error!r})") from None
        if "7" not in name or name == self.pattern:
            raise ValueError(f"corpus.shards.pattern {self.pattern!r} does not say where {{shard}} stands")
        return self


class Corpus(Strict):
    source: Literal["docstrings", "files", "hub"] = Field(
        "docstrings",
        description="Where documents come from: docstrings of installed packages, local files, a Hub dataset. [ours]",
    )
    packages: list[str] = Field(
        default_factory=list,
        description="Import names of the packages whose docstrings are read (source docstrings). [ours]",
    )
    files: list[str] = Field(
        default_factory=list, description="Globs of .txt, .jsonl, .jsonl.zst and .parquet files (source files). [ours]"
    )
    text_field: str = Field("text", description="Field or column that holds the text. [ours]")
    hub: HubDataset = Field(default_factory=HubDataset, description="The Hub dataset (source hub).")
    documents: Positive | None = Field(
        None,
        description="Take this many documents at most, not counting duplicates and short ones; all when empty. [ours]",
    )
    characters: Positive | None = Field(
        None, description="Take no more documents once this many characters are reached; all when empty. [ours]"
    )
    min_characters: int = Field(80, ge=0, description="Shorter documents are left out. [ours]")
    slice_per_mille: int = Field(
        2, ge=1, lt=1000, description="Documents with MD5 mod 1000 below this are held out; 2 is the paper's 0.2 %. [S]"
    )
    train_tokens: Positive = Field(
        2_550_000_000, description="Tokens of the training file; a longer run reads it again. [D]"
    )
    validation_tokens: Positive = Field(
        10_000_000, description="Tokens of the slice that the perplexity is measured on. [S]"
    )
    function_share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of training tokens that are function-style demonstration documents. [ours]",
    )
    hold_out_words: bool = Field(
        False,
        description="Split the words too: those of an evaluation query then stand in no function document. [ours]",
    )
    prompt_space: bool = Field(
        False,
        description="A space after `Q:` and `A:`, in function documents and in prompts, as Function Vectors has it; "
        "the paper has none. [S]",
    )
    overlap_ngram: Positive = Field(13, description="Words in the n-grams of the overlap check. [ours]")
    overlap_share: Fraction = Field(
        0.5,
        description="Held-out documents of whose n-grams more than this share is in training text are left out. [ours]",
    )
    shards: Shards | None = Field(
        None,
        description="Read the files one job each, for a corpus that no memory holds; in one piece when empty. [ours]",
    )

    @model_serializer(mode="wrap")
    def _without_empty_shards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before there were shards, where there are none: what was computed then is what is asked for today."""
        values = handler(self)
        if values.get("shards", 0) is None:
            del values["shards"]
        return values

    @model_validator(mode="after")
    def _fits_shards(self) -> "Corpus":
        if self.shards is None:
            return self
        if self.source == "docstrings":
            raise ValueError("corpus.shards needs corpus.source files or hub")
        if (self.shards.pattern is not None) != (self.source == "hub"):
            raise ValueError("corpus.shards.pattern must name the files of a Hub dataset, and of nothing else")
        whole = {"documents": None, "characters": None, "function_share": 0.0, "overlap_share": 1.0}
        for name, only in whole.items():
            if getattr(self, name) != only:
                value = "empty" if only is None else f"{only:g}"
                raise ValueError(f"corpus.{name} must be {value} with corpus.shards, which say how much is read")
        return self


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
    function_share: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="Share of function documents in what teachers made here read, and their tokenizer is trained on; "
        "corpus.function_share when empty. [ours]",
    )
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
    seed: int = Field(0, ge=0, description="Seed of weights and window order. [ours]")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "Pretraining":
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError(
                f"pretraining.batch_windows {self.batch_windows} is not a multiple of micro_batch_windows "
                f"{self.micro_batch_windows}"
            )
        return self


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
    seed: int = Field(0, ge=0, description="Seed of adapters, dropout and window order. [ours]")
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


class Evaluation(Strict):
    batch_windows: Positive = Field(16, description="Windows in one forward pass of the perplexity. [ours]")
    shots: Positive = Field(10, description="Demonstrations in a prompt. [S]")
    demonstration_seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds of the demonstrations. [U]")
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
    seed: int | list[int] | None = Field(None, description="Instead of `training.seed`. [ours]")
    compression: str | None = Field(
        None, description="Name in `sweeps`: the trained student is compressed and scored with each setting. [ours]"
    )


class Report(Strict):
    bootstrap: Positive = Field(1000, description="Resamples of the paired bootstrap over windows. [ours]")
    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of the printed intervals. [ours]")


class Calibration(Strict):
    teachers: bool = Field(
        False,
        description="Judge the teachers' perplexities by Table 1 of the paper before any student trains: only with its "
        "checkpoints, corpus and tokenizer. [ours]",
    )
    tolerance: float = Field(0.02, gt=0, description="Largest relative difference from the published value. [ours]")
    on_miss: Literal["warn", "stop"] = Field(
        "warn", description="Where a teacher is further off: say so and go on, or train nothing. [ours]"
    )


class Config(Strict):
    """A whole scale."""

    scale: str = Field(description="Name of the scale; results lie in `results/<scale>/`. [ours]")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes a GPU where there is one; cuda fails without. [ours]"
    )
    fit: Literal["refuse", "warn"] = Field(
        "refuse",
        description="On a machine that is too small by the plan (`budgeted-lora doctor`) a run ends before its first "
        "job, or says what is short and starts. [ours]",
    )
    gpus_per_run: Positive = Field(
        1,
        description="GPUs that train one student together, each with its part of every step (processes on a CPU). "
        "[ours]",
    )
    threads: Threads = Field(default_factory=Threads, description="CPU threads; part of what makes bytes repeat.")
    sequence_length: Positive = Field(1024, description="Tokens of a window. [S]")
    rows: Literal["packed", "document"] = Field(
        "packed", description="Joined and cut, or one document a row, padded. [U]"
    )
    corpus: Corpus = Field(default_factory=Corpus)
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    teachers: Literal["shipped", "pretrain", "folder", "hub"] = Field(
        "shipped", description="Where teachers come from. [ours]"
    )
    teacher_ladder: dict[str, Teacher] = Field(
        min_length=1, description="Teachers by the name they stand for, smallest first. [S]"
    )
    calibration: Calibration = Field(default_factory=Calibration)
    pretraining: Pretraining = Field(default_factory=Pretraining)
    student: Student = Field(default_factory=Student)
    training: Training = Field(default_factory=Training)
    lora: Lora = Field(default_factory=Lora)
    budget: Budget = Field(default_factory=Budget)
    compression: Compression = Field(default_factory=Compression)
    sweeps: dict[str, Sweep] = Field(
        default_factory=dict, description="Compression settings that a row can ask for by name, see above. [ours]"
    )
    evaluation: Evaluation = Field(default_factory=Evaluation)
    speed: Speed = Field(default_factory=Speed)
    report: Report = Field(default_factory=Report)
    tables: dict[str, list[Row]] = Field(default_factory=dict, description="Rows of each table, see above. [S]")

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        first = next(iter(self.teacher_ladder.values()))
        if self.compression.undistilled:
            raise ValueError(
                "compression.undistilled is true: no student would be scored as it was trained; expected it in a list "
                "of sweeps"
            )
        if self.student.layers > first.layers:
            raise ValueError(
                f"student.layers {self.student.layers} exceeds the {first.layers} layers of the first teacher"
            )
        if self.budget.schedule not in self.budget.schedules:
            raise ValueError(f"budget.schedule {self.budget.schedule!r} is not among {sorted(self.budget.schedules)}")
        for name, (start, end) in self.budget.schedules.items():
            if start > end:
                raise ValueError(f"budget.schedules.{name}: start {start} is after end {end}")
        if self.training.batch_windows % self.training.micro_batch_windows:
            raise ValueError(
                f"training.batch_windows {self.training.batch_windows} is not a multiple of micro_batch_windows "
                f"{self.training.micro_batch_windows}"
            )
        for name in self.tables:
            if name in TARGETS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"tables.{name}: a table is a target, its name is made of a-z, 0-9 and _ and none of "
                    f"{', '.join(sorted(TARGETS))}"
                )
        if self.training.batch_windows % self.gpus_per_run:
            raise ValueError(
                f"training.batch_windows {self.training.batch_windows} is not a multiple of gpus_per_run "
                f"{self.gpus_per_run}"
            )
        if self.evaluation.probes == "folder" and not self.evaluation.probes_folder:
            raise ValueError("evaluation.probes_folder must name the folder when evaluation.probes is folder")
        if self.corpus.source == "docstrings" and not self.corpus.packages:
            raise ValueError("corpus.packages must name at least one package when corpus.source is docstrings")
        if self.corpus.source == "files" and not self.corpus.files:
            raise ValueError("corpus.files must name at least one file when corpus.source is files")
        if self.calibration.teachers and self.teachers not in ("hub", "folder"):
            raise ValueError(f"calibration.teachers needs the paper's checkpoints, but teachers is {self.teachers}")
        if self.corpus.shards is not None and self.teachers == "pretrain":
            raise ValueError("corpus.shards needs teachers that have a tokenizer; teachers: pretrain makes one")
        for name, teacher in self.teacher_ladder.items():
            if self.teachers == "folder" and not teacher.folder:
                raise ValueError(f"teacher_ladder.{name}.folder must name a checkpoint folder when teachers is folder")
            if self.teachers == "hub" and not teacher.hub:
                raise ValueError(f"teacher_ladder.{name}.hub must name a checkpoint when teachers is hub")
            if self.teachers == "pretrain" and not teacher.tokens:
                raise ValueError(
                    f"teacher_ladder.{name}.tokens must say how long to pretrain when teachers is pretrain"
                )
        return self

    @property
    def first_teacher(self) -> str:
        """Name of the smallest teacher, from which students are cut."""
        return next(iter(self.teacher_ladder))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge key by key, anything else replaces; null removes the key."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in {"tables", "teacher_ladder"}:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def scales_in(folder: Path) -> list[str]:
    """Names of the scale files of a folder: those with a `scale:` of their own, which every one of them has."""
    files = sorted(folder.glob("*.yaml"))
    return [path.stem for path in files if re.search(r"^scale:", path.read_text(encoding="utf-8"), re.MULTILINE)]


def read_scale(path: Path | str) -> dict[str, Any]:
    """A scale file with what it `extends:` merged under it.

    Raises:
        BadInput: a file is missing or not a YAML mapping, or scales extend each other in a ring.
    """
    path, chain, layers = Path(path), [], []
    while True:
        if path in chain:
            raise BadInput(f"{path}: extends itself by way of {', '.join(p.name for p in chain)}")
        chain.append(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(scales_in(path.parent)) or "none"
            raise BadInput(f"{path}: no such scale file; expected one of: {known}") from None
        except yaml.YAMLError as error:
            raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(values, dict):
            raise BadInput(f"{path}: expected a mapping of settings, found {type(values).__name__}")
        parent = values.pop("extends", None)
        if layers:
            values.pop("scale", None)  # a name is not inherited: two scales would share one folder of results
        layers.append(values)
        if parent is None:
            break
        path = path.parent / f"{parent}.yaml"
    merged: dict[str, Any] = {}
    for values in reversed(layers):
        merged = merge(merged, values)
    return merged


def load_config(path: Path | str, overrides: dict[str, Any] | None = None) -> Config:
    """The validated configuration of a scale file.

    Args:
        overrides: values laid on top, as given by `snakemake --config`.

    Raises:
        BadInput: one line naming the file, the key, what was found and what was expected.
    """
    values = merge(read_scale(path), overrides or {})
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{path}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """A pydantic error as one line: key, value found, what was expected."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}")
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        elif item["type"] == "value_error":
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return "; ".join(dict.fromkeys(lines))
