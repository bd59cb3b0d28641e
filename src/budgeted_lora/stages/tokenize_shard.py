"""Stage: one shard of a large corpus, from its file to packed tokens, in one pass and in bounded memory."""

import glob
import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from budgeted_lora.data.digests import digest_records
from budgeted_lora.data.documents import in_slice
from budgeted_lora.data.shard_reader import read_shard
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import SIDES
from budgeted_lora.data.words import WordEncoder, batches
from budgeted_lora.errors import BadInput
from budgeted_lora.files import (
    atomic_path,
    read_json,
    sha256_file,
    write_record,
)
from budgeted_lora.models.device import peak_resident_bytes
from budgeted_lora.provenance import Clock, write_result

FILES = (*(f"{side}.{ending}" for side in SIDES for ending in ("bin", "idx")), "digests.bin")


@dataclass
class Packer:
    """Appends documents to a token file, each closed by the end token; memory holds their ends and digests."""

    stream: BinaryIO
    end: bytes
    tokens: int = 0
    ends: array = field(default_factory=lambda: array("Q", [0]))
    digests: bytearray = field(default_factory=bytearray)

    def add(self, ids: bytes, digest: bytes) -> None:
        self.stream.write(ids)
        self.stream.write(self.end)
        self.tokens += len(ids) // len(self.end) + 1
        self.ends.append(self.tokens)
        self.digests += digest


@contextmanager
def packing(path: Path, *, dtype: np.dtype, vocab_size: int, eos_id: int) -> Iterator[Packer]:
    """Writes `x.bin`, and once it is whole `x.idx` and `x.json`, in the form that `TokenFile` reads."""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as stream:
            packer = Packer(stream, np.array([eos_id], dtype).tobytes())
            yield packer
        digest = sha256_file(temporary)
    with atomic_path(path.with_suffix(".idx")) as temporary:
        np.asarray(packer.ends, "<u8").tofile(temporary)
        offsets_digest = sha256_file(temporary)
    record = {"dtype": dtype.name, "tokens": packer.tokens, "documents": len(packer.ends) - 1, "sha256": digest}
    record |= {"offsets_sha256": offsets_digest, "vocab_size": vocab_size, "eos_id": eos_id}
    write_record(path.with_suffix(".json"), record)


@dataclass
class Counts:
    """Documents of a shard; `train` and `held_out` are those written, `left` training ones not asked for."""

    read: int = 0
    short: int = 0
    duplicates: int = 0
    left: int = 0
    train: int = 0
    held_out: int = 0
    characters: int = 0


def with_digest(text: str) -> tuple[str, bytes]:
    """A text and its MD5; half a surrogate pair, which has no UTF-8 form, becomes a question mark."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = text.encode(errors="replace")
        text = data.decode()
    return text, hashlib.md5(data, usedforsecurity=False).digest()


def documents_of(
    texts: Iterable[str], counts: Counts, *, training: bool, min_characters: int, slice_per_mille: int
) -> Iterator[tuple[str, tuple[bytes, bool]]]:
    """(text, (md5, whether it is held out)) of each document of the shard that is wanted, once.

    Args:
        training: take training documents too, not the slice only.
        min_characters: shorter documents are left out.
    """
    seen: set[bytes] = set()
    for text in texts:
        counts.read += 1
        if len(text) < min_characters:
            counts.short += 1
            continue
        text, digest = with_digest(text)
        held_out = in_slice(digest, slice_per_mille=slice_per_mille)
        if not (held_out or training):
            counts.left += 1
        elif digest in seen:
            counts.duplicates += 1
        else:
            seen.add(digest)
            counts.characters += len(text)
            yield text, (digest, held_out)


def shard_file(source: str) -> Path:
    """The one file that a shard's pattern or path names.

    Raises:
        BadInput: none, or several.
    """
    found = sorted(glob.glob(source)) or [path for path in [source] if Path(path).is_file()]
    if len(found) != 1:
        listed = f": {', '.join(found[:3])}" if found else ""
        raise BadInput(f"{source}: {len(found)} files match this shard, expected one{listed}")
    return Path(found[0])


def where_from(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a shard's file; of a downloaded one the Hub's name, once its bytes are compared.

    Raises:
        BadInput: the file is not the one that was downloaded.
    """
    about = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    record = path.with_name("source.json")
    if path.name.startswith("source.") and record.is_file():
        fetched = read_json(record)
        if fetched.get("sha256") != about["sha256"]:
            raise BadInput(f"{path}: its SHA-256 differs from the one in {record}; damaged, download it anew")
        about |= {"file": fetched["file"], **fetched["provenance"]["values"]["hub"]}
    return about


def tokenize_shard(*, source: str, tokenizer: Path, out: Path, values: dict[str, Any], scale: str) -> None:
    """Writes train and held_out token files, digests.bin (see `digests.RECORD`) and shard.json into `out`.

    Args:
        source: the shard's file; a pattern that one file matches.
        values: text_field, min_characters, slice_per_mille, training (see `documents_of`), number.

    Raises:
        BadInput: no such file, or it is damaged; file and row or line are named.
    """
    clock, counts = Clock(), Counts()
    path = shard_file(source)
    origin = where_from(path)
    opened, end = open_tokenizer(tokenizer)
    encoder = WordEncoder(opened)
    form = {"dtype": encoder.dtype, "vocab_size": opened.get_vocab_size(), "eos_id": end}
    rule = {name: values[name] for name in ("training", "min_characters", "slice_per_mille")}
    documents = documents_of(read_shard(path, text_field=values["text_field"]), counts, **rule)
    with packing(out / "train.bin", **form) as train, packing(out / "held_out.bin", **form) as held_out:
        for group in batches(documents):
            encoded = encoder.encode(text for text, _ in group)
            for ids, (_, (digest, held)) in zip(encoded, group, strict=True):
                (held_out if held else train).add(ids, digest)
    counts.train, counts.held_out = len(train.ends) - 1, len(held_out.ends) - 1
    with atomic_path(out / "digests.bin") as temporary:
        digest_records(bytes(train.digests), bytes(held_out.digests)).tofile(temporary)
    payload = {
        "documents": vars(counts),
        "tokens": {"train": train.tokens, "held_out": held_out.tokens},
        "source": origin,
        "tokenizer": {"vocab_size": form["vocab_size"], "end_id": end, "sha256": sha256_file(tokenizer)},
        "encoded": "whole documents" if encoder.words is None else "word by word",
        "files": {name: sha256_file(out / name) for name in FILES},
        "peak_memory_bytes": peak_resident_bytes(),
    }
    write_result(out / "shard.json", payload, scale=scale, cell=None, values=values, inputs=[tokenizer], clock=clock)
