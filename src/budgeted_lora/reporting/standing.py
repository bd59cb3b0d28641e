"""What a scale shares with the paper, and so which of its numbers may stand beside the paper's, and what it can say."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from budgeted_lora.config.scale import MAIN_CELLS
from budgeted_lora.files import read_json

PAPER_TOKENS = 2.55e9
# With the paper's corpus, vocabulary and checkpoints; a scale of another name says so by judging them by Table 1.
PAPER_MODELS = frozenset({"paper", "single-gpu"})

OWN_RULE = ("low_rank_init", "order", "rank_step")  # empty in a recipe of the paper's


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
