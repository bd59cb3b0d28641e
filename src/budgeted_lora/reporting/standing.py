"""What a scale shares with the paper, by its configuration, and so what may stand beside the printed numbers."""

from collections.abc import Iterable
from math import isclose

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Teacher
from budgeted_lora.config.types import Strict

PAPER_TOKENS = 2.55e9
PAPER_HIDDEN = 768
PAPER_RANK = 128
PAPER_CORPUS = "EleutherAI/the_pile_deduplicated"
PAPER_TEACHERS = {f"MohammedSabry/biinduct-{size}-baseline" for size in ("125m", "500m", "1b")}


class Standing(Strict):
    """What a scale shares with the paper.

    Attributes:
        models: corpus, vocabulary and teachers, so that perplexities of teachers may be set beside Table 1.
        length: training tokens of a main run.
        proportions: of the student, on which all counts depend.
        rule: by which the students of the main tables start and shrink.
        taught: whether its teachers read enough text for trends between methods to mean something.
        tokens: training tokens of a main run.
        width: of the student, as a share of the paper's.
    """

    models: bool = False
    length: bool = False
    proportions: bool = True
    rule: bool = True
    taught: bool = True
    tokens: float = 0.0
    width: float = 0.125

    @property
    def students(self) -> bool:
        """Whether absolute perplexities of students may be set beside the paper's."""
        return self.models and self.length and self.proportions and self.rule

    @property
    def setup(self) -> str:
        """What is the paper's: `whole` if models and length are, `models`, or neither: `own`."""
        if self.models:
            return "whole" if self.length else "models"
        return "own"


def standing_of(config: Config, recipes: Iterable[Recipe]) -> Standing:
    """What a scale shares with the paper.

    Args:
        recipes: of the cells of its main tables.
    """
    own_keys = ("low_rank_init", "order", "rank_step", "whole", "train_dense")
    own_rule = [getattr(recipe, name) is not None for recipe in recipes for name in own_keys]
    from_hub = config.corpus.source == "hub" and config.corpus.hub.name == PAPER_CORPUS and config.teachers == "hub"
    named = {teacher.hub for teacher in config.teacher_ladder.values()} <= PAPER_TEACHERS
    return Standing(
        models=config.calibration.teachers or (from_hub and named),
        length=config.training.tokens >= 0.99 * PAPER_TOKENS,
        proportions=paper_proportions(config),
        rule=not any(own_rule),
        taught=taught(config),
        tokens=config.training.tokens,
        width=config.teacher_ladder[config.first_teacher].hidden / PAPER_HIDDEN,
    )


def paper_proportions(config: Config) -> bool:
    """Whether the student has the paper's shape but for its size: 6 layers, 768 : 768 : 192 : 3072, r = 128."""
    first = config.teacher_ladder[config.first_teacher]
    ours = (
        config.student.layers,
        first.hidden / first.anatomy.attention,
        first.hidden / first.anatomy.kv,
        first.ffn / first.hidden,
        first.hidden / config.lora.rank,
    )
    return all(isclose(one, paper) for one, paper in zip(ours, (6, 1, 4, 4, PAPER_HIDDEN / PAPER_RANK), strict=True))


def taught(config: Config) -> bool:
    """Whether every teacher that was made for the scale read at least one token per weight of its projections.

    Teachers that come from elsewhere are taken to know enough.
    """
    if config.teachers in ("hub", "folder"):
        return True

    def weights(teacher: Teacher) -> int:
        return teacher.layers * sum(d_in * d_out for d_in, d_out in teacher.anatomy.sizes().values())

    return all(one.tokens is None or one.tokens >= weights(one) for one in config.teacher_ladder.values())
