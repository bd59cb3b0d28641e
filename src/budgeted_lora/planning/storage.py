"""How much disk a scale fills, in bytes, part by part."""

from dataclasses import asdict, dataclass
from pathlib import Path

from budgeted_lora.planning.costs import ScaleCosts

TEXT_BYTES_PER_TOKEN = 4.5  # of English prose in a vocabulary of some ten thousand entries
DOCSTRINGS = 32_000_000  # bytes of text that the documentation strings of a typical environment hold
COMPRESSED = 0.45  # Parquet or Zstandard shards of text, as they come from the Hub
DOCUMENT_TOKENS = 600  # a document's mean length; each has an offset of 8 bytes and a digest of 16
RESERVE = 1.1  # logs, tables, example files, the file system's own


@dataclass(frozen=True)
class Disk:
    """Bytes of each part. `downloads` lie in the Hub's own cache, which may be on another file system."""

    downloads: int
    corpus: int
    tokens: int
    teachers: int
    students: int
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


def disk(costs: ScaleCosts, *, jobs_at_once: int) -> Disk:
    """The disk of a scale, no file of which is there yet.

    Args:
        jobs_at_once: training jobs side by side, each of which keeps a state until it is done.
    """
    config, graph = costs.config, costs.graph
    teachers = {name: costs.teacher(name).parameters for name in graph.teachers}
    stored = 4 if config.teachers in ("hub", "folder") else 2  # a checkpoint may be in float32
    weights = stored * sum(teachers.values())
    text, number = corpus_text(costs), 2 if costs.vocab_size <= 2**16 else 4
    tokens = graph.train_tokens() + held_out_tokens(costs)
    from_hub = (weights if config.teachers == "hub" else 0) + (
        COMPRESSED * text if config.corpus.source == "hub" else 0
    )
    states = sorted((cell.state_bytes for cell in costs.cells), reverse=True)[:jobs_at_once]
    return Disk(
        downloads=int(from_hub),
        corpus=int(text),
        tokens=int(tokens * (number + 24 / DOCUMENT_TOKENS)),
        teachers=weights,
        students=sum(job.disk_bytes for job in costs.jobs if job.job.startswith("evaluate untrained")),
        caches=sum(job.disk_bytes for job in costs.jobs if job.job.startswith("cache")),
        cells=sum(cell.disk_bytes for cell in costs.cells),
        states=sum(states),
    )


def corpus_text(costs: ScaleCosts) -> float:
    """Bytes of text that the corpus stage reads and keeps."""
    corpus = costs.config.corpus
    if corpus.shards:
        tokens_of_a_shard = costs.graph.train_tokens() / corpus.shards.train
        return TEXT_BYTES_PER_TOKEN * tokens_of_a_shard * corpus.shards.read
    if corpus.characters:
        return float(corpus.characters)
    if corpus.source == "docstrings":
        return DOCSTRINGS
    local = sum(Path(path).stat().st_size for path in costs.graph.corpus_files())
    return local or TEXT_BYTES_PER_TOKEN * costs.graph.train_tokens()


def held_out_tokens(costs: ScaleCosts) -> int:
    """Tokens that the held-out slice of the text will hold, about."""
    return int(corpus_text(costs) / TEXT_BYTES_PER_TOKEN * costs.config.corpus.slice_per_mille / 1000)
