"""What a run can and cannot say about the paper's claims, as sentences for the page."""

from budgeted_lora.reporting.standing import Standing

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


Saying = tuple[str, list[str], list[str]]


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
