"""Stage: documents with their split. Exact duplicates go, the MD5 of each text decides which side it is on."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.errors import BadInput

SCHEMA = pa.schema([("text", pa.string()), ("md5", pa.binary(16)), ("split", pa.string())])
BATCH = 4096


def text_md5(text: str) -> bytes:
    """The digest the split is made by: MD5 of the UTF-8 text."""
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def in_slice(digest: bytes, *, slice_per_mille: int) -> bool:
    """Whether a document is held out: MD5 as an integer, modulo 1000, below the slice (method, section 3)."""
    return int.from_bytes(digest, "big") % 1000 < slice_per_mille


def unique_documents(texts: Iterable[str], corpus: Corpus, counts: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Documents long enough and not seen before, until the corpus has as many as it wants.

    Memory holds 16 bytes a document. `counts` collects what was read and left out. Half a surrogate pair, which
    an escape in JSON or in source code can leave, has no UTF-8 form and becomes a question mark.
    """
    seen: set[bytes] = set()
    characters = 0
    for text in texts:
        counts["read"] += 1
        text = text.encode(errors="replace").decode()
        if len(text) < corpus.min_characters:
            counts["short"] += 1
            continue
        digest = text_md5(text)
        if digest in seen:
            counts["duplicates"] += 1
            continue
        seen.add(digest)
        characters += len(text)
        yield text, digest
        if corpus.documents and len(seen) >= corpus.documents:
            return
        if corpus.characters and characters >= corpus.characters:
            return


def split_documents(
    documents: Iterator[tuple[str, bytes]], training: Path, *, slice_per_mille: int, counts: dict[str, int]
) -> list[tuple[str, bytes]]:
    """Writes the training documents to a file, a batch at a time, and returns the held-out ones."""
    held_out: list[tuple[str, bytes]] = []
    with pq.ParquetWriter(training, SCHEMA, compression="zstd") as writer:
        while batch := list(islice(documents, BATCH)):
            kept = []
            for text, digest in batch:
                (held_out if in_slice(digest, slice_per_mille=slice_per_mille) else kept).append((text, digest))
            counts["train"] += len(kept)
            writer.write_table(_table([(*document, "train") for document in kept]))
    return held_out


def _table(rows: list[tuple[str, bytes, str]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else ([], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def texts_of(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """(text, md5) of one split of a document file, row group by row group.

    Raises:
        BadInput: the file is missing or not whole.
    """
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=SCHEMA.names):
            for row in batch.to_pylist():
                if row["split"] == split:
                    yield row["text"], row["md5"]
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a whole Parquet file of documents ({str(error).splitlines()[0]})") from None


def train_texts(path: Path) -> Iterator[str]:
    """The training texts of a document file."""
    return (text for text, _ in texts_of(path, "train"))
