"""The scale file of a reader's own model, as `budgeted-lora compress` writes it: every line with its reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Literal

REQUEST = "# request: "  # the line of the file that says what it was written for

FILE = Template("""\
# yaml-language-server: $$schema=schema.json
# $what
# Written by `budgeted-lora compress`, and yours to edit. `snakemake main --config scale=$name` runs it, and the same
# command again goes on after an interruption. config/README.md has every key, docs/your-model.md a walk through it.
#
$request
scale: $name                # results go to results/$name, the report to reports/$name
device: auto                # a GPU if there is one
threads: {training: $threads, evaluation: $threads, timing: $threads}   # of each job; several jobs run side by side
sequence_length: $length    # tokens of a window, in training and for the perplexity; longer ones cost memory

corpus:
  source: files
  files: $files
  text_field: $text_field   # of .jsonl and .parquet files; a .txt file is one document
  characters: $characters   # stop reading here, since this is enough; null reads everything
  slice_per_mille: $held_out   # documents of a thousand that are held out, chosen by their digest
  train_tokens: $train_tokens   # of the training file; a longer run starts over
  validation_tokens: $validation_tokens   # held-out tokens that the perplexity is measured on
  prompt_space: true          # prompts of the in-context tasks are `Q: word`, as people write

teachers: $source           # a checkpoint in a folder, or on the Hub at a pinned commit
teacher_ladder:             # the sizes are those of its config.json, and are compared with it
  $teacher: {$place, $sizes}

student:
  layers: $layers           # of the model's $all_layers; all of them compresses without a cut
  importance_windows: $importance_windows   # where layers are cut: on so many windows is measured which change least

training:
  init: $init               # $init_why
  tokens: $tokens           # $tokens_why
  batch_windows: $batch_windows   # of one step
  micro_batch_windows: $micro_batch_windows   # of them at a time: more is faster on a GPU and takes memory
  precision: bfloat16       # where the device has it, else float32
  teacher_cache: $teacher_cache   # hidden: the model's states are computed once and kept; online: with each student
  learning_rate: {kd_full: 1.0e-4, budgeted_lora: 1.0e-4}   # the constant to vary first; 1e-3 spoilt SmolLM2
  betas: [0.9, 0.95]        # dense paths go within a fifth of the run: a longer memory would outlast much of it
  train_embeddings_head_norms: false   # they are pretrained, and stay; true trains them too
  log_every: $log_every
  checkpoint_every: $checkpoint_every   # steps between saved states, from which an interrupted training goes on

lora:                       # the low-rank path beside each projection, which is what remains where the dense path goes
  rank: $rank               # the size of a student with F = 0
  alpha: $alpha
  dropout: 0.0
  low_rank_init: $low_rank_init   # $low_rank_why
  statistics_windows: $statistics_windows   # training windows for this start and this order

budget:
  order: $order             # $order_why
compression:
  r_max: $r_max             # rank of the SVD of a dense path that is nearly whole
  rank_threshold: 0.0       # a gate below it would lose its rank; in long runs gates of ranks that work fall below 0.5
  rank_multiple: $rank_multiple   # what these ranks are rounded to; 8 or 16 suits some kernels and quantised weights

evaluation:
  queries: $queries         # of each in-context task
  demonstration_seeds: $seeds   # each query is asked once for each
  batch_windows: $scored_at_once
  icl_batch: $prompts_at_once
  context: $context         # most tokens of a prompt
speed: {batch: 1, length: $timed_length, decode_tokens: 16, repeats: 5}   # one sequence, as on a reader's own machine

# The students: one for each dense fraction F, the share of the projections' multiply-accumulates that stay dense.
# Yours to add to table2, the student with all of its paths at the same training: - {method: kd_full}
# $controls_why
tables:
  table2:
    - {method: budgeted_lora, budget: $budgets}
  table8:                   # the same students, shown by what is left of each
    - {method: budgeted_lora, budget: $budgets}
$controls""")

CONTROLS = Template("""\
  controls:                 # smaller dense students with the MACs of each F: fewer layers, narrower feed-forwards
    - {method: kd_full, macs_of_budget: $budgets, init: importance}   # the layers that change hidden states most
""")
WHY = {
    False: "`--controls` trains a smaller dense student of the same multiply-accumulates beside each.",
    True: "Beside each, what you would get otherwise: a smaller dense student of the same multiply-accumulates.",
}

RULES = {
    "recommended": {
        "low_rank_init": ("activation_svd", "each starts at the best approximation of its projection's outputs"),
        "order": ("gradient", "the first dense path to go is the one whose loss changes least per multiply-accumulate"),
    },
    "paper": {
        "low_rank_init": ("zero", "each starts at nothing, as in the paper"),
        "order": ("mac", "the first dense path to go is the one with the fewest multiply-accumulates, as in the paper"),
    },
}
Rule = Literal["recommended", "paper"]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on measuring, which takes time from training.

    Attributes:
        queries: per in-context task; `seeds` draw the demonstrations.
        windows: on which input statistics and the importance of layers are measured.
    """

    validation_tokens: int
    queries: int
    seeds: tuple[int, ...]
    windows: int


EFFORTS = (
    Effort(validation_tokens=1_000_000, queries=210, seeds=(0, 1, 2), windows=64),
    Effort(validation_tokens=200_000, queries=40, seeds=(0, 1, 2), windows=64),
    Effort(validation_tokens=65_536, queries=20, seeds=(0,), windows=32),
    Effort(validation_tokens=16_384, queries=8, seeds=(0,), windows=16),
    Effort(validation_tokens=8_192, queries=4, seeds=(0,), windows=8),
)  # the largest first


@dataclass(frozen=True, kw_only=True)
class YourScale:
    """What a scale of one's own model is made of.

    Attributes:
        request: what was asked for, by option; a scale is taken up again only for the same.
        place: the key of a teacher that says where it is, and its values: `folder`, or `hub` and `revision`.
        sizes: of the teacher, by key of `teacher_ladder`.
        characters: of text to read; None for all.
        limit: largest number of positions that the model takes.
        on_gpu: sizes of batches are those for a GPU.
        measured: whether `tokens` were chosen by time.
        controls: whether a smaller dense student is trained beside each.
    """

    name: str
    what: str
    request: Mapping[str, object]
    source: Literal["folder", "hub"]
    place: Mapping[str, str]
    sizes: Mapping[str, int]
    limit: int
    files: Sequence[str]
    text_field: str
    characters: int | None
    layers: int
    budgets: Sequence[float]
    rule: Rule
    rank: int
    rank_multiple: int
    tokens: int
    batch_windows: int
    effort: Effort
    threads: int
    on_gpu: bool
    measured: bool
    controls: bool = False

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return min(1024 if self.on_gpu else 256, self.limit)

    @property
    def micro_batch_windows(self) -> int:
        return min(8 if self.on_gpu else 1, self.batch_windows)

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch_windows * self.length)

    def text(self) -> str:
        """The file, with its remarks in one column."""
        return "".join(f"{_aligned(line)}\n" for line in self._lines().splitlines())

    def _lines(self) -> str:
        rule, cut = RULES[self.rule], self.layers < self.sizes["layers"]
        why = "layers that change hidden states most are kept" if cut else "all layers are kept, so nothing is chosen"
        return FILE.substitute(
            what=self.what,
            name=self.name,
            request=REQUEST + json.dumps(self.request),
            threads=self.threads,
            length=self.length,
            files=json.dumps(list(self.files), ensure_ascii=False),
            text_field=json.dumps(self.text_field, ensure_ascii=False),
            characters="null" if self.characters is None else self.characters,
            held_out=HELD_OUT,
            train_tokens=self.tokens,
            validation_tokens=self.effort.validation_tokens,
            source=self.source,
            teacher=self.name,
            place=_flow(self.place),
            sizes=_flow(self.sizes),
            layers=self.layers,
            all_layers=self.sizes["layers"],
            importance_windows=self.effort.windows,
            init="importance" if cut else "first",
            init_why=why,
            tokens=self.tokens,
            tokens_why=f"{self.steps} steps" + (", as many as fit in --hours by a measurement" * self.measured),
            batch_windows=self.batch_windows,
            micro_batch_windows=self.micro_batch_windows,
            teacher_cache="online" if self.on_gpu else "hidden",
            log_every=max(1, self.steps // 100),
            checkpoint_every=max(10, self.steps // 20),
            rank=self.rank,
            alpha=2 * self.rank,
            low_rank_init=rule["low_rank_init"][0],
            low_rank_why=rule["low_rank_init"][1],
            statistics_windows=self.effort.windows,
            order=rule["order"][0],
            order_why=rule["order"][1],
            r_max=max(1, self.rank // 2),
            rank_multiple=self.rank_multiple,
            queries=self.effort.queries,
            seeds=list(self.effort.seeds),
            scored_at_once=16 if self.on_gpu else 4,
            prompts_at_once=64 if self.on_gpu else 8,
            context=min(1024, self.limit),
            timed_length=min(256, self.length),
            budgets=list(self.budgets),
            controls_why=WHY[self.controls],
            controls=CONTROLS.substitute(budgets=list(self.budgets)) if self.controls else "",
        )


REMARKS = 28  # the column
HELD_OUT = 50  # documents of a thousand: a reader's corpus is smaller than the paper's


def _aligned(line: str) -> str:
    """A line with the remark behind its value in a column of its own."""
    value, mark, remark = line.partition("  # ")
    return f"{value.rstrip():<{REMARKS - 1}} # {remark.strip()}" if mark and not line.startswith("#") else line


def _flow(values: Mapping[str, str | int]) -> str:
    """The inside of a YAML flow mapping."""
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
