"""Distinct documents, their split by MD5, and the Parquet file that holds both."""

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
    """MD5 of the UTF-8 text, which decides the side of a document."""
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def in_slice(digest: bytes, *, slice_per_mille: int) -> bool:
    """Whether a document is held out: its MD5 as an integer modulo 1000 is below the slice (method, section 3)."""
    return int.from_bytes(digest, "big") % 1000 < slice_per_mille


def encodable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which escapes in JSON or source code can leave.

    A lone surrogate has no UTF-8 form. The length does not change.
    """
    return text.encode(errors="replace").decode()


def unique_documents(texts: Iterable[str], corpus: Corpus, counts: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """(text, md5) of distinct documents that are long enough, until the limits of the corpus are reached.

    Memory holds 16 bytes per document.

    Args:
        counts: gets the number of texts under read, short and duplicates.
    """
    seen: set[bytes] = set()
    characters = 0
    for text in texts:
        counts["read"] += 1
        text = encodable(text)
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
    """Writes the training documents to a Parquet file, one batch at a time; returns the held-out ones.

    Args:
        counts: gets the number of training documents under train.
    """
    held_out: list[tuple[str, bytes]] = []
    with pq.ParquetWriter(training, SCHEMA, compression="zstd") as writer:
        while batch := list(islice(documents, BATCH)):
            sides: dict[bool, list[tuple[str, bytes]]] = {True: held_out, False: []}
            for text, digest in batch:
                sides[in_slice(digest, slice_per_mille=slice_per_mille)].append((text, digest))
            counts["train"] += len(sides[False])
            writer.write_table(document_table([(*document, "train") for document in sides[False]]))
    return held_out


def document_table(rows: list[tuple[str, bytes, str]]) -> pa.Table:
    """A table of `SCHEMA` from (text, md5, split)."""
    columns = list(zip(*rows, strict=True)) if rows else ([], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


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
