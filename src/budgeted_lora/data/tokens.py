"""Token files: flat little-endian integers, document offsets, and windows cut from them."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from budgeted_lora.config.messages import describe
from budgeted_lora.config.types import Count, Positive
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_path, read_json, sha256_file, write_record

SIDES = ("train", "held_out")
BLOCK = 1 << 22  # tokens copied at a time


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16, or uint32 if the vocabulary needs it."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Record(BaseModel):
    """What `x.json` says of the files `x.bin` and `x.idx`."""

    model_config = ConfigDict(strict=True)

    dtype: Literal["uint16", "uint32"]
    tokens: Count
    documents: Count
    vocab_size: Positive
    eos_id: Count
    sha256: str
    offsets_sha256: str


def _record(path: Path) -> Record:
    try:
        return Record.model_validate(read_json(path, expected="the record of a token file"))
    except ValidationError as error:
        raise BadInput(f"{path}: not the record of a token file ({describe(error)})") from None


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped token file.

    Attributes:
        tokens: uint16 or uint32, shape (tokens,).
        offsets: uint64, shape (documents + 1,): document i is tokens[offsets[i]:offsets[i + 1]], with its end token.
        sha256: digest of the token file recorded when it was written.
        offsets_sha256: the same for the file of offsets.
    """

    path: Path
    tokens: np.ndarray
    offsets: np.ndarray
    vocab_size: int
    eos_id: int
    sha256: str
    offsets_sha256: str

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> "TokenFile":
        """Opens `x.bin` with `x.idx` and `x.json` beside it.

        Args:
            verify: whether to call `check_digest`; one of several processes that share a job is enough.

        Raises:
            BadInput: a file is missing, or its size or checksum is wrong.
        """
        path = Path(path)
        about = _record(path.with_suffix(".json"))
        tokens = _map(path, np.dtype(about.dtype).newbyteorder("<"), about.tokens)
        offsets = _map(path.with_suffix(".idx"), np.dtype("<u8"), about.documents + 1)
        file = cls(path, tokens, offsets, about.vocab_size, about.eos_id, about.sha256, about.offsets_sha256)
        if verify:
            file.check_digest()
        return file

    def check_digest(self) -> None:
        """Compares both files with the checksums recorded when they were written.

        This takes 2 to 4 s for the two billion tokens (4 GB) of the paper's scale and leaves them in the page cache.

        Raises:
            BadInput: a checksum differs.
        """
        for path, expected in ((self.path, self.sha256), (self.path.with_suffix(".idx"), self.offsets_sha256)):
            if sha256_file(path) != expected:
                raise BadInput(f"{path}: checksum mismatch (SHA-256); delete it and rerun")


@dataclass(frozen=True)
class Windows:
    """The windows of one token file under one packing.

    Attributes:
        sequence_length: tokens per window.
        packing: "packed" joins the documents and cuts them into whole windows; "document" gives each document its own
            window, cut or padded on the right.
        skipped: windows at the file's start that are left out; window 0 is the one after them.
    """

    file: TokenFile
    sequence_length: int
    packing: str
    skipped: int = 0

    @property
    def count(self) -> int:
        documents = self.packing == "document"
        whole = len(self.file.offsets) - 1 if documents else len(self.file.tokens) // self.sequence_length
        return max(0, whole - self.skipped)

    def refuse_empty(self) -> None:
        """Raises BadInput if the file holds no window."""
        if not self.count:
            after = f" after the first {self.skipped}" if self.skipped else ""
            raise BadInput(
                f"{self.file.path}: holds no window of {self.sequence_length} tokens{after}; expected at least one"
            )

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows by number.

        Returns:
            ids, int64 (len(indices), sequence_length), and mask, bool of the same shape, False on padding.
        """
        ids = np.full((len(indices), self.sequence_length), self.file.eos_id, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=bool)
        for row, index in enumerate(np.asarray(indices) + self.skipped):
            if self.packing == "document":
                start, end = int(self.file.offsets[index]), int(self.file.offsets[index + 1])
                end = min(end, start + self.sequence_length)
            else:
                start = int(index) * self.sequence_length
                end = start + self.sequence_length
            ids[row, : end - start] = self.file.tokens[start:end]
            mask[row, : end - start] = True
        return ids, mask


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    expected = count * dtype.itemsize
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; expected {expected} bytes of tokens") from None
    if size != expected:
        raise BadInput(f"{path}: {size} bytes, expected {expected}; truncated or damaged, delete it and rerun")
    return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype)


class TokenWriter:
    """Appends documents to a token file; memory holds only `ends`, the end of each document in tokens after a first 0.

    `record` is the content of `x.json` once `token_writer` has closed the file.
    """

    def __init__(self, stream: BinaryIO, *, dtype: np.dtype, eos_id: int) -> None:
        self._stream = stream
        self._end = np.array([eos_id], dtype).tobytes()
        self.ends = array("Q", [0])
        self.record: dict[str, Any] = {}

    @property
    def token_count(self) -> int:
        return self.ends[-1]

    @property
    def document_count(self) -> int:
        return len(self.ends) - 1

    def add(self, ids: bytes) -> None:
        """Appends one document, ids of the file's dtype without the end token."""
        self._stream.write(ids)
        self._stream.write(self._end)
        self.ends.append(self.token_count + len(ids) // len(self._end) + 1)

    def copy(self, file: TokenFile, start: int, stop: int) -> None:
        """Appends documents start to stop - 1 of another token file of the same dtype, `BLOCK` tokens at a time."""
        first, last = int(file.offsets[start]), int(file.offsets[stop])
        ends = file.offsets[start + 1 : stop + 1] - np.uint64(first) + np.uint64(self.token_count)
        for block in range(first, last, BLOCK):
            self._stream.write(file.tokens[block : min(last, block + BLOCK)].tobytes())
        self.ends.frombytes(ends.astype("=u8").tobytes())


@contextmanager
def token_writer(path: Path, *, vocab_size: int, eos_id: int) -> Iterator[TokenWriter]:
    """Writes `x.bin`, and `x.idx` and `x.json` once it is whole, in the form that `TokenFile` reads."""
    dtype = token_dtype(vocab_size)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as stream:
            writer = TokenWriter(stream, dtype=dtype, eos_id=eos_id)
            yield writer
        digest = sha256_file(temporary)
    with atomic_path(path.with_suffix(".idx")) as temporary:
        np.asarray(writer.ends, dtype="<u8").tofile(temporary)
        offsets_digest = sha256_file(temporary)
    writer.record = {
        "dtype": dtype.name, "tokens": writer.token_count, "documents": writer.document_count, "sha256": digest,
        "offsets_sha256": offsets_digest, "vocab_size": vocab_size, "eos_id": eos_id,
    }  # fmt: skip
    write_record(path.with_suffix(".json"), writer.record)


def write_tokens(path: Path, documents: Iterator[list[int]], *, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """Writes documents as a token file, one in memory at a time; returns the content of `x.json`."""
    dtype = token_dtype(vocab_size)
    with token_writer(path, vocab_size=vocab_size, eos_id=eos_id) as writer:
        for ids in documents:
            writer.add(np.asarray(ids, dtype=dtype).tobytes())
    return writer.record
