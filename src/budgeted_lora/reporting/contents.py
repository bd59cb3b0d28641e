"""Every table and figure of the report, each once: its cells, the results it reads, who makes it, its target.

The workflow takes a table's inputs from here, and the stage that makes it takes its maker. To add one, add a line here
and write its maker. Nothing here imports pandas, matplotlib or torch; makers are named as text and imported when used.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from budgeted_lora.config.scale import MAIN_CELLS

Reads = Literal["perplexity", "icl", "train", "compression", "speed", "curves", "references", "statistics"]
Target = Literal["main", "ablations", "own"]

MAIN = ("table2", "table8", "pareto")  # configured tables whose cells the main tables and figures show
CONTROLS = "controls"  # configured table of what a reader would do instead; the Pareto plots show it too
BEYOND = "beyond"  # configured table of other rules than the paper's
ICL_TABLES = MAIN_CELLS | {BEYOND}  # configured tables whose students are scored in context
PARETO = ("pareto_train_compute", "pareto_mac_speedup", "pareto_measured_speedup")


@dataclass(frozen=True)
class Shown:
    """One table or figure.

    Attributes:
        name: of its files, and of its target.
        maker: dotted name of its function below `reporting`.
        cells: configured tables whose cells it shows, as far as the configuration has them.
        reads: kinds of result files that it reads of these cells; `workflow.report` turns them into paths.
        target: `main` and `ablations` make all of theirs; `own` is made by its own name alone.
        optional: it is made only if the configuration has the first table of `cells`.
        otherwise: the configured table that takes the place of `cells` if the configuration has none of them.
        title: of a figure. caption: of a figure.
    """

    name: str
    maker: str
    cells: tuple[str, ...]
    reads: tuple[Reads, ...] = ("perplexity",)
    target: Target = "main"
    optional: bool = False
    otherwise: str = ""
    title: str = ""
    caption: str = ""

    @property
    def module(self) -> str:
        """Dotted name of the maker's module in this package."""
        return f"reporting.{self.maker.rpartition('.')[0]}"

    @property
    def is_figure(self) -> bool:
        return self.maker.startswith("figures.")

    def make(self) -> Callable[..., Any]:
        """The function that makes it."""
        return getattr(importlib.import_module(f"budgeted_lora.{self.module}"), self.maker.rpartition(".")[2])

    def among(self, configured: Iterable[str]) -> "Shown":
        """The same with the cells that a configuration with these tables has."""
        known = set(configured)
        cells = tuple(name for name in self.cells if name in known) or tuple({self.otherwise} & known)
        return replace(self, cells=cells)


def ablation(name: str, *more: Reads, maker: str = "", target: Target = "ablations") -> Shown:
    """A table of a configured table's own cells, made where the configuration has it."""
    return Shown(name, maker or f"tables.ablations.{name}", (name,), ("perplexity", *more), target, optional=True)


TABLES = {
    shown.name: shown
    for shown in (
        Shown("table1", "tables.main.table1", MAIN, ("references",)),
        Shown("table2", "tables.main.table2", ("table2",), ("perplexity", "train", "compression", "speed")),
        Shown("table2_differences", "tables.main.table2_differences", ("table2",)),
        Shown("table8", "tables.structure.table8", ("table8",), ("compression",)),
        Shown("table9", "tables.in_context.table9", ("table9",), ("icl",), otherwise="table2"),
        Shown("figure2_values", "tables.in_context.figure2_values", ("figure2",), ("icl",), otherwise="table2"),
        Shown("speed", "tables.structure.speed", MAIN, ("compression", "speed")),
        Shown("reference", "tables.main.reference", MAIN, ("references",)),
        Shown("published_perplexities", "tables.main.published_perplexities", ("table2",), ()),
        Shown(
            CONTROLS, "tables.controls.controls", (CONTROLS, "table2"), ("perplexity", "train", "compression"),
            optional=True,
        ),
        ablation("table3"),
        ablation("table4"),
        ablation("table5"),
        ablation("table6", "compression"),
        ablation("lora_construction"),
        ablation("table7", "train", "compression"),
        ablation("thresholds", "compression", maker="tables.structure.thresholds"),
        Shown(
            "sensitivity", "tables.sensitivity.sensitivity", ("sensitivity", "table2", "table8"), target="own",
            optional=True,
        ),
        ablation(BEYOND, "icl", "train", "compression", "speed", maker="tables.beyond.beyond", target="own"),
    )
}  # fmt: skip

OWN_TARGETS = frozenset(name for name, table in TABLES.items() if table.target == "own")

BARS = "Thin bars: standard error over validation text; wide pale bars: range over training seeds, if several were run."
BROWN = (
    "Brown, where they were run: what a reader would do instead at the MACs of a budget, a smaller KD Full student or "
    "a plain truncated SVD of the full one without retraining."
)
FIGURES = {
    shown.name: shown
    for shown in (
        Shown(
            "figure2", "figures.main.figure2", ("figure2",), ("icl", "references"), otherwise="table2",
            title="Figure 2. In-context learning by teacher and method",
            caption="Macro mean over 19 probes, 10-shot, exact match. The band spans the runs: demonstration seeds, "
            "and training seeds where there are several. Dashed: the smallest teacher itself; dotted: chance, what "
            "the best constant answer or a random word of the query would score.",
        ),
        Shown(
            "pareto_train_compute", "figures.pareto.train_compute", (*MAIN, CONTROLS),
            ("perplexity", "train", "compression", "references"),
            title="Perplexity against train compute",
            caption="Train compute is counted in multiply-accumulates relative to KD Full. Grey steps: what no other "
            f"student beats on both. {BARS} {BROWN}",
        ),
        Shown(
            "pareto_mac_speedup", "figures.pareto.mac_speedup", (*MAIN, CONTROLS),
            ("perplexity", "train", "compression", "references"),
            title="Perplexity against MAC speedup",
            caption="The paper's speedup is this ratio of multiply-accumulates in the projections, dense over "
            f"compressed. It is not a timing. {BARS} {BROWN}",
        ),
        Shown(
            "pareto_measured_speedup", "figures.pareto.measured_speedup", MAIN, ("perplexity", "speed", "references"),
            title="Perplexity against measured speedup",
            caption="The same students, with the time the projections really took on this machine, dense over "
            f"compressed, timed in turn. {BARS} Controls are not timed.",
        ),
        Shown(
            "retention", "figures.training.retention", MAIN, ("curves", "references"),
            title="What is kept of every dense path",
            caption="Dense coefficient d of every projection over training, for each budget (smallest teacher, first "
            "seed). Bright: kept; dark: gone, its matmul skipped.",
        ),
        Shown(
            "gates", "figures.training.gates", MAIN, ("curves", "references"),
            title="Trained gates",
            caption="Gates of all ranks of all modules after training. They start at sigmoid(2) = 0.88; a rank is cut "
            "only if its gate ends at or below the threshold.",
        ),
        Shown(
            "loss_curves", "figures.training.loss_curves", MAIN, ("curves", "references"),
            title="Training loss",
            caption="Distillation loss, lightly smoothed; first steps cut off. Grey: the stretch in which the dense "
            "paths are lowered.",
        ),
        Shown(
            BEYOND, "figures.beyond.beyond_figure", (BEYOND, CONTROLS, "table2"),
            ("perplexity", "icl", "train", "compression", "speed"), "own", optional=True,
            title="Beyond the paper: perplexity against MAC speedup",
            caption="One line per rule, from large budgets to small; wide strokes span the seeds. Level lines: KD Full "
            "and KD LoRA. Grey crosses: the untrained student cut by truncated SVD, without distillation.",
        ),
        Shown(
            "beyond_why", "figures.beyond_why.beyond_why", (BEYOND,), ("train", "compression", "curves", "statistics"),
            "own", optional=True,
            title="Beyond the paper: why",
            caption="Above: training loss of every rule at one budget, first seed. Middle: what the removals so far "
            "cost the untrained student one by one, summed, with the SVD of outputs in their place. Below, of that "
            "student: the share of each projection's output energy outside rank r, with marks where the dense path "
            "stays to the end; and how the loss rises when that path alone goes, with nothing in its place and with "
            "the SVD of outputs.",
        ),
    )
}  # fmt: skip


def tables_of(configured: Iterable[str]) -> dict[str, Shown]:
    """The tables of a configuration by name, the main ones first.

    A configured table that stands nowhere above gets a table of its own: one line per recipe.
    """
    names = list(configured)
    shown = {name: table for name, table in TABLES.items() if not table.optional or table.cells[0] in names}
    others = [name for name in names if name not in {*TABLES, *FIGURES, *MAIN}]
    shown |= {name: ablation(name, maker="tables.ablations.any_table") for name in others}
    return {name: table.among(names) for name, table in shown.items()}


def figures_of(configured: Iterable[str]) -> dict[str, Shown]:
    """The figures of a configuration by name, the main ones first."""
    names = list(configured)
    shown = {name: figure for name, figure in FIGURES.items() if not figure.optional or figure.cells[0] in names}
    return {name: figure.among(names) for name, figure in shown.items()}
