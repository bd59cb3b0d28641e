"""Token files: flat little-endian integers, document offsets, and windows cut from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budgeted_lora.errors import BadInput
from budgeted_lora.files import (
    atomic_path,
    read_json,
    sha256_file,
    write_record,
)


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped token file.

    Attributes:
        tokens: uint16 or uint32, shape (tokens,).
        offsets: uint64, shape (documents + 1,): document i is tokens[offsets[i]:offsets[i + 1]], with its end token.
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
            verify: whether to compare digests, see `check_digest`; for one process of several that share a job.

        Raises:
            BadInput: a file is missing, or its size or its bytes are not what was written.
        """
        path = Path(path)
        about = read_json(path.with_suffix(".json"), expected="the record of a token file")
        try:
            dtype = np.dtype(about["dtype"]).newbyteorder("<")
            tokens = _map(path, dtype, about["tokens"])
            offsets = _map(path.with_suffix(".idx"), np.dtype("<u8"), about["documents"] + 1)
            digests = about["sha256"], about["offsets_sha256"]
            file = cls(path, tokens, offsets, about["vocab_size"], about["eos_id"], *digests)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{path.with_suffix('.json')}: not the record of a token file ({error})") from None
        if verify:
            file.check_digest()
        return file

    def check_digest(self) -> None:
        """Compares the bytes of both files with the digests recorded when they were written.

        The two billion tokens of the paper's scale, 4 GB, take 2 to 4 s, and are in the page cache then.

        Raises:
            BadInput: they differ.
        """
        for path, expected in ((self.path, self.sha256), (self.path.with_suffix(".idx"), self.offsets_sha256)):
            if sha256_file(path) != expected:
                raise BadInput(f"{path}: its SHA-256 differs from the one recorded when it was written; make it anew")

    def len_windows(self, sequence_length: int, packing: str) -> int:
        """Number of windows: whole ones of a packed file, or documents."""
        return len(self.offsets) - 1 if packing == "document" else len(self.tokens) // sequence_length

    def windows(self, indices: np.ndarray, *, sequence_length: int, packing: str) -> tuple[np.ndarray, np.ndarray]:
        """Windows by number.

        Returns:
            ids, int64 (len(indices), sequence_length), and mask, bool of the same shape, False on padding.
        """
        ids = np.full((len(indices), sequence_length), self.eos_id, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=bool)
        for row, index in enumerate(indices):
            if packing == "document":
                start, end = int(self.offsets[index]), int(self.offsets[index + 1])
                end = min(end, start + sequence_length)
            else:
                start = int(index) * sequence_length
                end = start + sequence_length
            ids[row, : end - start] = self.tokens[start:end]
            mask[row, : end - start] = True
        return ids, mask


@dataclass(frozen=True)
class Windows:
    """The windows of one token file, all cut in one way.

    Attributes:
        sequence_length: tokens per window.
        packing: "packed" joins the documents and cuts them into whole windows; "document" gives each document its own
            window, cut or padded on the right.
    """

    file: TokenFile
    sequence_length: int
    packing: str

    @property
    def count(self) -> int:
        return self.file.len_windows(self.sequence_length, packing=self.packing)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of windows by number, as `TokenFile.windows` returns them."""
        return self.file.windows(indices, sequence_length=self.sequence_length, packing=self.packing)


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    expected = count * dtype.itemsize
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; expected {expected} bytes of tokens") from None
    if size != expected:
        raise BadInput(f"{path}: {size} bytes, expected {expected}; truncated or damaged, make it anew")
    return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype)


def write_tokens(path: Path, documents: Iterator[list[int]], *, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """Writes documents, each closed by the end token, as `x.bin`, `x.idx` and `x.json`; memory holds one at a time.

    Returns:
        the record written to `x.json`: dtype, tokens, documents, sha256, offsets_sha256, vocab_size, eos_id.
    """
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    total, ends = 0, [0]
    with atomic_path(path) as temporary:
        with temporary.open("wb") as stream:
            for ids in documents:
                stream.write(np.asarray([*ids, eos_id], dtype=dtype).tobytes())
                total += len(ids) + 1
                ends.append(total)
        digest = sha256_file(temporary)
    with atomic_path(path.with_suffix(".idx")) as temporary:
        np.asarray(ends, dtype="<u8").tofile(temporary)
        offsets_digest = sha256_file(temporary)
    record = {
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "tokens": total,
        "documents": len(ends) - 1,
        "sha256": digest,
        "offsets_sha256": offsets_digest,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
    }
    write_record(path.with_suffix(".json"), record)
    return record


SIDES = ("train", "held_out")
