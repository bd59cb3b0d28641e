"""Every table and figure of the report, each once: its cells, the results it reads, who makes it, its target.

The workflow takes a table's inputs from here, and the stage that makes it takes its maker. To add one, add a line here
and write its maker. Nothing here imports pandas, matplotlib or torch; makers are named as text and imported when used.
"""

import importlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from budgeted_lora.config.scale import MAIN_CELLS
from budgeted_lora.errors import BadInput

Reads = Literal[
    "perplexity", "icl", "train", "compression", "speed", "curves", "references", "calibration", "statistics",
    "contamination", "lm_eval", "int8",
]  # fmt: skip
Target = Literal["main", "ablations", "own"]

CONTROLS = "controls"  # configured table of what a reader would do instead; the Pareto plots show it too
BEYOND = "beyond"  # configured table of other rules than the paper's
ELASTIC = "elastic"  # configured table of students that one training serves at every budget
TOKENS = "tokens"  # configured table of the same students at several lengths of training
ICL_TABLES = frozenset({*MAIN_CELLS, BEYOND, CONTROLS})  # configured tables whose students are scored in context
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
        asked: it is made only if `evaluation` asks for it (`Evaluation.asked`).
        otherwise: the configured table that takes the place of `cells` if the configuration has none of them.
    """

    name: str
    maker: str
    cells: tuple[str, ...]
    reads: tuple[Reads, ...] = ("perplexity",)
    target: Target = "main"
    optional: bool = False
    asked: bool = False
    otherwise: str = ""

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


def ablation(
    name: str, *more: Reads, maker: str = "", beside: tuple[str, ...] = (), target: Target = "ablations"
) -> Shown:
    """A table that is made where the configuration has one of its name; `beside` are others whose cells it shows."""
    maker = maker or f"tables.ablations.{name}"
    return Shown(name, maker, (name, *beside), ("perplexity", *more), target, optional=True)


def by_name(*shown: Shown) -> dict[str, Shown]:
    return {one.name: one for one in shown}


COSTS: tuple[Reads, ...] = ("perplexity", "train", "compression")
TABLES = by_name(
    Shown("table1", "tables.main.table1", MAIN_CELLS, ("references", "calibration")),
    Shown("table2", "tables.main.table2", ("table2",), (*COSTS, "speed")),
    Shown("table2_differences", "tables.main.table2_differences", ("table2",)),
    Shown("table8", "tables.structure.table8", ("table8",), ("compression",)),
    Shown("table9", "tables.in_context.table9", ("table9",), ("icl",), otherwise="table2"),
    Shown("figure2_values", "tables.in_context.figure2_values", ("figure2",), ("icl",), otherwise="table2"),
    Shown("speed", "tables.structure.speed", MAIN_CELLS, ("compression", "speed")),
    Shown("reference", "tables.main.reference", MAIN_CELLS, ("references", "calibration")),
    Shown("contamination", "tables.in_context.contamination", ("table2",), ("contamination",)),
    Shown("lm_eval", "tables.harness.lm_eval", MAIN_CELLS, ("references", "lm_eval"), asked=True),
    Shown("int8", "tables.structure.int8", MAIN_CELLS, ("perplexity", "int8"), asked=True),
    Shown("published_perplexities", "tables.main.published_perplexities", ("table2",), ()),
    Shown(CONTROLS, "tables.controls.controls", (CONTROLS, "table2"), (*COSTS, "icl"), optional=True),
    ablation("table3"),
    ablation("table4"),
    ablation("table5"),
    ablation("table6", "compression"),
    ablation("lora_construction"),
    ablation("table7", "train", "compression"),
    ablation("thresholds", "compression", maker="tables.structure.thresholds"),
    ablation("sensitivity", maker="tables.sensitivity.sensitivity", beside=("table2", "table8"), target="own"),
    ablation(BEYOND, "icl", "train", "compression", "speed", maker="tables.beyond.beyond", target="own"),
    ablation(ELASTIC, "train", "compression", maker="tables.elastic.elastic", target="own"),
    ablation(TOKENS, "references", maker="tables.tokens.tokens", beside=("table2",), target="own"),
)
TIMED: tuple[Reads, ...] = ("perplexity", "speed", "references")
WHY: tuple[Reads, ...] = ("train", "compression", "curves", "statistics")
OWN: dict[str, Any] = {"target": "own", "optional": True}
FIGURES = by_name(
    Shown("figure2", "figures.main.figure2", ("figure2",), ("icl", "references"), otherwise="table2"),
    Shown("pareto_train_compute", "figures.pareto.train_compute", (*MAIN_CELLS, CONTROLS), (*COSTS, "references")),
    Shown("pareto_mac_speedup", "figures.pareto.mac_speedup", (*MAIN_CELLS, CONTROLS), (*COSTS, "references")),
    Shown("pareto_measured_speedup", "figures.pareto.measured_speedup", MAIN_CELLS, TIMED),
    Shown("retention", "figures.training.retention", MAIN_CELLS, ("curves", "references")),
    Shown("gates", "figures.training.gates", MAIN_CELLS, ("curves", "references")),
    Shown("loss_curves", "figures.training.loss_curves", MAIN_CELLS, ("curves", "references")),
    Shown(BEYOND, "figures.beyond.beyond_figure", (BEYOND, CONTROLS, "table2"), (*COSTS, "icl", "speed"), **OWN),
    Shown("beyond_why", "figures.beyond_why.beyond_why", (BEYOND,), WHY, **OWN),
    Shown(ELASTIC, "figures.elastic.elastic_figure", (ELASTIC,), COSTS, **OWN),
    Shown(TOKENS, "figures.tokens.tokens_figure", (TOKENS, "table2"), ("perplexity", "references"), **OWN),
)
OWN_TARGETS = frozenset(name for name, table in TABLES.items() if table.target == "own")


def tables_of(configured: Iterable[str], asked: Collection[str] = ()) -> dict[str, Shown]:
    """The tables of a configuration by name, the main ones first.

    A configured table that stands nowhere above gets a table of its own: one line per recipe.

    Args:
        configured: the tables whose rows a scale lists.
        asked: those that its section `evaluation` asks for.
    """
    names = list(configured)
    made = {name: table for name, table in TABLES.items() if not table.asked or name in asked}
    shown = {name: table for name, table in made.items() if not table.optional or table.cells[0] in names}
    others = [name for name in names if name not in {*TABLES, *FIGURES, *MAIN_CELLS}]
    shown |= {name: ablation(name, maker="tables.ablations.any_table") for name in others}
    return {name: table.among(names) for name, table in shown.items()}


def figures_of(configured: Iterable[str]) -> dict[str, Shown]:
    """The figures of a configuration by name, the main ones first."""
    names = list(configured)
    shown = {name: figure for name, figure in FIGURES.items() if not figure.optional or figure.cells[0] in names}
    return {name: figure.among(names) for name, figure in shown.items()}


def table_of(configured: Iterable[str], name: str) -> Shown:
    """One of `tables_of`, be it asked for or not; BadInput if there is none of this name."""
    return _named(tables_of(configured, {name}), name, "table")


def figure_of(configured: Iterable[str], name: str) -> Shown:
    """One of `figures_of`; BadInput if there is none of this name."""
    return _named(figures_of(configured), name, "figure")


def _named(known: dict[str, Shown], name: str, kind: str) -> Shown:
    if name not in known:
        raise BadInput(f"{kind} {name!r} is unknown; expected one of {', '.join(known)}")
    return known[name]
