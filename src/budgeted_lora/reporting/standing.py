"""What a scale shares with the paper, by its configuration, and so what may stand beside the printed numbers."""

from collections.abc import Iterable
from math import isclose, log
from typing import Literal

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
        rank_cuts: whether a gate can cost its rank: the scale cuts none, a main run is too short for it, or it can.
        shots: demonstrations in a prompt.
        brought: whether its teachers are a user's own models.
    """

    models: bool = False
    length: bool = False
    proportions: bool = True
    rule: bool = True
    taught: bool = True
    tokens: float = 0.0
    width: float = 0.125
    rank_cuts: Literal["none", "out of reach", "possible"] = "possible"
    shots: int = 10
    brought: bool = False

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
    models = config.calibration.teachers or (from_hub and named)
    return Standing(
        models=models,
        length=config.training.tokens >= 0.99 * PAPER_TOKENS,
        proportions=paper_proportions(config),
        rule=not any(own_rule),
        taught=taught(config),
        tokens=config.training.tokens,
        width=config.teacher_ladder[config.first_teacher].hidden / PAPER_HIDDEN,
        rank_cuts=rank_cuts(config),
        shots=config.evaluation.shots,
        brought=config.teachers in ("folder", "hub") and not models,
    )


def rank_cuts(config: Config) -> Literal["none", "out of reach", "possible"]:
    """Whether gates can fall below the threshold at which their rank is cut.

    A gate's logit moves at most about its rate in a step, which is half the peak on average.
    """
    threshold, training = config.compression.rank_threshold, config.training
    if threshold == 0.0:
        return "none"
    if threshold == 1.0:
        return "possible"
    rate = training.learning_rate.budgeted_lora * config.budget.gate_lr_multiplier
    moves = training.tokens // (training.batch_windows * config.sequence_length) * rate / 2
    return "possible" if moves >= config.budget.gate_logit - log(threshold / (1 - threshold)) else "out of reach"


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

    return all(not one.legs or sum(one.legs) >= weights(one) for one in config.teacher_ladder.values())
