"""How much disk a scale fills, in bytes, part by part. Nothing of it is temporary: a file that is made stays."""

from dataclasses import asdict, dataclass
from pathlib import Path

from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import Slots

TEXT_BYTES_PER_TOKEN = 4.5  # of English prose in a vocabulary of some ten thousand entries
DOCSTRINGS = 32_000_000  # bytes of text that the documentation strings of a typical environment hold
COMPRESSED = 0.45  # text in Parquet or Zstandard, as it comes from the Hub and as documents are kept
DOCUMENT_TOKENS = 600  # a document's mean length
OFFSET, DIGEST = 8, 21  # bytes a document: its end in a token file, its record in a shard (`data.digests.RECORD`)
RESERVE = 1.1  # logs, tables, example files, the file system's own


@dataclass(frozen=True)
class Disk:
    """Bytes of each part. `downloads` lie in the Hub's own cache, which may be on another file system.

    Attributes:
        corpus: documents, or the shards that were downloaded.
        tokens: joined token files, those of every shard, and those of teachers that read a mix of their own.
        states: of the runs that are at work at once, teachers' or students', each while it is written anew.
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
    """The disk of a scale, no file of which is there yet.

    Args:
        slots: devices that jobs run on side by side; a run keeps a state until it is done.
    """
    graph = costs.graph
    kept = {kind: sum(job.disk_bytes for job in costs.jobs if job.kind == kind) for kind in ("measure", "cache")}
    return Disk(
        downloads=sum(downloads(costs).values()),
        corpus=int(corpus_bytes(costs)),
        tokens=int(token_bytes(costs)),
        teachers=sum(teacher_bytes(costs, name) for name in graph.teachers),
        students=sum(4 * costs.student(recipe).parameters for recipe in graph.students.values()),
        statistics=kept["measure"],
        caches=kept["cache"],
        cells=sum(cell.disk_bytes for cell in costs.cells),
        states=state_bytes(costs, slots=slots),
    )


def teacher_bytes(costs: ScaleCosts, name: str) -> int:
    """Weights of a teacher: float16 where it was made by us; a checkpoint may be in float32."""
    return (4 if costs.config.teachers in ("hub", "folder") else 2) * costs.teacher(name).parameters


def downloads(costs: ScaleCosts) -> dict[str, int]:
    """Bytes of each teacher in the Hub's cache, from where it is copied. Shards are not: they go to the results."""
    names = costs.graph.teachers if costs.config.teachers == "hub" else []
    return {name: teacher_bytes(costs, name) for name in names}


def state_bytes(costs: ScaleCosts, *, slots: Slots) -> int:
    """Of the largest runs that can be at work at once: teachers are done before students begin."""
    made = costs.graph.teachers if costs.config.teachers == "pretrain" else []
    teachers = sorted((2 * 12 * costs.teacher(name).parameters for name in made), reverse=True)
    students = sorted((cell.state_bytes for cell in costs.cells), reverse=True)
    return max(sum(teachers[: slots.count]), sum(students[: slots.trainings]))


# --- the corpus


def corpus_bytes(costs: ScaleCosts) -> float:
    """What is kept of the text: compressed documents, downloaded shards; nothing of shards that lie on this disk."""
    if costs.config.corpus.shards and not costs.graph.shard_jobs().downloaded:
        return 0.0
    return COMPRESSED * corpus_text(costs)


def token_bytes(costs: ScaleCosts) -> float:
    """Token files with their offsets."""
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
    """Bytes of text in each shard: by its file where that is here, else as many as the training tokens need."""
    jobs, shards = costs.graph.shard_jobs(), costs.config.corpus.shards
    needed = TEXT_BYTES_PER_TOKEN * costs.graph.train_tokens() / shards.train
    files = [jobs.local_files(name) for name in jobs.names]
    return [sum(map(text_in, found)) if found else needed for found in files]


def text_in(path: str) -> float:
    """Bytes of text that a file holds, about."""
    size = Path(path).stat().st_size
    return size / COMPRESSED if path.endswith((".parquet", ".zst")) else float(size)


def held_out_tokens(costs: ScaleCosts) -> int:
    """Tokens that the held-out slice of the text will hold, about."""
    return int(corpus_text(costs) / TEXT_BYTES_PER_TOKEN * costs.config.corpus.slice_per_mille / 1000)
