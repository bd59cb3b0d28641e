"""What the rule files ask: which files a table needs, which values a stage gets. No torch, no Snakemake.

Rules name `<folder>.sha256` files as inputs where a folder is what they read: a digest is small, so Snakemake
compares it by content, and remaking the same bytes reruns nothing downstream.
"""

import glob
from dataclasses import asdict
from pathlib import Path
from typing import Any

from budgeted_lora.budget.cost import ModelShape
from budgeted_lora.budget.plan import Structure, structure
from budgeted_lora.config import Config
from budgeted_lora.evaluation.settings import evaluation_settings
from budgeted_lora.files import canonical_json
from budgeted_lora.grid import Cell, Recipe, cells
from budgeted_lora.sources import shipped_files, source_folder

DEFAULT_SETTINGS = "default"
ABLATIONS = frozenset({"table3", "table4", "table5", "table6", "table7"})
MAIN_TABLES = (
    "table1",
    "table2",
    "table2_differences",
    "table8",
    "table9",
    "figure2_values",
    "speed",
    "reference",
    "published_perplexities",
)
PARETO = ("pareto_train_compute", "pareto_mac_speedup", "pareto_measured_speedup")
MAIN_FIGURES = ("figure2", *PARETO, "retention", "gates", "loss_curves")


class Graph:
    """The jobs of one configuration, as names and paths under results/<scale> and reports/<scale>."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = f"results/{config.scale}"
        self.reports = f"reports/{config.scale}"
        self.cells: dict[str, Cell] = {cell.id: cell for cell in cells(config)}
        self.teachers = list(config.teacher_ladder)
        self.inits = sorted({cell.recipe.init for cell in self.cells.values()} | {config.training.init})

    # --- values that stages get, as one line of JSON each ---

    def recipe(self, cell: str) -> str:
        """How a cell is trained."""
        return canonical_json(self.cells[cell].recipe.model_dump(mode="json"))

    def recipe_of(self, cell: str) -> Recipe:
        return self.cells[cell].recipe

    def section(self, name: str, **more: Any) -> str:
        """A section of the configuration, with values from other sections beside it."""
        return canonical_json(getattr(self.config, name).model_dump(mode="json") | more)

    def teacher_spec(self, teacher: str) -> str:
        return canonical_json(self.config.teacher_ladder[teacher].model_dump(mode="json"))

    def corpus(self) -> str:
        """What decides the documents: the corpus section without what only later stages use."""
        later = {"train_tokens", "validation_tokens", "function_share", "hold_out_words", "prompt_space"}
        return canonical_json(self.config.corpus.model_dump(mode="json", exclude=later))

    def mix(self) -> str:
        """What decides the token files besides documents and tokenizer."""
        names = ("validation_tokens", "function_share", "slice_per_mille", "hold_out_words", "prompt_space")
        return canonical_json(
            {name: getattr(self.config.corpus, name) for name in names} | {"train_tokens": self.train_tokens()}
        )

    def tokenizer_values(self) -> str:
        names = ("function_share", "slice_per_mille", "hold_out_words", "prompt_space")
        return canonical_json(
            {name: getattr(self.config.corpus, name) for name in names} | self.config.tokenizer.model_dump()
        )

    def held_out_rule(self) -> str:
        """What a teacher must not have been trained on."""
        names = ("slice_per_mille", "hold_out_words")
        return canonical_json({name: getattr(self.config.corpus, name) for name in names})

    def evaluation(self) -> str:
        return canonical_json(evaluation_settings(self.config))

    def cells_csv(self) -> str:
        """Rows of cells.csv."""
        return canonical_json([row(cell) for cell in self.cells.values()])

    def uncertainty(self) -> str:
        """How intervals are made."""
        return canonical_json(self.config.report.model_dump())

    def whole(self) -> str:
        """The whole configuration, for the page that lists it."""
        return canonical_json(self.config.model_dump(mode="json"))

    # --- sizes ---

    def train_tokens(self) -> int:
        """Tokens in the training file: what the corpus section says, more where teachers made here read more.

        Not what the cells ask for: one longer row would make a new file, and every student anew.
        """
        made_here = self.config.teacher_ladder.values() if self.config.teachers == "pretrain" else ()
        return max([self.config.corpus.train_tokens, *(spec.tokens for spec in made_here if spec.tokens)])

    def cached_windows(self, teacher: str) -> int:
        """Windows whose hidden states the students of a teacher read."""
        recipes = [cell.recipe for cell in self.cells.values() if cell.recipe.teacher == teacher]
        return max((recipe.steps * recipe.batch_windows for recipe in recipes), default=0)

    @property
    def cached(self) -> bool:
        return self.config.training.teacher_cache == "hidden"

    # --- structures ---

    @property
    def student_shape(self) -> ModelShape:
        first = self.config.teacher_ladder[self.config.first_teacher]
        return ModelShape(layers=self.config.student.layers, hidden=first.hidden, kv=first.kv, ffn=first.ffn)

    def structures(self) -> dict[str, Cell]:
        """One cell for each planned structure."""
        return {cell.structure: cell for cell in self.cells.values() if cell.structure}

    def structure(self, name: str) -> Structure:
        """The planned structure of that name."""
        recipe, compression = self.structures()[name].recipe, self.config.compression
        return structure(
            self.student_shape,
            rank=recipe.rank,
            budget=recipe.budget,
            start=recipe.schedule_start,
            end=recipe.schedule_end,
            smoothing=recipe.smoothing,
            drop_threshold=recipe.drop_threshold,
            controller=recipe.controller,
            r_max=compression.r_max,
            svd_threshold=compression.svd_threshold,
            schedule=recipe.schedule,
        )

    def speed_values(self, name: str) -> str:
        """The student and the structure that are timed."""
        first = self.config.teacher_ladder[self.config.first_teacher]
        student = {
            "shape": asdict(self.student_shape),
            "heads": first.heads,
            "kv_heads": first.kv_heads,
            "rank": self.structures()[name].recipe.rank,
        }
        return canonical_json({"student": student, "structure": self.structure(name).as_json()})

    # --- files from outside the workflow; one that is missing is left out here and named by the stage that wants it ---

    def corpus_files(self) -> list[str]:
        """Local files that documents are read from."""
        corpus = self.config.corpus
        patterns = corpus.files if corpus.source == "files" else []
        return sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})

    def teacher_files(self, teacher: str) -> list[str]:
        """What tells a ready-made teacher from another: the card of a shipped one, the files of a local one."""
        if self.config.teachers == "shipped":
            return shipped_files(f"teachers/{teacher}", "card.json")
        folder = self.config.teacher_ladder[teacher].folder
        if self.config.teachers != "folder" or not folder:
            return []
        return sorted(str(path) for ending in ("*.json", "*.safetensors") for path in Path(folder).glob(ending))

    def shipped_tokenizer_files(self) -> list[str]:
        """The tokenizer that the shipped teachers share."""
        return shipped_files("tokenizer", "tokenizer.json", "tokenizer_config.json")

    def probe_files(self) -> list[str]:
        """The original probe files, where they are evaluated."""
        evaluation = self.config.evaluation
        folder = evaluation.probes_folder if evaluation.probes == "folder" else None
        return sorted(str(path) for path in Path(folder).glob("*.json")) if folder else []

    # --- files ---

    def listed(self, tables: set[str]) -> list[str]:
        """Cells that any of these tables lists."""
        return [cell.id for cell in self.cells.values() if tables & set(cell.tables)]

    def needs_icl(self, cell: str) -> bool:
        """Cells of ablations alone are scored by perplexity only."""
        return not set(self.cells[cell].tables) <= ABLATIONS

    def of_cells(self, ids: list[str], *names: str) -> list[str]:
        """Result files of cells; a name beginning with @ lies in the compressed folder."""
        folder = f"compressed/{DEFAULT_SETTINGS}/"
        return [f"{self.results}/cells/{cell}/{name.replace('@', folder)}" for cell in ids for name in names]

    def cache_files(self, cell: str) -> list[str]:
        """The teacher's hidden states that a cell reads, if they are cached."""
        return [f"{self.results}/cache/{self.cells[cell].recipe.teacher}/cache.json"] if self.cached else []

    def cache_option(self, cell: str) -> str:
        """The command-line option that names them."""
        return f"--cache {self.results}/cache/{self.cells[cell].recipe.teacher}" if self.cached else ""

    def report_templates(self) -> list[str]:
        """Files beside the reporting code that shape the page."""
        folder = source_folder("reporting")
        return sorted(str(path) for pattern in ("*.j2", "*.css") for path in folder.glob(pattern))

    def scores(self, ids: list[str]) -> list[str]:
        """Score files of cells, ICL where it is measured."""
        wanted = ("@compression.json", "@perplexity.json", "@perplexity_windows.parquet")
        files = self.of_cells(ids, "train.json", *wanted)
        return files + self.of_cells([cell for cell in ids if self.needs_icl(cell)], "@icl.json")

    def references(self) -> list[str]:
        """Scores of the teachers and of the untrained students."""
        folders = [f"teachers/{name}" for name in self.teachers] + [f"students/{init}" for init in self.inits]
        return [f"{self.results}/{folder}/{name}" for folder in folders for name in ("perplexity.json", "icl.json")]

    def speeds(self, ids: list[str]) -> list[str]:
        """Timings of the structures of cells."""
        names = {self.cells[cell].structure for cell in ids} - {None}
        return [f"{self.results}/speed/{name}.json" for name in sorted(names)]

    def common(self) -> list[str]:
        return [f"{self.results}/cells.csv", f"{self.results}/data/manifest.json"]

    def table_inputs(self, table: str) -> list[str]:
        """Result files that a table is made from."""
        if table in ("table1", "reference"):
            return [*self.common(), *self.references()]
        if table == "published_perplexities":
            return self.common()
        if table == "speed":
            return [
                *self.common(),
                *self.speeds(list(self.cells)),
                *self.of_cells(list(self.cells), "@compression.json"),
            ]
        ids = self.listed({"table8"} if table == "table8" else {"table2"})
        return [*self.common(), *self.references(), *self.scores(ids), *self.speeds(ids)]

    def figure_inputs(self, figure: str) -> list[str]:
        """Result files that a figure is made from."""
        ids = self.listed({"table2"}) if figure == "figure2" else self.listed({"table2", "table8", "pareto"})
        files = [*self.common(), *self.references(), *self.scores(ids), *self.speeds(ids)]
        if figure in ("retention", "loss_curves", "gates"):
            files += self.of_cells(ids, "history.csv", "retention.csv", "trained.sha256")
        return files


def row(cell: Cell) -> dict[str, Any]:
    """A cell's line of cells.csv."""
    recipe = cell.recipe.model_dump(mode="json")
    listed = {"cell": cell.id, "tables": " ".join(cell.tables)}
    return listed | recipe | {"tokens": cell.recipe.tokens, "structure": cell.structure}
