"""What the rule files ask: which files a table needs, which values a stage gets. No torch, no Snakemake.

Rules name `<folder>.sha256` files as inputs where a folder is what they read: a digest is small, so Snakemake
compares it by content, and remaking the same bytes reruns nothing downstream.
"""

import glob
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from budgeted_lora.config.files import origin_note, read_layers
from budgeted_lora.config.jobs import evaluation_options
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import (
    MAIN_CELLS,
    Config,
    load_config,
)
from budgeted_lora.errors import BadInput
from budgeted_lora.files import canonical_json, short_hash
from budgeted_lora.method.structure import Structure
from budgeted_lora.reporting.contents import BEYOND, ICL_TABLES
from budgeted_lora.workflow.cells import (
    DEFAULT_VARIANT,
    Cell,
    cells,
    student_name,
    variants_of,
)
from budgeted_lora.workflow.code import shipped_files
from budgeted_lora.workflow.recipes import default_budgeted, planned, student_shape
from budgeted_lora.workflow.shards import ShardJobs
from budgeted_lora.workflow.values import REMOVAL_WINDOWS

OWN_STRUCTURE = "cell_"  # begins the name of a structure that one cell alone has


class Graph:
    """The jobs of one configuration, as names and paths under results/<scale> and reports/<scale>."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = f"results/{config.scale}"
        self.reports = f"reports/{config.scale}"
        self.cells: dict[str, Cell] = {cell.id: cell for cell in cells(config)}
        self.teachers = list(config.teacher_ladder)
        self.students: dict[str, Recipe | None] = {config.training.init: None}
        self.students |= {student_name(config, cell.recipe): cell.recipe for cell in self.cells.values()}
        self.planned = {
            name: planned(config, cell.recipe)
            for name, cell in self.cells.items()
            if cell.recipe.method == "budgeted_lora" and cell.recipe.plain
        }
        self.settings = {DEFAULT_VARIANT: config.compression}
        for rows in config.tables.values():
            for row in rows:
                self.settings |= variants_of(config, row)

    # --- values that stages get, as one line of JSON each ---

    def recipe(self, cell: str) -> str:
        """How a cell is trained."""
        return canonical_json(self.cells[cell].recipe.model_dump(mode="json", exclude_none=True))

    def recipe_of(self, cell: str) -> Recipe:
        return self.cells[cell].recipe

    def section(self, name: str, **more: Any) -> str:
        """A section of the configuration, with values from other sections beside it."""
        return canonical_json(getattr(self.config, name).model_dump(mode="json") | more)

    def pretraining(self) -> str:
        """How teachers made here are trained."""
        return canonical_json(self.config.pretraining.model_dump(mode="json", exclude={"function_share"}))

    def teacher_spec(self, teacher: str) -> str:
        return canonical_json(self.config.teacher_ladder[teacher].model_dump(mode="json"))

    def corpus(self) -> str:
        """What decides the documents: the corpus section without what only later stages use."""
        later = {"train_tokens", "validation_tokens", "function_share", "hold_out_words", "prompt_space"}
        return canonical_json(self.config.corpus.model_dump(mode="json", exclude=later))

    def mix(self, *, for_teachers: bool = False) -> str:
        """What decides the token files besides documents and tokenizer."""
        names = ("validation_tokens", "function_share", "slice_per_mille", "hold_out_words", "prompt_space")
        values = {name: getattr(self.config.corpus, name) for name in names} | {"train_tokens": self.train_tokens()}
        return canonical_json(values | ({"function_share": self.teachers_share} if for_teachers else {}))

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

    def tokenizer_values(self) -> str:
        names = ("slice_per_mille", "hold_out_words", "prompt_space")
        return canonical_json(
            {name: getattr(self.config.corpus, name) for name in names}
            | {"function_share": self.teachers_share}
            | self.config.tokenizer.model_dump()
        )

    def held_out_rule(self) -> str:
        """What a teacher must not have been trained on."""
        names = ("slice_per_mille", "hold_out_words")
        return canonical_json({name: getattr(self.config.corpus, name) for name in names})

    def evaluation(self) -> str:
        return canonical_json(evaluation_options(self.config))

    def compression(self, settings: str) -> str:
        """Compression settings by the name of their folder."""
        chosen = self.settings[settings]
        values = chosen.model_dump(mode="json")
        if chosen.macs_of_budget is not None:
            values["macs"] = planned(self.config, default_budgeted(self.config, chosen.macs_of_budget)).totals.macs
        return canonical_json(values)

    def student(self, name: str) -> str:
        """How an untrained student is cut."""
        recipe = self.students[name]
        values = {"init": self.config.training.init, "depth": self.config.student.layers, "ffn": None, "seed": 0}
        if recipe is not None:
            values = {"init": recipe.init, "depth": recipe.student_layers, "ffn": recipe.student_ffn, "seed": 0}
            values["seed"] = recipe.seed if recipe.init == "scratch" else 0
        return canonical_json(values)

    def statistics(self) -> str:
        """What input statistics are measured on."""
        config = self.config
        values = {"windows": config.lora.statistics_windows, "batch_windows": config.training.micro_batch_windows}
        values |= {"sequence_length": config.sequence_length, "rows": config.rows}
        values |= {"rank": config.lora.rank, "removal_windows": REMOVAL_WINDOWS}
        return canonical_json(values)

    def student_of(self, cell: str) -> str:
        """Name of the untrained student that a cell starts from."""
        return student_name(self.config, self.cells[cell].recipe)

    def listing(self) -> str:
        """The configuration without what no line of cells.csv depends on."""
        other = {"device", "fit", "gpus_per_run", "threads", "calibration", "evaluation", "speed", "report"}
        return canonical_json(self.config.model_dump(mode="json", exclude=other))

    def whole(self) -> str:
        """The configuration for the page that lists it, without what only decides whether a run starts."""
        return canonical_json(self.config.model_dump(mode="json", exclude={"fit"}))

    # --- sizes ---

    def train_tokens(self) -> int:
        """Tokens in the training file: what the corpus section says, more where teachers made here read more.

        Not what the cells ask for: one longer row would make a new file, and every student anew.
        """
        made_here = self.config.teacher_ladder.values() if self.config.teachers == "pretrain" else ()
        return max([self.config.corpus.train_tokens, *(spec.tokens for spec in made_here if spec.tokens)])

    def cache_name(self, cell: str) -> str:
        """Folder of the teacher's hidden states that a cell reads: `<teacher>_<windows>`.

        A run no longer than the scale's reads the front of one common cache; a longer one has its own, so that
        adding it changes nothing that others read.
        """
        recipe, training = self.cells[cell].recipe, self.config.training
        common = training.tokens // self.config.sequence_length
        windows = max(common, recipe.steps * recipe.batch_windows)
        rows = "" if recipe.rows == self.config.rows else f"_{recipe.rows}"
        return f"{recipe.teacher}_{windows}{rows}"

    def cached_windows(self, cache: str) -> int:
        """Windows in a cache."""
        return int(cache.removeprefix(self.caches()[cache].teacher + "_").split("_")[0])

    def caches(self) -> dict[str, Recipe]:
        """One recipe for each cache."""
        return {self.cache_name(name): cell.recipe for name, cell in self.cells.items()} if self.cached else {}

    @property
    def cached(self) -> bool:
        return self.config.training.teacher_cache == "hidden"

    def shard_jobs(self) -> ShardJobs:
        """The jobs of a corpus in shards.

        Raises:
            BadInput: this one has none.
        """
        return ShardJobs(self.config, self.results, train_tokens=self.train_tokens())

    # --- structures ---

    def structure_of(self, cell: str) -> str | None:
        """Name of a cell's structure: a planned one is shared by every cell whose compressed shapes are equal.

        Where the order of removal or the ranks are found in the student itself, the structure is the cell's own.
        """
        if cell not in self.planned:
            own = self.cells[cell].recipe.method == "budgeted_lora"
            return f"{OWN_STRUCTURE}{cell}" if own else None
        recipe, plan = self.cells[cell].recipe, self.planned[cell]
        shapes = [(module.decision, module.rank, module.svd_rank) for module in plan.modules]
        return f"F{recipe.budget:g}_r{recipe.rank}_{recipe.controller}-{short_hash(shapes, digits=4)}"

    def structures(self) -> dict[str, Structure]:
        """The planned structures whose speed is measured: those of the main tables and of `beyond`, by name."""
        timed = self.listed({*MAIN_CELLS, BEYOND})
        return {self.structure_of(cell): self.planned[cell] for cell in timed if cell in self.planned}

    def own_structures(self) -> list[str]:
        """Cells whose structure is known once they are compressed, and that are timed then."""
        timed = self.listed({*MAIN_CELLS, BEYOND})
        return [cell for cell in timed if (self.structure_of(cell) or "").startswith(OWN_STRUCTURE)]

    def timed(self) -> list[str]:
        """Every structure that is timed, by the name of its file."""
        return [*self.structures(), *(f"{OWN_STRUCTURE}{cell}" for cell in self.own_structures())]

    def speed_values(self, name: str) -> str:
        """The student and the structure that are timed."""
        plan = self.structures()[name]
        return canonical_json({"student": self.timed_student(plan.rank), "structure": plan.as_json()})

    def own_speed_values(self, cell: str) -> str:
        """The student that is timed; the structure is in the cell's compression.json."""
        return canonical_json({"student": self.timed_student(self.cells[cell].recipe.rank)})

    def timed_student(self, rank: int) -> dict[str, Any]:
        """Shape of the scale's student, and the rank of its low-rank paths before compression."""
        first = self.config.teacher_ladder[self.config.first_teacher]
        shape = asdict(student_shape(self.config))
        return {"shape": shape, "heads": first.heads, "kv_heads": first.kv_heads, "rank": rank}

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

    def listed(self, tables: Iterable[str]) -> list[str]:
        """Cells that any of these tables lists."""
        wanted = set(tables)
        return [cell.id for cell in self.cells.values() if wanted & set(cell.tables)]

    def settings_listed(self, cell: str, tables: Iterable[str]) -> list[str]:
        """Compression settings under which these tables want a cell."""
        wanted = set(tables)
        return [name for name, asking in self.cells[cell].variants.items() if wanted & set(asking)]

    def of_cells(self, ids: Iterable[str], *names: str) -> list[str]:
        """Result files of cells; a name beginning with @ lies in the folder of the default compression."""
        folder = f"compressed/{DEFAULT_VARIANT}/"
        return [f"{self.results}/cells/{cell}/{name.replace('@', folder)}" for cell in ids for name in names]

    def cache_files(self, cell: str) -> list[str]:
        """The teacher's hidden states that a cell reads, if they are cached."""
        return [f"{self.results}/cache/{self.cache_name(cell)}/cache.json"] if self.cached else []

    def cache_option(self, cell: str) -> str:
        """The command-line option that names them."""
        return f"--cache {self.results}/cache/{self.cache_name(cell)}" if self.cached else ""

    def statistics_files(self, cell: str) -> list[str]:
        """The statistics of the student that a cell starts from, if its recipe needs one."""
        needed = self.cells[cell].recipe.statistics_windows
        return [self.statistics_of(cell)] if needed else []

    def statistics_option(self, cell: str) -> str:
        """The command-line option that names it."""
        return f"--statistics {self.statistics_of(cell)}" if self.cells[cell].recipe.statistics_windows else ""

    def truncation_files(self, cell: str, settings: str) -> list[str]:
        """The same, if these compression settings need one."""
        needed = self.settings[settings].truncation == "outputs"
        return [f"{self.statistics_of(cell)}.sha256"] if needed else []

    def truncation_option(self, cell: str, settings: str) -> str:
        """The command-line option that names it."""
        needed = self.settings[settings].truncation == "outputs"
        return f"--statistics {self.statistics_of(cell)}" if needed else ""

    def undistilled(self) -> list[str]:
        """Compression settings under which it is not the trained student that is compressed."""
        return [name for name, settings in self.settings.items() if settings.undistilled]

    def statistics_of(self, cell: str) -> str:
        """Folder of the statistics of the untrained student that a cell starts from."""
        return f"{self.results}/students/{self.student_of(cell)}/statistics"

    def scores(self, tables: Iterable[str]) -> list[str]:
        """Score files of the cells that these tables list, under the settings they want; ICL where it is measured."""
        tables, files = set(tables), []
        for cell in self.listed(tables):
            files.append(f"{self.results}/cells/{cell}/train.json")
            for name in self.settings_listed(cell, tables):
                folder = f"{self.results}/cells/{cell}/compressed/{name}"
                files += [f"{folder}/{file}" for file in ("compression.json", "perplexity.json")]
                files.append(f"{folder}/perplexity_windows.parquet")
        icl = self.listed(tables & ICL_TABLES)
        return files + self.of_cells(icl, "@icl.json")

    def references(self) -> list[str]:
        """Scores of the teachers and of the untrained students that the main tables start from."""
        students = dict.fromkeys([self.config.training.init, *map(self.student_of, self.listed(MAIN_CELLS))])
        folders = [f"teachers/{name}" for name in self.teachers] + [f"students/{name}" for name in students]
        return [f"{self.results}/{folder}/{name}" for folder in folders for name in ("perplexity.json", "icl.json")]

    def teacher_scores(self) -> list[str]:
        """Perplexities of the teachers."""
        return [f"{self.results}/teachers/{name}/perplexity.json" for name in self.teachers]

    def calibration(self) -> list[str]:
        """What must be said of the teachers before a student trains; nothing where they are not the paper's."""
        return [f"{self.results}/calibration.json"] if self.config.calibration.teachers else []

    def first_teacher_digest(self, teacher: str) -> list[str]:
        """The first teacher, whose vocabulary a brought-in one must share; nothing where they share it by origin."""
        first = self.config.first_teacher
        shared = self.config.teachers not in ("hub", "folder") or teacher == first
        return [] if shared else [f"{self.results}/teachers/{first}/model.sha256"]

    def first_teacher_option(self, teacher: str) -> str:
        """The command-line option that names its folder."""
        return "".join(f"--first {path.removesuffix('.sha256')}" for path in self.first_teacher_digest(teacher))

    def speeds(self, tables: Iterable[str]) -> list[str]:
        """Timings of the structures of the cells that these tables list."""
        names = {self.structure_of(cell) for cell in self.listed(tables)} & set(self.timed())
        return [f"{self.results}/speed/{name}.json" for name in sorted(names)]


def load_graph(path: Path | str, overrides: dict[str, Any] | None = None) -> Graph:
    """The jobs of a scale file, with values laid on top.

    Raises:
        BadInput: the configuration cannot be used, or one of its rows; the line names the file.
    """
    config = load_config(path, overrides)
    try:
        return Graph(config)
    except BadInput as error:
        of_row = str(error).startswith("tables.")
        remark = origin_note(read_layers(path, overrides), ("tables",)) if of_row else ""
        raise BadInput(f"{path}: {error}{remark}") from None
