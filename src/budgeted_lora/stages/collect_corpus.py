"""Stage collect_corpus: read the corpus, drop exact duplicates, split it by MD5."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.types import Positive
from budgeted_lora.data import documents
from budgeted_lora.data.overlap import shared_fractions
from budgeted_lora.data.readers import local_files, package_versions, read_documents
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_path, write_digest
from budgeted_lora.provenance import Clock, write_result


def collect_corpus(*, corpus: Corpus, out: Path, record: Path, scale: str, processes: Positive = 1) -> None:
    """Writes the documents (Parquet: text, md5, split) and a JSON record of their split.

    `split` is train, validation or overlap: held out, but excluded for sharing too many n-grams with training text.

    Raises:
        BadInput: no document to read, or none in the slice.
    """
    clock, counts = Clock(), documents.Counts()
    distinct = documents.unique_documents(read_documents(corpus, processes=processes), corpus, counts)
    with atomic_path(out) as temporary, TemporaryDirectory(dir=out.parent, prefix=".collect.", suffix=".tmp") as folder:
        training = Path(folder) / "train.parquet"
        held_out = documents.split_documents(distinct, training, slice_per_mille=corpus.slice_per_mille, counts=counts)
        if not held_out or not counts.train:
            raise BadInput(
                f"corpus: {counts.read} documents read, {len(held_out)} in a slice of {corpus.slice_per_mille} per "
                "mille; expected at least one document on each side (widen corpus.slice_per_mille or read more)"
            )
        shares = shared_fractions(
            [text for text, _ in held_out], documents.train_texts(training), n=corpus.overlap_ngram
        )
        marked = [
            (text, digest, "overlap" if share > corpus.overlap_share else "validation")
            for (text, digest), share in zip(held_out, shares, strict=True)
        ]
        with pq.ParquetWriter(temporary, documents.SCHEMA, compression="zstd") as writer:
            for batch in pq.ParquetFile(training).iter_batches(documents.BATCH):
                writer.write_batch(batch)
            writer.write_table(documents.document_table(marked))
    overlapping = sum(split == "overlap" for *_, split in marked)
    kept_shares = shares[shares <= corpus.overlap_share]
    versions = package_versions(corpus.packages) if corpus.source == "docstrings" else None
    payload: dict[str, Any] = {
        "source": corpus.source,
        "package_versions": versions,
        "hub": corpus.hub.model_dump() if corpus.source == "hub" else None,
        "hash_rule": f"int(md5(utf8(text)), 16) % 1000 < {corpus.slice_per_mille}",
        "documents": {
            **{name: getattr(counts, name) for name in ("read", "short", "duplicates", "train", "held_out")},
            "validation": len(held_out) - overlapping,
            "overlap": overlapping,
        },
        "overlap": {
            "ngram": corpus.overlap_ngram,
            "largest_share_kept": corpus.overlap_share,
            "mean_share_before": float(shares.mean()),
            "mean_share_after": float(kept_shares.mean()) if len(kept_shares) else None,
        },
    }
    values, inputs = corpus.model_dump() | {"package_versions": versions}, [out, *local_files(corpus)]
    write_result(record, payload, scale=scale, cell=None, values=values, inputs=inputs, clock=clock)
    write_digest(out)
