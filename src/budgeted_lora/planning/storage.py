"""How many bytes of disk each part of a scale fills. No part is temporary: every file stays."""

from dataclasses import asdict, dataclass
from pathlib import Path

from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import Slots

TEXT_BYTES_PER_TOKEN = 4.5  # of English prose, with a vocabulary of tens of thousands
DOCSTRINGS = 32_000_000  # bytes of text in the docstrings of a typical environment
COMPRESSED = 0.45  # size of text in Parquet or Zstandard: files of the Hub, and our documents
DOCUMENT_TOKENS = 600  # a document's mean length
OFFSET, DIGEST = 8, 21  # bytes per document: its end in a token file, its record in a shard (`data.digests.RECORD`)
RESERVE = 1.1  # logs, tables, example files, the file system's own


@dataclass(frozen=True)
class Disk:
    """Bytes of each part. `downloads` are in the Hub's own cache, which may be on another file system.

    Attributes:
        corpus: documents, or downloaded shards.
        tokens: joined token files, those of every shard, and those of teachers with a corpus mix of their own.
        states: of the runs that work at the same time, each while a new state is written beside the old one.
    """

    downloads: int
    corpus: int
    tokens: int
    teachers: int
    students: int
    statistics: int
    caches: int
    cells: int
    states: int

    @property
    def results(self) -> int:
        """Bytes under results/<scale> at the fullest."""
        parts = asdict(self)
        parts.pop("downloads")
        return int(RESERVE * sum(parts.values()))

    @property
    def total(self) -> int:
        return self.results + self.downloads


def disk(costs: ScaleCosts, *, slots: Slots) -> Disk:
    """The disk space of a scale, counted from nothing.

    Args:
        slots: devices on which jobs run side by side; a run keeps a state until it is done.
    """
    graph = costs.graph
    downloaded = not costs.config.corpus.shards or graph.shard_jobs().downloaded
    kept = {kind: sum(job.disk_bytes for job in costs.jobs if job.kind == kind) for kind in ("measure", "cache")}
    return Disk(
        downloads=sum(downloads(costs).values()),
        # Compressed documents or downloaded shards; shards of a local folder are read where they are.
        corpus=int(COMPRESSED * corpus_text(costs)) if downloaded else 0,
        tokens=int(token_bytes(costs)),
        teachers=sum(teacher_bytes(costs, name) for name in graph.teachers),
        students=sum(4 * costs.student(recipe).parameters for recipe in graph.students.values()),
        statistics=kept["measure"],
        caches=kept["cache"],
        cells=sum(cell.disk_bytes for cell in costs.cells),
        states=state_bytes(costs, slots=slots),
    )


def teacher_bytes(costs: ScaleCosts, name: str) -> int:
    """Bytes of a teacher's weights: float16 if made by us; a checkpoint may be in float32."""
    return (4 if costs.config.teachers in ("hub", "folder") else 2) * costs.teacher(name).parameters


def downloads(costs: ScaleCosts) -> dict[str, int]:
    """Bytes of each teacher in the Hub's cache. Shards are not cached there; they go to the results."""
    names = costs.graph.teachers if costs.config.teachers == "hub" else []
    return {name: teacher_bytes(costs, name) for name in names}


def state_bytes(costs: ScaleCosts, *, slots: Slots) -> int:
    """States of the largest runs that can work at the same time; teachers finish before students begin."""
    made = costs.graph.teachers if costs.config.teachers == "pretrain" else []
    teachers = sorted((2 * 12 * costs.teacher(name).parameters for name in made), reverse=True)
    students = sorted((cell.state_bytes for cell in costs.cells), reverse=True)
    return max(sum(teachers[: slots.count]), sum(students[: slots.trainings]))


def token_bytes(costs: ScaleCosts) -> float:
    """Bytes of token files with their offsets."""
    graph, corpus = costs.graph, costs.config.corpus
    number = 2 if costs.vocab_size <= 2**16 else 4
    joined = (graph.train_tokens() + held_out_tokens(costs)) * (number + OFFSET / DOCUMENT_TOKENS)
    if corpus.shards:
        trained_on = sum(shard_texts(costs)[: corpus.shards.train]) / TEXT_BYTES_PER_TOKEN
        each = number + (OFFSET + DIGEST) / DOCUMENT_TOKENS
        return joined + (trained_on + held_out_tokens(costs)) * each
    return joined * (2 if graph.pretraining_data != f"{graph.results}/data" else 1)


def corpus_text(costs: ScaleCosts) -> float:
    """Bytes of text that the corpus stage reads."""
    corpus = costs.config.corpus
    if corpus.shards:
        return sum(shard_texts(costs))
    if corpus.characters:
        return float(corpus.characters)
    if corpus.source == "docstrings":
        return DOCSTRINGS
    local = sum(map(text_in, costs.graph.corpus_files()))
    return local or TEXT_BYTES_PER_TOKEN * costs.graph.train_tokens()


def shard_texts(costs: ScaleCosts) -> list[float]:
    """Bytes of text in each shard: from its file if that is here, else as many as the training tokens need."""
    jobs, shards = costs.graph.shard_jobs(), costs.config.corpus.shards
    needed = TEXT_BYTES_PER_TOKEN * costs.graph.train_tokens() / shards.train
    files = [jobs.local_files(name) for name in jobs.names]
    return [sum(map(text_in, paths)) if paths else needed for paths in files]


def text_in(path: str) -> float:
    """Approximate bytes of text in a file."""
    size = Path(path).stat().st_size
    return size / COMPRESSED if path.endswith((".parquet", ".zst")) else float(size)


def held_out_tokens(costs: ScaleCosts) -> int:
    """Approximate number of tokens in the held-out slice of the text."""
    return int(corpus_text(costs) / TEXT_BYTES_PER_TOKEN * costs.config.corpus.slice_per_mille / 1000)
