"""What the rule files ask: cells, structures, caches, and the files that jobs read. No torch, no Snakemake.

Rules name `<folder>.sha256` files as inputs where a folder is what they read: a digest is small, so Snakemake
compares it by content, and remaking the same bytes reruns nothing downstream.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgeted_lora.config.files import origin_note, read_layers
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import DEFAULT_VARIANT, MAIN_CELLS, Config, load_config
from budgeted_lora.data.probes import SMALLEST_PROBES, refuse_few
from budgeted_lora.data.readers import local_files, package_versions
from budgeted_lora.errors import BadInput
from budgeted_lora.files import short_hash
from budgeted_lora.method.structure import Structure
from budgeted_lora.reporting.contents import BEYOND, ICL_TABLES
from budgeted_lora.workflow.cells import Cell, cells, student_name, variants_of
from budgeted_lora.workflow.code import shipped_files
from budgeted_lora.workflow.outside import Outside
from budgeted_lora.workflow.recipes import planned
from budgeted_lora.workflow.shards import ShardJobs


@dataclass(frozen=True)
class Cache:
    """A teacher's final hidden states on disk, in the folder `name`."""

    name: str
    teacher: str
    windows: int
    packing: str


@dataclass(frozen=True)
class TimedStructure:
    """A structure whose speed is measured.

    Attributes:
        name: of its file, without the ending.
        rank: of the low-rank paths before compression.
        plan: the structure; None if it is known only once `cell` is compressed.
        cell: the one cell that has it, if it is not planned.
    """

    name: str
    rank: int
    plan: Structure | None
    cell: str | None


class Graph:
    """The jobs of one configuration, as names and paths under results/<scale> and reports/<scale>."""

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.evaluation.probes == "generated":
            split = {"slice_per_mille": config.corpus.slice_per_mille, "hold_out_words": config.corpus.hold_out_words}
            for probe in SMALLEST_PROBES:
                refuse_few(probe, count=config.evaluation.shots, **split)
        self.results = f"results/{config.scale}"
        self.reports = f"reports/{config.scale}"
        self.cells: dict[str, Cell] = {cell.id: cell for cell in cells(config)}
        self.teachers = list(config.teacher_ladder)
        self.outside = Outside(self.results)
        self.students: dict[str, Recipe | None] = {config.training.init: None}
        self.students |= {student_name(cell.recipe): cell.recipe for cell in self.cells.values()}
        self.planned = {
            name: planned(config, cell.recipe)
            for name, cell in self.cells.items()
            if cell.recipe.method == "budgeted_lora" and cell.recipe.plain
        }
        self.variants = {DEFAULT_VARIANT: config.compression}
        for rows in config.tables.values():
            for row in rows:
                self.variants |= variants_of(config, row)

    def recipe_of(self, cell: str) -> Recipe:
        return self.cells[cell].recipe

    def student_of(self, cell: str) -> str:
        """Name of the untrained student that a cell starts from."""
        return student_name(self.cells[cell].recipe)

    @property
    def teachers_share(self) -> float:
        """Share of function documents in what teachers made here read."""
        own = self.config.pretraining.function_share
        return self.config.corpus.function_share if own is None else own

    @property
    def pretraining_data(self) -> str:
        """Folder of the token files for teachers made here: a mix of their own, or the students'."""
        own = self.config.teachers == "pretrain" and self.teachers_share != self.config.corpus.function_share
        return f"{self.results}/data/teachers" if own else f"{self.results}/data"

    # --- sizes ---

    def train_tokens(self) -> int:
        """Tokens in the training file: as the corpus section says, or more if a leg of a teacher made here reads more.

        Not what the cells ask for: one longer row would create a new file and retrain every student.
        """
        made_here = self.config.teacher_ladder.values() if self.config.teachers == "pretrain" else ()
        return max([self.config.corpus.train_tokens, *(tokens for spec in made_here for tokens in spec.legs)])

    @property
    def cached(self) -> bool:
        """Whether the teachers' hidden states are cached."""
        return self.config.training.teacher_cache == "hidden"

    def cache_of(self, cell: str) -> Cache | None:
        """The teacher's hidden states that a cell reads, if they are cached.

        A run no longer than the scale's reads the front of one common cache. A longer one has its own, so that adding
        it does not change what others read.
        """
        if not self.cached:
            return None
        recipe, training = self.cells[cell].recipe, self.config.training
        common = training.tokens // self.config.sequence_length
        windows = max(common, recipe.steps * recipe.batch_windows)
        suffix = "" if recipe.rows == self.config.rows else f"_{recipe.rows}"
        return Cache(f"{recipe.teacher}_{windows}{suffix}", recipe.teacher, windows, recipe.rows)

    def caches(self) -> dict[str, Cache]:
        """Every cache, by the name of its folder."""
        return {cache.name: cache for cell in self.cells if (cache := self.cache_of(cell))}

    def shard_jobs(self) -> ShardJobs:
        """The jobs of a corpus in shards. Raises BadInput if this one has none."""
        return ShardJobs(self.config, self.results, train_tokens=self.train_tokens())

    # --- structures ---

    def structure_of(self, cell: str) -> str | None:
        """Name of a cell's structure: a planned one is shared by every cell whose compressed shapes are equal.

        If the removal order or the ranks depend on the student's weights, the structure is the cell's own. Two kinds
        have none: elastic students, of which the budget they are cut to leaves more or less, and those of another
        shape than the scale's, which are not timed.
        """
        if self.cells[cell].recipe.elastic or self.cells[cell].recipe.student_ffn is not None:
            return None
        if cell not in self.planned:
            return f"cell_{cell}" if self.cells[cell].recipe.method == "budgeted_lora" else None
        recipe, plan = self.cells[cell].recipe, self.planned[cell]
        shapes = [(module.decision, module.rank, module.svd_rank) for module in plan.modules]
        return f"F{recipe.budget:g}_r{recipe.rank}_{recipe.controller}-{short_hash(shapes, digits=4)}"

    def timed(self) -> dict[str, TimedStructure]:
        """The structures whose speed is measured, by name: those of the main tables and of `beyond`."""
        structures = {}
        for cell in self.listed({*MAIN_CELLS, BEYOND}):
            name, plan = self.structure_of(cell), self.planned.get(cell)
            if name is not None:
                rank = plan.rank if plan else self.cells[cell].recipe.rank
                structures[name] = TimedStructure(name, rank, plan, None if plan else cell)
        return structures

    def structures(self) -> dict[str, Structure]:
        """Those of them that are planned, by name."""
        return {name: structure.plan for name, structure in self.timed().items() if structure.plan}

    # --- files from outside the workflow; one that is missing is left out here and named by the stage that wants it ---

    def corpus_files(self) -> list[str]:
        """Local files that documents are read from."""
        return local_files(self.config.corpus)

    def package_versions(self) -> dict[str, str] | None:
        """Versions of the packages whose docstrings are read; None for another corpus."""
        corpus = self.config.corpus
        return package_versions(corpus.packages) if corpus.source == "docstrings" else None

    def corpus_identity(self) -> str:
        """What tells the corpus from another one of the same configuration."""
        versions = self.package_versions()
        return self.outside.identity(self.corpus_files()) if versions is None else short_hash(versions, digits=16)

    def outside_files(self) -> list[str]:
        """Every file from outside that some job reads. Raises BadInput if Snakemake would read its name otherwise."""
        if self.config.corpus.shards:
            jobs = self.shard_jobs()
            read = [path for name in jobs.names for path in jobs.local_files(name)]
        else:
            read = self.corpus_files()
        teachers = [path for name in self.teachers for path in self.teacher_files(name)]
        files = [*read, *teachers, *self.probe_files(), *self.task_files(), *self.tokenizer_files()]
        for path in files:
            if set("{}") & set(path) or not path.isprintable():
                raise BadInput(
                    f"{path!r}: Snakemake reads braces as wildcards; rename it, without braces and line breaks"
                )
        return files

    def teacher_files(self, teacher: str) -> list[str]:
        """What tells a ready-made teacher from another: the card of a shipped one, the files of a local one."""
        if self.config.teachers == "shipped":
            return shipped_files(f"teachers/{teacher}", "card.json")
        folder = self.config.teacher_ladder[teacher].folder
        if self.config.teachers != "folder" or not folder:
            return []
        kinds = ("*.json", "*.safetensors", "*.model", "*.jinja")
        return sorted(str(path) for kind in kinds for path in Path(folder).glob(kind))

    def probe_files(self) -> list[str]:
        """The original probe files, where they are evaluated."""
        evaluation = self.config.evaluation
        folder = evaluation.probes_folder if evaluation.probes == "folder" else None
        return sorted(str(path) for path in Path(folder).glob("*.json")) if folder else []

    def task_files(self) -> list[str]:
        """The reader's own tasks for lm-evaluation-harness, and the data beside them."""
        folder = self.config.evaluation.lm_eval_folder
        found = Path(folder).rglob("*") if folder else []
        return sorted(str(path) for path in found if path.is_file() and "__pycache__" not in path.parts)

    # --- files ---

    def listed(self, tables: Iterable[str]) -> list[str]:
        """Cells that any of these tables lists."""
        wanted = set(tables)
        return [cell.id for cell in self.cells.values() if wanted & set(cell.tables)]

    def variants_listed(self, cell: str, tables: Iterable[str]) -> list[str]:
        """Variants of a cell that these tables list."""
        wanted = set(tables)
        return [name for name, listing in self.cells[cell].variants.items() if wanted & set(listing)]

    def of_cells(self, ids: Iterable[str], *names: str) -> list[str]:
        """Result files of cells; a name beginning with @ lies in the folder of the default compression."""
        folder = f"compressed/{DEFAULT_VARIANT}/"
        return [f"{self.results}/cells/{cell}/{name.replace('@', folder)}" for cell in ids for name in names]

    def cache_folder(self, cell: str) -> list[str]:
        """Folder of the cache that a cell reads; empty without one."""
        cache = self.cache_of(cell)
        return [f"{self.results}/cache/{cache.name}"] if cache else []

    def calibrated(self, student: str) -> bool:
        """Whether the layers of an untrained student are chosen on windows of the training file."""
        recipe = self.students[student]
        return (self.config.training.init if recipe is None else recipe.init) == "importance"

    def calibration_tokens(self, student: str) -> list[str]:
        """The training file that an untrained student's layers are chosen on; empty for other students."""
        return [f"{self.results}/data/train.bin"] if self.calibrated(student) else []

    def statistics_of(self, cell: str) -> str:
        """Folder of the statistics of the untrained student that a cell starts from."""
        return f"{self.results}/students/{self.student_of(cell)}/statistics"

    def statistics_read(self, cell: str, variant: str | None = None) -> list[str]:
        """Folder of the statistics that a cell's training reads, or its compression by a variant; empty without."""
        if variant is None:
            needed = self.cells[cell].recipe.statistics_windows
        else:
            needed = self.variants[variant].truncation == "outputs"
        return [self.statistics_of(cell)] if needed else []

    def needs_statistics(self, cell: str) -> bool:
        """Whether a cell's training or any of its variants reads statistics."""
        return any(self.statistics_read(cell, variant) for variant in (None, *self.cells[cell].variants))

    def trained_beside(self, cell: str, variant: str) -> list[str]:
        """Folder of the trained student that is scored beside a compressed one.

        Empty for a variant that compresses the untrained student.
        """
        return [] if self.variants[variant].undistilled else [f"{self.results}/cells/{cell}/trained"]

    def untrained_beside(self, cell: str, variant: str) -> list[str]:
        """Model folder that the training of this student began with."""
        student = f"{self.results}/students/{self.student_of(cell)}/model"
        return [student] if self.trained_beside(cell, variant) else []

    def structure_record(self, structure: str) -> list[str]:
        """The record of compression that holds a timed structure; empty for a planned one."""
        cell = self.timed()[structure].cell
        return self.of_cells([cell], "@compression.json") if cell else []

    def compressed(self, tables: Iterable[str], *names: str) -> list[str]:
        """Files of the compressed models that these tables list."""
        tables = set(tables)
        folders = [
            f"{self.results}/cells/{cell}/compressed/{variant}"
            for cell in self.listed(tables)
            for variant in self.variants_listed(cell, tables)
        ]
        return [f"{folder}/{name}" for folder in folders for name in names]

    def scores(self, tables: Iterable[str]) -> list[str]:
        """Records and scores of the cells and variants that these tables list; ICL where it is measured."""
        files = self.of_cells(self.listed(tables), "train.json")
        files += self.compressed(tables, "compression.json", "perplexity.json", "perplexity_windows.parquet")
        return files + self.of_cells(self.listed(ICL_TABLES & set(tables)), "@icl.json")

    def of_references(self, *names: str) -> list[str]:
        """Files of the teachers and of the untrained students that the main tables start from."""
        students = dict.fromkeys([self.config.training.init, *map(self.student_of, self.listed(MAIN_CELLS))])
        folders = [f"teachers/{name}" for name in self.teachers] + [f"students/{name}" for name in students]
        return [f"{self.results}/{folder}/{name}" for folder in folders for name in names]

    def references(self) -> list[str]:
        """Scores of these."""
        return self.of_references("perplexity.json", "icl.json")

    def asked(self, what: str) -> list[str]:
        """The cells that a table which `evaluation` asks for is about; empty where it does not."""
        return self.listed(MAIN_CELLS) if what in self.config.evaluation.asked else []

    def task_scores(self) -> list[str]:
        """Scores on tasks of lm-evaluation-harness, where they are asked for."""
        cells = self.asked("lm_eval")
        return [*self.of_references("lm_eval.json"), *self.of_cells(cells, "@lm_eval.json")] if cells else []

    def calibration(self) -> list[str]:
        """The calibration record that students wait for; empty if the teachers are not the paper's."""
        return [f"{self.results}/calibration.json"] if self.config.calibration.teachers else []

    def vocabulary_of(self, teacher: str) -> list[str]:
        """Folder of the first teacher, if a teacher is brought in and must share its vocabulary; else empty."""
        first = self.config.first_teacher
        shared = self.config.teachers not in ("hub", "folder") or teacher == first
        return [] if shared else [f"{self.results}/teachers/{first}/model"]

    def tokenizer_source(self) -> list[str]:
        """Folder of the checkpoint whose tokenizer is copied; empty if it ships with the package."""
        brought = self.config.teachers in ("hub", "folder")
        return [f"{self.results}/teachers/{self.config.first_teacher}/model"] if brought else []

    def tokenizer_files(self) -> list[str]:
        """The tokenizer that the shipped teachers share, if it is copied."""
        return [] if self.tokenizer_source() else shipped_files("tokenizer", "tokenizer.json", "tokenizer_config.json")

    def speeds(self, tables: Iterable[str]) -> list[str]:
        """Timings of the structures of the cells that these tables list."""
        names = {self.structure_of(cell) for cell in self.listed(tables)} & self.timed().keys()
        return [f"{self.results}/speed/{name}.json" for name in sorted(names)]


def token_files(folder: str) -> list[str]:
    """The token files of a data folder."""
    sides = ("train", "validation", "functions")
    return [f"{folder}/{side}.{ending}" for side in sides for ending in ("bin", "idx", "json")]


def load_graph(path: Path | str, overrides: dict[str, Any] | None = None) -> Graph:
    """The jobs of a scale file, with values laid on top. Raises BadInput, with the file, if a value cannot be used."""
    config = load_config(path, overrides)
    try:
        return Graph(config)
    except BadInput as error:
        of_row = str(error).startswith("tables.")
        remark = origin_note(read_layers(path, overrides), ("tables",)) if of_row else ""
        raise BadInput(f"{path}: {error}{remark}") from None
