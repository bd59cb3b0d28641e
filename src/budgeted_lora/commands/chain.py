"""The stages that a cell's results come from: what each writes, what its records must say, what it is made from.

`cells` and `why` compare them with what is there (`status`), `prune` keeps what they write.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgeted_lora.config.recipe import compute_values
from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.contents import ICL_TABLES
from budgeted_lora.workflow import options
from budgeted_lora.workflow.graph import Graph, token_files


@dataclass(frozen=True)
class Stage:
    """A step of a cell's chain: what it writes, and what its records must say.

    Attributes:
        own: whether it belongs to this cell alone; files missing in a shared one do not count against the cell.
        files: all that it writes and later stages or a person read.
        records: values expected in the JSON results, None where values are not compared.
        after: names of the stages that it is made from.
        whole: whether the records hold the expected values and no others.
        structure: the compression.json whose structure was timed.
    """

    name: str
    own: bool
    files: tuple[Path, ...]
    records: Mapping[Path, Mapping[str, Any] | None]
    after: tuple[str, ...] = ()
    whole: bool = False
    structure: Path | None = None


def chain(graph: Graph, cell: str) -> list[Stage]:
    """The stages of a cell, in the order of the work."""
    names = dict.fromkeys((graph.config.first_teacher, graph.recipe_of(cell).teacher))
    stages = [*data_and_teachers(graph, names), student_stage(graph, cell), *statistics_stages(graph, cell)]
    stages += [*cache_stages(graph, cell), train_stage(graph, cell)]
    for variant in graph.cells[cell].variants:
        stages += compressed_stages(graph, cell, variant)
    return stages + speed_stages(graph, cell)


def data_and_teachers(graph: Graph, teachers: Iterable[str]) -> list[Stage]:
    """What cells of these teachers share: corpus, tokenizer, token files and the teachers, in the order of the work."""
    made = [teacher_stage(graph, name) for name in teachers]
    corpus, tokenizer, tokens = corpus_stage(graph), tokenizer_stage(graph), tokens_stage(graph)
    if graph.config.teachers == "pretrain":
        return [corpus, tokenizer, tokens, *teachers_tokens_stages(graph), *made]
    return [*made, tokenizer, corpus, tokens]


def under(folder: str | Path, *names: str) -> tuple[Path, ...]:
    return tuple(Path(folder) / name for name in names)


def corpus_stage(graph: Graph) -> Stage:
    """The documents; of a corpus in shards the tokens of each."""
    if graph.config.corpus.shards:
        return shards_stage(graph)
    files = under(f"{graph.results}/data", "corpus.json", "documents.parquet", "documents.parquet.sha256")
    values = options.corpus(graph) | {"package_versions": graph.package_versions()}
    return Stage("corpus", False, files, {files[0]: values})


def shards_stage(graph: Graph) -> Stage:
    """Every shard, downloaded where it is not at hand, and tokenised."""
    jobs = graph.shard_jobs()
    records = {Path(jobs.record(name)): jobs.reading(name) for name in jobs.names}
    files = (*records, *map(Path, jobs.tokens()))
    if jobs.downloaded:
        downloads = {Path(jobs.source_record(name)): jobs.download(name) for name in jobs.names}
        records |= downloads
        files += (*downloads, *(Path(jobs.source(name)) for name in jobs.names))
    return Stage("corpus", False, files, records, after=("tokenizer",))


def tokenizer_stage(graph: Graph) -> Stage:
    after = {"pretrain": ("corpus",), "shipped": ()}
    files = under(f"{graph.results}/data", "tokenizer", "tokenizer.sha256")
    checkpoint = (f"teacher {graph.config.first_teacher}",)
    return Stage("tokenizer", False, files, {}, after=after.get(graph.config.teachers, checkpoint))


def tokens_stage(graph: Graph) -> Stage:
    values = graph.shard_jobs().joining() if graph.config.corpus.shards else options.mix(graph)
    return mix_stage("tokens", f"{graph.results}/data", values)


def teachers_tokens_stages(graph: Graph) -> list[Stage]:
    """The token files of teachers that are made here and read a mix of their own."""
    if graph.pretraining_data == f"{graph.results}/data":
        return []
    return [mix_stage("tokens for teachers", graph.pretraining_data, options.mix(graph, for_teachers=True))]


def mix_stage(name: str, folder: str, values: Mapping[str, Any]) -> Stage:
    """A data folder: the manifest, then the files that it is about."""
    manifest = Path(folder, "manifest.json")
    return Stage(name, False, (manifest, *map(Path, token_files(folder))), {manifest: values}, ("corpus", "tokenizer"))


def teacher_stage(graph: Graph, name: str) -> Stage:
    config = graph.config
    spec = options.teacher_spec(graph, name)
    if config.teachers == "pretrain":
        values = {"name": name, "spec": spec, "threads": config.threads.training} | options.pretraining(graph)
        [read] = teachers_tokens_stages(graph) or [tokens_stage(graph)]
        after, more = (read.name, "tokenizer"), ("history.csv",)
    else:
        values, after, more = {"name": name, "source": config.teachers} | spec, (), ()
    files = under(f"{graph.results}/teachers/{name}", "teacher.json", "model", "model.sha256", *more)
    return Stage(f"teacher {name}", False, files, {files[0]: values}, after=after)


def student_stage(graph: Graph, cell: str) -> Stage:
    name = graph.student_of(cell)
    files = under(f"{graph.results}/students/{name}", "student.json", "model", "model.sha256")
    after = (f"teacher {graph.config.first_teacher}", *(("tokens",) if graph.calibrated(name) else ()))
    return Stage(f"student {name}", False, files, {files[0]: options.student(graph, name)}, after=after)


def statistics_stages(graph: Graph, cell: str) -> list[Stage]:
    """Second moments and gradients of the untrained student, where the cell or its compression needs them."""
    if not graph.needs_statistics(cell):
        return []
    student, folder = graph.student_of(cell), Path(graph.statistics_of(cell))
    files = under(folder.parent, "statistics.json", "statistics", "statistics.sha256")
    values = options.statistics(graph) | {"threads": graph.config.threads.training}
    return [Stage(f"statistics {student}", False, files, {files[0]: values}, after=(f"student {student}", "tokens"))]


def cache_stages(graph: Graph, cell: str) -> list[Stage]:
    """The teacher's hidden states, if they are cached."""
    after = (f"teacher {graph.recipe_of(cell).teacher}", "tokens")
    files = [under(folder, "cache.json", "hidden.bin", "provenance.json") for folder in graph.cache_folder(cell)]
    return [Stage(f"cache {paths[0].parent.name}", False, paths, {paths[2]: None}, after=after) for paths in files]


def train_stage(graph: Graph, cell: str) -> Stage:
    names = ("train.json", "history.csv", "retention.csv", "trained", "trained.sha256")
    files = tuple(Path(path) for path in graph.of_cells([cell], *names))
    config = graph.config
    how = compute_values(threads=config.threads.training, gpus_per_run=config.gpus_per_run)
    values = options.recipe(graph, cell) | how
    student = graph.student_of(cell)
    after = ("tokens", f"teacher {graph.recipe_of(cell).teacher}", f"student {student}")
    after += (f"statistics {student}",) if graph.statistics_read(cell) else ()
    return Stage("train", True, files, {files[0]: values}, after=after, whole=True)


def compressed_stages(graph: Graph, cell: str, variant: str) -> list[Stage]:
    """Compression by one of the cell's variants, and the scores of what it left."""
    folder = f"{graph.results}/cells/{cell}/compressed/{variant}"
    suffix = "" if variant == DEFAULT_VARIANT else f" {variant}"
    files = under(folder, "compression.json", "model", "model.sha256")
    values = {
        "recipe": options.recipe(graph, cell),
        "settings": options.compression(graph, variant),
        "threads": graph.config.threads.evaluation,
    }
    after = ("train", f"statistics {graph.student_of(cell)}") if graph.statistics_read(cell, variant) else ("train",)
    compress = Stage(f"compress{suffix}", True, files, {files[0]: values}, after=after, whole=True)
    scores, frames = under(folder, "perplexity.json"), under(folder, "perplexity_windows.parquet")
    if variant == DEFAULT_VARIANT and set(graph.cells[cell].tables) & ICL_TABLES:
        scores, frames = (*scores, *under(folder, "icl.json")), (*frames, *under(folder, "icl_examples.parquet"))
    records, after = dict.fromkeys(scores, options.evaluation(graph)), (compress.name, "tokens", "tokenizer")
    score = Stage(f"score{suffix}", True, (*scores, *frames), records, after=after, whole=True)
    return [compress, score, *(asked_stages(graph, cell) if variant == DEFAULT_VARIANT else [])]


def asked_stages(graph: Graph, cell: str) -> list[Stage]:
    """What `evaluation` asks for besides: scores on tasks of lm-evaluation-harness, and the int8 student."""
    timing = {"threads": graph.config.threads.timing}
    known = {
        "lm_eval": ("tasks", options.tasks(graph), ("compress", "tokenizer")),
        "int8": ("int8", options.int8(graph) | timing, ("compress", "tokens")),
    }
    stages = []
    for what, (name, values, after) in known.items():
        if cell in graph.asked(what):
            (file,) = map(Path, graph.of_cells([cell], f"@{what}.json"))
            stages.append(Stage(name, True, (file,), {file: values}, after=after, whole=True))
    return stages


def speed_stages(graph: Graph, cell: str) -> list[Stage]:
    """The timing of the cell's structure, if it is measured. A planned structure is shared by several cells."""
    structure = graph.timed().get(graph.structure_of(cell))
    if structure is None:
        return []
    (file,) = under(f"{graph.results}/speed", f"{structure.name}.json")
    how = graph.config.speed.model_dump(mode="json") | {"threads": graph.config.threads.timing}
    records = {file: options.timed_student(graph, structure.name) | how}
    if structure.plan:
        return [Stage(f"speed {structure.name}", False, (file,), records)]
    (compressed,) = map(Path, graph.of_cells([cell], "@compression.json"))
    return [Stage("speed", True, (file,), records, after=("compress",), structure=compressed)]
