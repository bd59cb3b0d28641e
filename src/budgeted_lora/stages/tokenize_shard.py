"""Stage tokenize_shard: read, split and tokenise one shard of a large corpus in one pass and bounded memory."""

import glob
from pathlib import Path
from typing import Any

from budgeted_lora.data.digests import digest_records
from budgeted_lora.data.documents import Counts, distinct_documents, in_slice
from budgeted_lora.data.readers import read_file
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import SIDES, token_writer
from budgeted_lora.data.words import WordEncoder, batches
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_path, read_json, sha256_file
from budgeted_lora.models.device import peak_resident_bytes
from budgeted_lora.provenance import Clock, write_result

FILES = (*(f"{side}.{ending}" for side in SIDES for ending in ("bin", "idx")), "digests.bin")


def shard_file(source: str) -> Path:
    """The one file that matches a pattern or path. Raises BadInput if no file or several files match."""
    if Path(source).is_file():
        return Path(source)
    paths = sorted(glob.glob(source))
    if len(paths) != 1:
        listed = f": {', '.join(paths[:3])}" if paths else ""
        raise BadInput(f"{source}: {len(paths)} files match this shard, expected one{listed}")
    return Path(paths[0])


def source_record(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a shard's file, and its source on the Hub. Raises BadInput if it has changed since."""
    about = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    record = path.with_name("source.json")
    if path.name.startswith("source.") and record.is_file():
        fetched = read_json(record)
        if fetched.get("sha256") != about["sha256"]:
            raise BadInput(f"{path}: checksum mismatch with {record}; delete both and rerun")
        about |= {"file": fetched["file"], **fetched["provenance"]["values"]["hub"]}
    return about


def tokenize_shard(*, source: str, tokenizer: Path, out: Path, reading: dict[str, Any], scale: str) -> None:
    """Writes train and held_out token files, digests.bin (see `digests.RECORD`) and shard.json into `out`.

    Args:
        source: the shard's file, or a pattern that only it matches.
        reading: text_field, min_characters, slice_per_mille, training (whether training documents are needed).

    Raises:
        BadInput: no such file, or it is damaged; names the file and the row or line.
    """
    clock, counts = Clock(), Counts()
    path = shard_file(source)
    source_about = source_record(path)
    opened = open_tokenizer(tokenizer)
    encoder = WordEncoder(opened.tokenizer)

    def is_held_out(digest: bytes) -> bool:
        return in_slice(digest, slice_per_mille=reading["slice_per_mille"])

    documents = distinct_documents(
        read_file(path, text_field=reading["text_field"]),
        counts,
        min_characters=reading["min_characters"],
        needed=lambda digest: reading["training"] or is_held_out(digest),
    )
    about = {"vocab_size": opened.vocab_size, "eos_id": opened.end_id}
    digests = {False: bytearray(), True: bytearray()}
    with token_writer(out / "train.bin", **about) as train, token_writer(out / "held_out.bin", **about) as held_out:
        writers = {False: train, True: held_out}
        for group in batches(documents):
            encoded = encoder.encode(text for text, _ in group)
            for ids, (_, digest) in zip(encoded, group, strict=True):
                side = is_held_out(digest)
                writers[side].add(ids)
                digests[side] += digest
    counts.train, counts.held_out = train.document_count, held_out.document_count
    with atomic_path(out / "digests.bin") as temporary:
        digest_records(bytes(digests[False]), bytes(digests[True])).tofile(temporary)
    payload = {
        "documents": vars(counts),
        "tokens": {"train": train.token_count, "held_out": held_out.token_count},
        "source": source_about,
        "tokenizer": opened.record(),
        "encoded": "whole documents" if encoder.words is None else "word by word",
        "files": {name: sha256_file(out / name) for name in FILES},
        "peak_memory_bytes": peak_resident_bytes(),
    }
    inputs = [tokenizer] if "revision" in source_about else [tokenizer, path]  # a download may be removed later
    write_result(out / "shard.json", payload, scale=scale, cell=None, values=reading, inputs=inputs, clock=clock)
