"""Every table and figure of the report: the cells it shows, the files it reads, who makes it."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from budgeted_lora.reporting.figures.beyond import BEYOND_WHY, beyond_figure, beyond_why
from budgeted_lora.reporting.figures.main import figure2, gates, loss_curves, retention
from budgeted_lora.reporting.figures.pareto import pareto
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.tables.beyond import BEYOND


@dataclass(frozen=True)
class Plot:
    """A figure of the report: how it is drawn, and its caption."""

    draw: Callable[[Results], Figure]
    title: str
    caption: str


BARS = (
    "Thin bars: standard error over validation text; wide pale bars: range over training seeds, if there are several."
)


CONTROLS = (
    "Brown, where they were run: what a reader would do instead at the MACs of a budget, a smaller KD Full student or "
    "a plain truncated SVD of the full one without retraining."
)


FIGURES: dict[str, Plot] = {
    "figure2": Plot(
        figure2,
        "Figure 2. In-context learning by teacher and method",
        "Macro mean over 19 probes, 10-shot, exact match. The band spans the runs: demonstration seeds, and training "
        "seeds where there are several. Dashed: the smallest teacher itself; dotted: chance, "
        "what the best constant answer or a random word of the query would score.",
    ),
    "pareto_train_compute": Plot(
        lambda results: pareto(results, "pareto_train_compute"),
        "Perplexity against train compute",
        "Train compute is counted in multiply-accumulates relative to KD Full. Grey steps: what no other student beats "
        f"on both. {BARS} {CONTROLS}",
    ),
    "pareto_mac_speedup": Plot(
        lambda results: pareto(results, "pareto_mac_speedup"),
        "Perplexity against MAC speedup",
        "The paper's speedup is this ratio of multiply-accumulates in the projections, dense over compressed. It is "
        f"not a timing. {BARS} {CONTROLS}",
    ),
    "pareto_measured_speedup": Plot(
        lambda results: pareto(results, "pareto_measured_speedup"),
        "Perplexity against measured speedup",
        "The same students, with the time the projections really took on this machine, dense over compressed, timed in "
        f"turn. {BARS} Controls are not timed.",
    ),
    "retention": Plot(
        retention,
        "What is kept of every dense path",
        "Dense coefficient d of every projection over training, for each budget (smallest teacher, first seed). "
        "Bright: kept; dark: gone, its matmul skipped.",
    ),
    "gates": Plot(
        gates,
        "Trained gates",
        "Gates of all ranks of all modules after training. They start at sigmoid(2) = 0.88; a rank is cut only if "
        "its gate ends at or below the threshold.",
    ),
    "loss_curves": Plot(
        loss_curves,
        "Training loss",
        "Distillation loss, lightly smoothed; first steps cut off. Grey: the stretch in which the dense paths are "
        "lowered.",
    ),
}


# Those of rows that only some configurations list.
OWN_FIGURES: dict[str, Plot] = {
    BEYOND: Plot(
        beyond_figure,
        "Beyond the paper: perplexity against MAC speedup",
        "A line a rule, from large budgets to small; wide strokes span the seeds. Level lines: KD Full and KD LoRA. "
        "Grey crosses: the untrained student cut by truncated SVD, without distillation.",
    ),
    BEYOND_WHY: Plot(
        beyond_why,
        "Beyond the paper: why",
        "Above: training loss of every rule at one budget, first seed. Middle: what the removals so far cost the "
        "untrained student one by one, summed, with the SVD of outputs in their place. Below, of that student: the "
        "share of each projection's output energy outside rank r, with marks where the dense path stays to the end; "
        "and how the loss rises when that path alone goes, with nothing in its place and with the SVD of outputs.",
    ),
}


def figures_of(results: Results) -> dict[str, Plot]:
    """The figures that the cells of a folder allow, main ones first."""
    return FIGURES | {name: plot for name, plot in OWN_FIGURES.items() if len(results.listed(BEYOND))}
