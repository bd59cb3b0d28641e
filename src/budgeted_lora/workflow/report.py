"""The report's part of the workflow: the cells that each table lists, the files that tables and figures need."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from budgeted_lora.config.scale import CLAIM_TABLES, MAIN_CELLS
from budgeted_lora.files import short_hash
from budgeted_lora.reporting.contents import ICL_TABLES, Shown, figures_of, tables_of
from budgeted_lora.reporting.standing import Standing, standing_of
from budgeted_lora.workflow.code import source_folder
from budgeted_lora.workflow.graph import Graph


class ReportJobs:
    """The jobs that make a scale's report."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.configured = list(graph.config.tables)
        self.tables = tables_of(self.configured, graph.config.evaluation.asked)
        self.figures = figures_of(self.configured)

    def names(self, *targets: str) -> list[str]:
        """Tables that belong to any of these targets of `contents`: main, ablations, own."""
        return [name for name, table in self.tables.items() if table.target in targets]

    @cached_property
    def standing(self) -> Standing:
        """What the scale shares with the paper."""
        return standing_of(self.graph.config, [self.graph.recipe_of(cell) for cell in self.graph.listed(MAIN_CELLS)])

    # --- options of the stages ---

    def list_options(self) -> dict[str, Any]:
        """Options of list_cells: the configuration without what no line of cells.csv depends on."""
        other = {"device", "fit", "tensorboard", "gpus_per_run", "threads"}
        other |= {"calibration", "evaluation", "speed", "report"}
        return {"config": self.graph.config.model_dump(mode="json", exclude=other)}

    def list_digest(self) -> str:
        """Digest of the lines that list_cells writes, by which Snakemake sees that they change."""
        return short_hash([cell_rows(self.graph), *(table_lines(self.graph, table) for table in self.configured)])

    def digest(self, table: str) -> str:
        """Digest of the lines that list_table writes, by which Snakemake sees that they change."""
        return short_hash(table_lines(self.graph, table))

    def table_options(self, table: str) -> dict[str, Any]:
        """Options of make_table."""
        report = self.graph.config.report.model_dump()
        return {"table": table, "standing": self.standing.model_dump(), "report": report}

    def figure_options(self, figure: str) -> dict[str, Any]:
        """Options of make_figure."""
        return {"figure": figure, "standing": self.standing.model_dump()}

    def page_options(self) -> dict[str, Any]:
        """Options of make_index and judge_claims: the configuration without what only decides whether a run starts."""
        config = self.graph.config.model_dump(mode="json", exclude={"fit", "tensorboard"})
        return {"config": config, "standing": self.standing.model_dump()}

    # --- inputs ---

    def cells(self, shown: Shown) -> list[str]:
        """The files that list the cells which a table or figure shows."""
        return [f"{self.graph.results}/tables/{name}.csv" for name in shown.cells or self.configured]

    def inputs(self, shown: Shown) -> list[str]:
        """The result files that a table or figure is made from."""
        graph, tables = self.graph, shown.cells
        listed = graph.listed(tables)
        files = {
            "references": graph.references,
            "calibration": graph.calibration,
            "contamination": lambda: [f"{graph.results}/data/contamination.json"],
            "perplexity": lambda: graph.compressed(tables, "perplexity.json", "perplexity_windows.parquet"),
            "compression": lambda: graph.compressed(tables, "compression.json"),
            "icl": lambda: graph.of_cells(graph.listed(ICL_TABLES & set(tables)), "@icl.json"),
            "train": lambda: graph.of_cells(listed, "train.json"),
            "curves": lambda: graph.of_cells(listed, "train.json", "history.csv", "retention.csv", "trained.sha256"),
            "speed": lambda: graph.speeds(tables),
            "lm_eval": graph.task_scores,
            "int8": lambda: graph.of_cells(graph.asked("int8"), "@int8.json"),
            "statistics": lambda: [f"{folder}.json" for cell in listed for folder in graph.statistics_read(cell)],
        }
        return list(dict.fromkeys(path for kind in shown.reads for path in files[kind]()))

    def lists(self) -> list[str]:
        """The lists of all cells, and the record of what they were trained on."""
        return [f"{self.graph.results}/{name}" for name in ("cells.csv", "tables.csv", "data/manifest.json")]

    def page_inputs(self) -> list[str]:
        """Result files that the page itself reads, beside those of its tables and figures."""
        return [*self.lists(), *self.graph.references(), *self.graph.scores(MAIN_CELLS)]

    def claim_inputs(self, tables: Iterable[str]) -> list[str]:
        """Result files that verdicts over the students of these tables are made from."""
        windows = [f"{self.graph.results}/teachers/{name}/perplexity_windows.parquet" for name in self.graph.teachers]
        first = [*self.lists(), *self.graph.calibration(), *self.graph.references(), *windows]
        return [*first, *self.graph.scores(CLAIM_TABLES & set(tables))]

    def templates(self) -> list[str]:
        """Files beside the reporting code that shape the page."""
        folder = source_folder("reporting/page")
        return sorted(str(path) for pattern in ("*.j2", "*.css", "*.js") for path in folder.glob(pattern))

    def makers(self) -> list[str]:
        """Modules that make tables and figures."""
        return sorted({shown.module for shown in (*self.tables.values(), *self.figures.values())})

    # --- what joins the page after the main tables ---

    def parts(self) -> list[str]:
        """All ablations, or a table with a target of its own."""
        return ["all", *self.names("own")]

    def part_files(self, part: str) -> list[str]:
        """Tables, figures and verdicts of one of these parts."""
        reports = self.graph.reports
        if part == "all":
            tables = [f"{reports}/tables/{name}.csv" for name in self.names("ablations")]
            return [*tables, f"{reports}/claims_all.csv"]
        figures = [name for name, figure in self.figures.items() if figure.target == "own" and part in figure.cells]
        return [f"{reports}/tables/{part}.csv", *(f"{reports}/figures/{name}.svg" for name in figures)]

    def main_figures(self) -> list[str]:
        """Figures that stand on the page from the beginning."""
        return [name for name, figure in self.figures.items() if figure.target == "main"]


def cell_rows(graph: Graph) -> list[dict[str, Any]]:
    """Lines of cells.csv: a cell's tables, the variants it is compressed as, its recipe and its structure.

    The column `asked` says which variants a table lists: `<table>:<variant>,<variant>` for each, spaces between.
    """
    rows = []
    for cell in graph.cells.values():
        listing = [f"{table}:{','.join(graph.variants_listed(cell.id, [table]))}" for table in cell.tables]
        about = {"cell": cell.id, "tables": " ".join(cell.tables), "settings": " ".join(cell.variants)}
        rows.append(about | {"asked": " ".join(listing)} | recipe_columns(graph, cell.id))
    return rows


def table_lines(graph: Graph, table: str) -> list[dict[str, Any]]:
    """Lines of tables.csv: one per cell and variant that a configured table lists.

    `cut_to` is the budget to whose MACs a variant truncates a student. The budget of an elastic student's line is that
    of its variant.
    """
    lines = []
    for cell in graph.listed([table]):
        for name in graph.variants_listed(cell, [table]):
            variant = graph.variants[name]
            facts = {
                "rank_threshold": variant.rank_threshold,
                "svd_threshold": variant.svd_threshold,
                "cut_to": variant.macs_of_budget,
                "truncation": variant.truncation,
                "undistilled": variant.undistilled,
            }
            about = {"table": table, "cell": cell, "variant": name} | facts | recipe_columns(graph, cell)
            lines.append(about if variant.budget is None else about | {"budget": variant.budget})
    return lines


def recipe_columns(graph: Graph, cell: str) -> dict[str, Any]:
    """A cell's recipe, its training tokens and the name of its structure."""
    recipe = graph.recipe_of(cell)
    columns = recipe.model_dump(mode="json") | {"tokens": recipe.tokens}
    return columns | {"structure": graph.structure_of(cell)}
