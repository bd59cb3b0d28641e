"""What a target of Snakemake needs of a scale: only that is planned for, and judged before a run."""

from collections.abc import Iterable

from budgeted_lora.config.scale import MAIN_CELLS
from budgeted_lora.reporting.contents import CONTROLS
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs


def tables_needed(graph: Graph, targets: Iterable[str]) -> set[str]:
    """Tables of the configuration whose cells these targets of Snakemake train.

    Args:
        targets: as they are typed; none means `all`. For a file, and any other that is not known here, every table.
    """
    jobs, every, main = ReportJobs(graph), set(graph.config.tables), {*MAIN_CELLS, CONTROLS}
    own = set(jobs.names("own"))
    known = dict.fromkeys(("main", "report", "claims", "figure2", "pareto"), main)
    known |= {name: set(table.cells) for name, table in jobs.tables.items()}
    known |= {name: main | set(jobs.tables[name].cells) for name in own}  # they join the page of `main`
    known |= {"all": every - own, "ablations": set(jobs.names("ablations")), "calibration": set()}
    return set().union(*(known.get(target, every) for target in list(targets) or ["all"])) & every


def limited(graph: Graph, targets: Iterable[str]) -> Graph:
    """The graph of the same scale with the tables that these targets need and no other."""
    needed = tables_needed(graph, targets)
    rows = {name: rows for name, rows in graph.config.tables.items() if name in needed}
    return Graph(graph.config.model_copy(update={"tables": rows}))
