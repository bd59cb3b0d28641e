"""Shared n-grams against brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.data.overlap import ngram_hashes, shared_fractions

COMMON = settings(deadline=None, max_examples=40)
sentences = st.lists(st.sampled_from(["a", "b", "c", "D", "d"]), max_size=14).map(" ".join)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    items = text.lower().split()
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@COMMON
@given(st.lists(sentences, max_size=5), st.lists(sentences, max_size=5), st.integers(1, 4))
def test_overlap_against_brute_force(held_out: list[str], training: list[str], n: int) -> None:
    seen = {gram for text in training for gram in ngrams(text, n)}
    shares = [[gram in seen for gram in ngrams(text, n)] for text in held_out]
    expected = [sum(share) / len(share) if share else 0.0 for share in shares]
    assert shared_fractions(held_out, iter(training), n=n).tolist() == pytest.approx(expected)


def test_ngram_hashes_tell_order_and_ignore_case() -> None:
    assert len(ngram_hashes("one two", n=3)) == 0
    assert ngram_hashes("One two THREE", n=3).tolist() == ngram_hashes("one two\nthree", n=3).tolist()
    assert ngram_hashes("one two three", n=3).tolist() != ngram_hashes("two one three", n=3).tolist()
