"""Finds equal documents across shards and proves the split, from sorted digests.

Each shard has one record per document, sorted by digest. All shards are merged one range of digests at a time, so that
memory holds about `limit` records, however many documents there are.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from budgeted_lora.errors import BadInput

# `high` and `low` are the halves of the MD5; `document` is the number of the document in its token file of the shard.
RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("document", "<u4"), ("held_out", "u1")])
MERGED = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<u4"), ("document", "<u4"), ("held_out", "u1")])
LIMIT = 1 << 20


class Marks:
    """One bool per document of all shards, all True at first.

    Attributes:
        flat: bool, shape (all documents,): shard by shard, training documents before held-out ones.
        bounds: where each (shard, side) begins in `flat`; int64, shape (shards * 2 + 1,).
    """

    def __init__(self, counts: Sequence[tuple[int, int]]) -> None:
        self.bounds = np.concatenate([[0], np.cumsum(np.array(counts, np.int64).reshape(-1))])
        self.flat = np.ones(self.bounds[-1], bool)

    def of(self, shard: int, side: int) -> np.ndarray:
        """A view of the marks of one token file: bool, shape (its documents,)."""
        return self.flat[self.bounds[2 * shard + side] : self.bounds[2 * shard + side + 1]]

    def places(self, records: np.ndarray) -> np.ndarray:
        """Index in `flat` of each merged record."""
        return self.bounds[2 * records["shard"].astype(np.int64) + records["held_out"]] + records["document"]


def digest_records(train: bytes, held_out: bytes) -> np.ndarray:
    """Sorted records of a shard: array of `RECORD`, shape (documents,).

    Args:
        train: MD5s of the training documents in the order of their token file, 16 bytes each.
        held_out: the same for the held-out documents.
    """
    records = np.empty((len(train) + len(held_out)) // 16, RECORD)
    records["high"], records["low"] = np.frombuffer(train + held_out, ">u8").reshape(-1, 2).T
    first = len(train) // 16
    records["document"] = np.concatenate([np.arange(first), np.arange(len(records) - first)])
    records["held_out"] = np.arange(len(records)) >= first
    return records[np.lexsort((records["low"], records["high"]))]


def open_digests(path: Path, *, documents: int) -> np.ndarray:
    """The memory-mapped records of a shard.

    Raises:
        BadInput: the file is missing or its size does not fit the number of documents.
    """
    expected = documents * RECORD.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise BadInput(f"{path}: {size or 'no'} bytes, expected {expected}; delete its shard and rerun")
    return np.memmap(path, RECORD, mode="r") if documents else np.empty(0, RECORD)


def merged(shards: Sequence[np.ndarray], *, limit: int = LIMIT) -> Iterator[np.ndarray]:
    """Arrays of `MERGED` of about `limit` records, sorted by digest, shard, document; equal digests share an array."""
    parts = -(-sum(map(len, shards)) // limit)
    bounds = [(part << 64) // parts for part in range(1, parts)]  # MD5s are uniform: equal ranges, equal parts
    starts = [0] * len(shards)
    for bound in [*bounds, None]:
        pieces = []
        for number, records in enumerate(shards):
            end = len(records) if bound is None else bisect_left(records, bound, key=lambda record: int(record["high"]))
            piece = np.empty(end - starts[number], MERGED)
            for name in RECORD.names:
                piece[name] = records[name][starts[number] : end]
            piece["shard"] = number
            pieces.append(piece)
            starts[number] = end
        together = np.concatenate(pieces)
        yield together[np.lexsort([together[name] for name in ("document", "shard", "low", "high")])]


def equal_to_previous(records: np.ndarray) -> np.ndarray:
    """Whether each record has the digest of the record before it: bool, shape (records,)."""
    same = np.zeros(len(records), bool)
    same[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return same


def first_occurrences(shards: Sequence[np.ndarray], counts: Sequence[tuple[int, int]], *, limit: int = LIMIT) -> Marks:
    """Marks each distinct document where it occurs first; `counts` are training and held-out documents per shard."""
    kept = Marks(counts)
    for records in merged(shards, limit=limit):
        kept.flat[kept.places(records[equal_to_previous(records)])] = False
    return kept


def remainders(records: np.ndarray) -> np.ndarray:
    """The digests as numbers modulo 1000: int64, shape (records,)."""
    high, low = (records[name] % np.uint64(1000) for name in ("high", "low"))
    return ((high * np.uint64((1 << 64) % 1000) + low) % np.uint64(1000)).astype(np.int64)


def proof(shards: Sequence[np.ndarray], written: Marks, *, slice_per_mille: int, limit: int = LIMIT) -> dict[str, Any]:
    """Checks that the written documents are distinct and that none is on both sides or on the wrong one.

    Returns:
        The `proof` of the manifest; its lists are the sorted hexadecimal MD5s, one per line.

    Raises:
        BadInput: a document was written twice or on the wrong side.
    """
    lists, counts = (hashlib.sha256(), hashlib.sha256()), [0, 0]
    repeated = both = inside = outside = 0
    for records in merged(shards, limit=limit):
        records = records[written.flat[written.places(records)]]
        same = equal_to_previous(records)
        other_side = np.zeros(len(records), bool)
        other_side[1:] = records["held_out"][1:] != records["held_out"][:-1]
        both += int((same & other_side).sum())
        repeated += int((same & ~other_side).sum())
        in_slice = remainders(records) < slice_per_mille
        inside += int((in_slice & (records["held_out"] == 0)).sum())
        outside += int((~in_slice & (records["held_out"] == 1)).sum())
        for side, digest in enumerate(lists):
            mine = records[records["held_out"] == side]
            counts[side] += len(mine)
            halves = np.stack([mine["high"], mine["low"]], axis=1).astype(">u8")
            digest.update("".join(f"{line}\n" for line in halves.tobytes().hex("\n", 16).split()).encode())
    if repeated or both or inside or outside:
        raise BadInput(
            f"corpus: {repeated} documents written twice, {both} on both sides, {inside} training documents in the "
            f"slice, {outside} held-out ones outside it; expected 0 of each (were all shards made with one slice?)"
        )
    nothing = hashlib.sha256().hexdigest()
    return {
        "train_documents": counts[0],
        "distinct_train_documents": counts[0],
        "held_out_documents": {"validation": counts[1], "functions": 0, "overlap": 0},
        "documents_on_both_sides": both,
        "training_documents_inside_the_slice": inside,
        "held_out_md5_list_sha256": {"validation": lists[1].hexdigest(), "functions": nothing, "overlap": nothing},
        "train_md5_list_sha256": lists[0].hexdigest(),
    }
