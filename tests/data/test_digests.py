"""Duplicates across shards and the proof of the split, range by range, against what a dictionary says."""

from hashlib import md5
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.data.digests import (
    MERGED,
    RECORD,
    Marks,
    digest_records,
    first_occurrences,
    merged,
    open_digests,
    proof,
    remainders,
)
from budgeted_lora.data.documents import in_slice
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.tokenize_corpus import list_digest

SLICE = 300
COMMON = settings(deadline=None, max_examples=60)
DIGESTS = [md5(bytes([i])).digest() for i in range(40)]
DIGESTS += [DIGESTS[0][:8] + DIGESTS[i][8:] for i in range(1, 6)]  # equal in their first half
# Shards as lists of digests, some of them in several shards or twice in one.
worlds = st.lists(st.lists(st.sampled_from(DIGESTS), max_size=25), min_size=1, max_size=5)


def sides(shard: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    held = [digest for digest in shard if in_slice(digest, slice_per_mille=SLICE)]
    return [digest for digest in shard if not in_slice(digest, slice_per_mille=SLICE)], held


def records_of(world: list[list[bytes]]) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    halves = [sides(shard) for shard in world]
    records = [digest_records(b"".join(train), b"".join(held)) for train, held in halves]
    return records, [(len(train), len(held)) for train, held in halves]


@COMMON
@given(worlds, st.integers(1, 9))
def test_the_first_occurrence_stays(world: list[list[bytes]], limit: int) -> None:
    records, counts = records_of(world)
    kept = first_occurrences(records, counts, limit=limit)
    seen: set[bytes] = set()
    for number, shard in enumerate(world):
        for side, digests in enumerate(sides(shard)):
            expected = []
            for digest in digests:
                expected.append(digest not in seen)
                seen.add(digest)
            assert kept.of(number, side).tolist() == expected


@COMMON
@given(worlds, st.integers(1, 9))
def test_ranges_together_are_everything_in_order(world: list[list[bytes]], limit: int) -> None:
    records, _ = records_of(world)
    ranges = list(merged(records, limit=limit))
    together = np.concatenate(ranges)
    names = ("high", "low", "shard", "document")
    assert together.tolist() == sorted(together.tolist(), key=lambda row: [row[MERGED.names.index(n)] for n in names])
    assert len(together) == sum(map(len, world))
    ends = [(a[-1], b[0]) for a, b in pairwise(ranges) if len(a) and len(b)]
    assert all((a["high"], a["low"]) != (b["high"], b["low"]) for a, b in ends)


@COMMON
@given(worlds, st.integers(1, 9))
def test_the_proof_lists_what_was_written(world: list[list[bytes]], limit: int) -> None:
    records, counts = records_of(world)
    said = proof(records, first_occurrences(records, counts), slice_per_mille=SLICE, limit=limit)
    train, held_out = sides(sorted({digest for shard in world for digest in shard}))
    assert said["train_documents"] == said["distinct_train_documents"] == len(train)
    assert said["held_out_documents"] == {"validation": len(held_out), "functions": 0, "overlap": 0}
    assert said["train_md5_list_sha256"] == list_digest(train)
    assert said["held_out_md5_list_sha256"]["validation"] == list_digest(held_out)
    assert said["held_out_md5_list_sha256"]["functions"] == list_digest([])


@pytest.mark.parametrize(
    ("train", "held_out", "expected"),
    [
        ([0, 0], [1], "1 documents written twice"),
        ([0, 1], [], "1 training documents in the slice"),
        ([], [0], "1 held-out ones outside it"),
        ([0], [0], "1 on both sides"),
    ],
)
def test_documents_on_the_wrong_side_are_refused(train: list[int], held_out: list[int], expected: str) -> None:
    outside, inside = sides(DIGESTS)
    names = {0: outside[0], 1: inside[0]}
    records = digest_records(b"".join(names[i] for i in train), b"".join(names[i] for i in held_out))
    with pytest.raises(BadInput, match=expected):
        proof([records], Marks([(len(train), len(held_out))]), slice_per_mille=SLICE)


@COMMON
@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1), st.integers(1, 999))
def test_remainders_are_those_of_the_slice(digests: list[bytes], slice_per_mille: int) -> None:
    records = next(merged([digest_records(b"".join(digests), b"")]))
    numbers = {i: int.from_bytes(digest, "big") % 1000 for i, digest in enumerate(digests)}
    assert remainders(records).tolist() == [numbers[i] for i in records["document"].tolist()]


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "digests.bin"
    records = digest_records(DIGESTS[0], DIGESTS[1])
    records.tofile(path)
    assert open_digests(path, documents=2).tolist() == records.tolist()
    assert sorted(DIGESTS[:2])[0] == path.read_bytes()[:16]
    with pytest.raises(BadInput, match=rf"digests.bin: {2 * RECORD.itemsize} bytes, expected {3 * RECORD.itemsize}"):
        open_digests(path, documents=3)
    path.unlink()
    with pytest.raises(BadInput, match=r"digests.bin: no bytes"):
        open_digests(path, documents=3)
