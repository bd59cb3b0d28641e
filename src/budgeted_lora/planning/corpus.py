"""What a scale reads its text from: files, shards and packages that are here, and a held-out slice that will do."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from budgeted_lora.graph import Graph
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.findings import Finding, ok
from budgeted_lora.planning.hub import spans
from budgeted_lora.planning.storage import held_out_tokens

LISTED = 4  # names of files in a line


def check_corpus(graph: Graph, costs: ScaleCosts) -> Iterator[Finding]:
    """A line for everything that is missing, one for the held-out slice."""
    corpus = graph.config.corpus
    if corpus.source == "files" and not graph.corpus_files():
        wanted = f" for {corpus.shards.read} shards" if corpus.shards else ""
        yield Finding("corpus", "missing", f"no file matches {', '.join(corpus.files)}{wanted}", "correct corpus.files")
    elif corpus.shards:
        yield from _local_shards(graph)
    for name in corpus.packages if corpus.source == "docstrings" else []:
        if importlib.util.find_spec(name) is None:
            remedy = "install it, or take it off corpus.packages"
            yield Finding("corpus", "missing", f"package {name!r} is not installed", remedy)
    yield from _held_out(graph, costs)


def _local_shards(graph: Graph) -> Iterator[Finding]:
    """Whether each shard has its one file, where none is downloaded."""
    jobs, corpus = graph.shard_jobs(), graph.config.corpus
    if jobs.downloaded:
        return
    shards = corpus.shards
    needed = f"{shards.read} are read (corpus.shards: train {shards.train}, held_out {shards.read})"
    if corpus.source == "files":
        files = graph.corpus_files()
        if len(files) < shards.read:
            said = f"{len(files)} files match corpus.files ({_some(files)}), {needed}"
            remedy = f"add {shards.read - len(files)}, or read {len(files)} at most: lower corpus.shards"
            yield Finding("corpus", "short", said, remedy)
        return
    found = {shard: jobs.local_files(shard) for shard in jobs.names}
    absent = [shard for shard, files in found.items() if not files]
    if absent:
        said = f"{corpus.hub.name}: no file for {len(absent)} of its shards ({spans(absent)}), {needed}"
        yield Finding("corpus", "missing", said, f"add what matches {jobs.pattern(absent[0])} and so on")
    double = [shard for shard, files in found.items() if len(files) > 1]
    if double:
        said = f"{corpus.hub.name}: several files for shard {double[0]} ({_some(found[double[0]])})"
        yield Finding("corpus", "short", said, "expected one a shard: correct corpus.shards.pattern")


def _some(files: list[str]) -> str:
    """The names of files, at most a few."""
    names = [Path(path).name for path in files]
    return ", ".join(names if len(names) <= LISTED else [*names[: LISTED - 1], f"{len(names) - LISTED + 1} more"])


def _held_out(graph: Graph, costs: ScaleCosts) -> Iterator[Finding]:
    corpus = graph.config.corpus
    if not (corpus.characters or corpus.shards) or (Path(graph.results) / "data/manifest.json").is_file():
        return
    expected, wanted = held_out_tokens(costs), corpus.validation_tokens
    said = f"a slice of {corpus.slice_per_mille} per mille holds about {expected:,} tokens, {wanted:,} are asked for"
    if expected < wanted:
        more = "corpus.shards.held_out" if corpus.shards else "corpus.characters"
        yield Finding("validation", "short", said, f"raise {more}, or lower corpus.validation_tokens")
    else:
        yield ok("validation", said)
