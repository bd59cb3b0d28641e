"""Distinct documents and the slice."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.data.documents import Counts, distinct_documents, in_slice, text_md5, unique_documents

SLICE = 200
COMMON = settings(deadline=None, max_examples=40)
texts = st.lists(st.text(max_size=12), max_size=30)


@COMMON
@given(texts)
def test_exact_duplicates_go_and_the_order_stays(documents: list[str]) -> None:
    counts = Counts()
    kept = [text for text, _ in unique_documents(documents, Corpus(min_characters=3), counts)]
    assert kept == list(dict.fromkeys(text for text in documents if len(text) >= 3))
    assert counts.read == len(documents) == len(kept) + counts.short + counts.duplicates


@pytest.mark.parametrize(
    ("limit", "expected"), [({"documents": 2}, 2), ({"characters": 5}, 2), ({"characters": 6}, 2), ({}, 4)]
)
def test_limits_count_what_is_kept(limit: dict[str, int], expected: int) -> None:
    counts = Counts()
    source = iter(["aaa", "aaa", "bbb", "ccc", "ddd"])
    assert len(list(unique_documents(source, Corpus(min_characters=1, **limit), counts))) == expected
    assert counts.duplicates == 1


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    counts = Counts()
    [(text, digest)] = unique_documents(["odd \ud800 text"], Corpus(min_characters=1), counts)
    assert text == "odd ? text"
    assert digest == hashlib.md5(b"odd ? text").digest()


@COMMON
@given(st.text(max_size=50), st.integers(1, 999))
def test_slice_is_the_md5_as_a_number_modulo_1000(text: str, slice_per_mille: int) -> None:
    expected = int(hashlib.md5(text.encode()).hexdigest(), 16) % 1000 < slice_per_mille
    assert in_slice(text_md5(text), slice_per_mille=slice_per_mille) == expected


@COMMON
@given(st.binary(min_size=16, max_size=16), st.integers(1, 998))
def test_a_wider_slice_holds_the_narrower_one(digest: bytes, slice_per_mille: int) -> None:
    assert in_slice(digest, slice_per_mille=slice_per_mille) <= in_slice(digest, slice_per_mille=slice_per_mille + 1)


def test_slice_has_the_share_it_names() -> None:
    held = sum(in_slice(text_md5(f"document {i}"), slice_per_mille=40) for i in range(20_000))
    assert abs(held - 800) < 5 * np.sqrt(20_000 * 0.04 * 0.96)


def test_documents_are_read_as_they_are_asked_for() -> None:
    """Memory: of a shard of any length no more is read than the documents taken from it."""
    taken: list[int] = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield f"document {number}"

    documents = distinct_documents(endless(), Counts(), min_characters=1)
    [next(documents) for _ in range(5)]
    assert len(taken) <= 6
