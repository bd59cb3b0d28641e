"""Distinct documents, their split by MD5, and the Parquet file that holds both."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.errors import BadInput

SCHEMA = pa.schema([("text", pa.string()), ("md5", pa.binary(16)), ("split", pa.string())])
BATCH = 4096


def text_md5(text: str) -> bytes:
    """MD5 of the UTF-8 text, which decides the side of a document."""
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def in_slice(digest: bytes, *, slice_per_mille: int) -> bool:
    """Whether a document is held out: its MD5 as an integer modulo 1000 is below the slice (method, section 3)."""
    return int.from_bytes(digest, "big") % 1000 < slice_per_mille


def encodable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which has no UTF-8 form; escapes can leave some."""
    return text.encode(errors="replace").decode()


@dataclass
class Counts:
    """Numbers of documents by what became of them, and the characters of those taken."""

    read: int = 0
    short: int = 0
    duplicates: int = 0
    left: int = 0  # not needed
    train: int = 0
    held_out: int = 0
    characters: int = 0


def distinct_documents(
    texts: Iterable[str], counts: Counts, *, min_characters: int, needed: Callable[[bytes], bool] = lambda digest: True
) -> Iterator[tuple[str, bytes]]:
    """(text, md5) of each distinct document that is long enough and needed; memory holds 16 bytes per document."""
    seen: set[bytes] = set()
    for text in texts:
        counts.read += 1
        if len(text) < min_characters:
            counts.short += 1
            continue
        text = encodable(text)
        digest = text_md5(text)
        if not needed(digest):
            counts.left += 1
        elif digest in seen:
            counts.duplicates += 1
        else:
            seen.add(digest)
            counts.characters += len(text)
            yield text, digest


def unique_documents(texts: Iterable[str], corpus: Corpus, counts: Counts) -> Iterator[tuple[str, bytes]]:
    """(text, md5) of distinct documents up to the limits of the corpus."""
    documents = distinct_documents(texts, counts, min_characters=corpus.min_characters)
    for number, document in enumerate(documents, start=1):
        yield document
        if corpus.documents and number >= corpus.documents:
            return
        if corpus.characters and counts.characters >= corpus.characters:
            return


def split_documents(
    documents: Iterator[tuple[str, bytes]], training: Path, *, slice_per_mille: int, counts: Counts
) -> list[tuple[str, bytes]]:
    """Writes the training documents to a Parquet file, one batch at a time; returns the held-out ones."""
    held_out: list[tuple[str, bytes]] = []
    with pq.ParquetWriter(training, SCHEMA, compression="zstd") as writer:
        while batch := list(islice(documents, BATCH)):
            sides: dict[bool, list[tuple[str, bytes]]] = {True: held_out, False: []}
            for text, digest in batch:
                sides[in_slice(digest, slice_per_mille=slice_per_mille)].append((text, digest))
            counts.train += len(sides[False])
            writer.write_table(document_table([(*document, "train") for document in sides[False]]))
    counts.held_out = len(held_out)
    return held_out


def document_table(rows: list[tuple[str, bytes, str]]) -> pa.Table:
    """A table of `SCHEMA` from (text, md5, split)."""
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def texts_of(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """(text, md5) of one split of a document file, one batch at a time.

    Raises:
        BadInput: the file is missing or damaged.
    """
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=SCHEMA.names):
            for row in batch.to_pylist():
                if row["split"] == split:
                    yield row["text"], row["md5"]
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a whole Parquet file of documents ({str(error).splitlines()[0]})") from None


def train_texts(path: Path) -> Iterator[str]:
    return (text for text, _ in texts_of(path, "train"))
