"""What the benchmarks run on: sizes of student and teacher, tokens of one step, and recipes for them."""

from dataclasses import dataclass, replace
from typing import Any

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.evaluation.speed import SpeedShape
from budgeted_lora.method.cost import ModelShape, dense_macs, parameters
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import structure


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A student of `layers` layers, cut from a teacher of `teacher_layers` and the same widths.

    Attributes:
        windows, length: one training step has `windows` windows of `length` tokens, in one micro-batch.
        r_max: SVD rank of a retention of 1, for the structures of budgets.
    """

    name: str
    layers: int
    teacher_layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab_size: int
    rank: int
    r_max: int
    windows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.windows * self.length

    @property
    def student(self) -> ModelShape:
        return ModelShape(
            layers=self.layers, hidden=self.hidden, kv=self.hidden // self.heads * self.kv_heads, ffn=self.ffn
        )

    @property
    def teacher(self) -> ModelShape:
        return replace(self.student, layers=self.teacher_layers)

    @property
    def timed(self) -> SpeedShape:
        return SpeedShape(
            shape=self.student, heads=self.heads, kv_heads=self.kv_heads, vocab_size=self.vocab_size, rank=self.rank
        )

    def modules(self, *, budget: float) -> list[dict[str, Any]]:
        """One record per projection of the student that is compressed to a budget."""
        rule = BudgetRule(budget=budget, start=0.1, end=0.3)
        planned = structure(self.student, rule, rank=self.rank, svd_threshold=0.5, r_max=self.r_max)
        return planned.as_json()["modules"]

    def mac_ratio(self, *, budget: float) -> float:
        """MACs of the dense projections over those of the compressed ones."""
        return dense_macs(self.student) / sum(module["macs"] for module in self.modules(budget=budget))

    def training_bytes(self) -> int:
        """Memory of one KD Full run with its teacher: weights, gradients, two moments, and 2 GB of activations."""
        trained = parameters(self.student, vocab_size=self.vocab_size)
        teacher = parameters(self.teacher, vocab_size=self.vocab_size)
        return 16 * trained + 4 * teacher + 2 * 10**9


MINI = Shape(
    name="mini", layers=6, teacher_layers=12, hidden=96, ffn=384, heads=4, kv_heads=1, vocab_size=2048, rank=16,
    r_max=8, windows=8, length=384,
)  # fmt: skip
RUN = replace(MINI, name="run", windows=4, length=256)  # the step of the scale mini
PAPER = Shape(
    name="paper", layers=6, teacher_layers=12, hidden=768, ffn=3072, heads=12, kv_heads=3, vocab_size=32000, rank=128,
    r_max=64, windows=2, length=512,
)  # fmt: skip
BILLION = Shape(
    name="1B", layers=30, teacher_layers=30, hidden=1536, ffn=6144, heads=24, kv_heads=6, vocab_size=32000, rank=128,
    r_max=64, windows=2, length=512,
)  # fmt: skip
TINY = Shape(
    name="tiny", layers=2, teacher_layers=3, hidden=16, ffn=48, heads=2, kv_heads=1, vocab_size=61, rank=4, r_max=4,
    windows=2, length=16,
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (MINI, RUN, PAPER, BILLION, TINY)}


def shape_named(name: str, *, quick: bool) -> Shape:
    """A shape by name; a quick one has the same widths and fewer tokens per step."""
    shape = SHAPES[name]
    if not quick or name in ("tiny", "run"):
        return shape
    return replace(shape, windows=2, length=128) if name == "mini" else replace(shape, windows=1, length=128)


METHODS: dict[str, dict[str, Any]] = {
    "kd_full": {"method": "kd_full"},
    "kd_lora": {"method": "kd_lora"},
    "f0.4": {"method": "budgeted_lora", "budget": 0.4},
    "f0": {"method": "budgeted_lora", "budget": 0.0},
}
AFTER_SCHEDULE = {"schedule_start": 0.0, "schedule_end": 0.0, "smoothing": 0.0}  # at the budget from the first step


def recipe(shape: Shape, method: str, *, steps: int, precision: str = "float32", **changed: Any) -> Recipe:
    """The recipe of `steps` steps: AdamW with a cosine from 1e-4, no warm-up, no dropout, frozen head in LoRA arms."""
    values: dict[str, Any] = {
        **METHODS[method],
        "teacher": "teacher",
        "init": "mixed",
        "student_layers": shape.layers,
        "temperature": 3.0,
        "kd_weight": 0.8,
        "train_embeddings_head_norms": method == "kd_full",
        "steps": steps,
        "batch_windows": shape.windows,
        "micro_batch_windows": shape.windows,
        "sequence_length": shape.length,
        "rows": "packed",
        "learning_rate": 1e-4,
        "betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "clip": 1.0,
        "warmup_fraction": 0.0,
        "warmup_cap": 1,
        "precision": precision,
        "seed": 0,
    }
    if method != "kd_full":
        values |= {"rank": shape.rank, "alpha": 2.0 * shape.rank}
    if values["method"] == "budgeted_lora":
        values |= {
            "schedule_start": 0.1,
            "schedule_end": 0.3,
            "controller": "greedy",
            "smoothing": 0.9,
            "drop_threshold": 0.05,
            "gate_logit": 2.0,
            "gate_lr_multiplier": 1.0,
        }
    return Recipe.model_validate(values | changed)
