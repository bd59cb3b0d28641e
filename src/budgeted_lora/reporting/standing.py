"""What a scale shares with the paper, and so which of its numbers may stand beside the paper's, and what it can say."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from budgeted_lora.config import MAIN_CELLS
from budgeted_lora.files import read_json

PAPER_TOKENS = 2.55e9
# With the paper's corpus, vocabulary and checkpoints; a scale of another name says so by judging them by Table 1.
PAPER_MODELS = frozenset({"paper", "single-gpu"})
COUNTS = (
    "Structures and counts: which dense paths are kept, approximated or dropped, train compute, MAC speedups and "
    "parameter reductions depend only on proportions, which are the paper's; they can be held against the printed "
    "digits."
)
OTHER_COUNTS = (
    "Structures and counts as printed: the student has not the paper's proportions (6 layers, 768 : 192 : 3072, "
    "r = 128)."
)
ORDERINGS = (
    "Orderings at this size: whether KD Full, KD LoRA and each budget stand in the paper's order under one teacher, "
    "within the intervals below."
)
TIME = "What compression buys in time on this machine, which the paper does not report."
ABSOLUTE = (
    "Absolute perplexities: corpus, vocabulary and model sizes differ. The paper's stand in a table of their own."
)
GAPS = "Whether the gaps between methods at 0.13B to 1B parameters and 2.55B tokens are as printed."
RANK_CUTS = "Rank cuts: in so few steps no gate can cross its threshold, so the average rank stays at r."
SEEDS = (
    "The spread over training seeds, unless several were run; intervals here speak of the choice of validation text."
)
UNSTATED = "Anything that hangs on a constant the paper does not state."

OTHER_RULE = (
    "The paper's own rule: the students of the main tables start from other low-rank paths, lose their dense paths in "
    "another order or spread their ranks otherwise, so counts and orderings are of that rule."
)
OWN_RULE = ("low_rank_init", "order", "rank_step")  # empty in a recipe of the paper's

Saying = tuple[str, list[str], list[str]]


@dataclass(frozen=True)
class Standing:
    """What a scale shares with the paper.

    Attributes:
        models: corpus, vocabulary and teachers, so that perplexities of teachers may be set beside Table 1.
        length: training tokens of a main run.
        proportions: of the student, on which all counts depend; None where its shape is not known.
        tokens: of the scale's longest run.
        rule: by which the students of the main tables start and shrink.
    """

    models: bool
    length: bool
    proportions: bool | None
    tokens: float
    rule: bool = True

    @property
    def students(self) -> bool:
        """Whether absolute perplexities of students may be set beside the paper's."""
        return self.models and self.length

    @property
    def apart(self) -> str:
        """What a difference from the paper may come from, besides the method."""
        if self.students:
            return "the values it takes for what the paper leaves open"
        return "a shorter run" if self.models else "other models, another corpus, a shorter run"

    @property
    def print_differs(self) -> str:
        """How the conditions of the paper's perplexities differ from this scale's; empty where they do not."""
        if self.students:
            return ""
        return "students of 2.55 B training tokens" if self.models else "other corpus, other vocabulary"

    @property
    def print_note(self) -> str:
        """How a sentence on the paper's perplexities ends."""
        if not self.models:
            return "; not to be compared with a perplexity of another corpus or vocabulary."
        longer = "" if self.length else "; those of students after 2.55 B training tokens, more than any read here"
        return f", as here{longer}."


def standing_of(root: Path, cells: pd.DataFrame) -> Standing:
    """What the scale of a results folder shares with the paper.

    Args:
        root: results/<scale>. cells: its cells.csv, or the lines that one table shows.
    """
    scale, main = root.resolve().name, main_cells(cells)
    tokens = float(cells["tokens"].max()) if len(cells) else 0.0
    models = scale in PAPER_MODELS or (root / "calibration.json").is_file()
    # An ablation reads a part of the tokens; its own lines do not say what a main run reads.
    length = tokens >= 0.99 * PAPER_TOKENS or (scale == "paper" and main.empty)
    return Standing(models, length, proportions(root, cells), tokens, rule=papers_rule(main))


def papers_rule(cells: pd.DataFrame) -> bool:
    """Whether all students start, shrink and spread their ranks as the paper's do; see `Recipe`."""
    said = [value for name in OWN_RULE if name in cells for value in cells[name]]
    return all(pd.isna(value) or value == "" for value in said)


def main_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Those that a main table lists."""
    return cells[[bool(MAIN_CELLS & set(tables.split())) for tables in cells["tables"]]]


def proportions(root: Path, cells: pd.DataFrame) -> bool | None:
    """Whether the scale's student has the paper's shape but for its size; None without a student to see."""
    shapes = [root / "students" / init / "model" / "config.json" for init in dict.fromkeys(cells["init"])]
    shape = next((read_json(path) for path in shapes if path.is_file()), None)
    if shape is None:
        return None
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"] / shape["num_key_value_heads"]
    ranks = main_cells(cells)["rank"].dropna()  # other tables vary it
    rank = hidden / ranks.max() if len(ranks) else 6.0
    return (shape["num_hidden_layers"], heads, shape["intermediate_size"] / hidden, rank) == (6, 4.0, 4.0, 6.0)


def can_say(scale: str, standing: Standing) -> Saying:
    """What a run of a scale is, what it can say about the paper and what it cannot."""
    if scale == "smoke":
        return (
            "Nothing about the paper: this scale only shows that every stage runs. Its models are trained for seconds.",
            [],
            ["Any of its perplexities, accuracies or orderings."],
        )
    if scale == "gpu-hour":
        return gpu_hour(standing)
    return of_paper_models(standing) if standing.models else of_other_models(scale, standing)


def counts(standing: Standing) -> tuple[list[str], list[str]]:
    """What can and cannot be said of counts."""
    if not standing.rule:
        return [], [OTHER_RULE]
    if standing.proportions is None:
        return [], []
    return ([COUNTS], []) if standing.proportions else ([], [OTHER_COUNTS])


def gpu_hour(standing: Standing) -> Saying:
    can, cannot = counts(standing)
    return (
        "The paper's student at its own width on the documentation corpus, in about half an hour of one GPU: it shows "
        "what needs a real GPU, and no quality.",
        [*can, "Speed and memory of training at this width, and what each compressed structure gains in time here."],
        [
            *cannot,
            "Perplexities, in-context scores and every ordering of methods: the teachers read a few million tokens and "
            "know little. No trend that the paper claims is judged here.",
            RANK_CUTS,
        ],
    )


def of_paper_models(standing: Standing) -> Saying:
    """Of a scale with the paper's corpus, vocabulary and checkpoints."""
    can, cannot = counts(standing)
    if standing.length:
        return (
            "This scale is the paper's own set-up as far as it is stated; the constants it leaves open are listed "
            "below with our values.",
            ["Absolute perplexities may be compared once the teachers' come out as in Table 1.", *can],
            [*cannot, UNSTATED],
        )
    read = f"{standing.tokens / 1e6:,.0f} M training tokens"
    return (
        f"The paper's corpus, vocabulary and checkpoints; its students read {read} here, 2.55 B there.",
        [
            "The teachers: their perplexities may be held against Table 1, within the error of a smaller validation "
            "set. Only if they come out as printed, a student's can be judged by them.",
            *can,
            ORDERINGS,
            TIME,
        ],
        [
            *cannot,
            f"Absolute perplexities and in-context scores of students, and the gaps between methods: after {read} they "
            "are not those of the paper's run.",
            "Rank cuts and the average rank, which depend on the length of training.",
            SEEDS,
            UNSTATED,
        ],
    )


def of_other_models(scale: str, standing: Standing) -> Saying:
    """Of a scale with teachers and a corpus of its own."""
    can, cannot = counts(standing)
    what = "A mini run is" if scale == "mini" else "This is"
    size = " at one eighth of the width," if scale == "mini" else ""
    functions = (
        "In-context learning as such: the teachers learnt it from function documents mixed into the corpus; read every "
        "score beside chance."
    )
    return (
        f"{what} the paper's experiment{size} with small teachers and another corpus.",
        [*can, ORDERINGS, TIME],
        [*cannot, ABSOLUTE, GAPS, functions, RANK_CUTS, SEEDS],
    )
