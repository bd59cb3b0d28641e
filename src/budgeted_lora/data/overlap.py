"""The share of a held-out document that occurs word for word in training text, by n-grams of words."""

import zlib
from collections.abc import Iterable

import numpy as np

MULTIPLIER = 0x9E3779B97F4A7C15


def ngram_hashes(text: str, *, n: int) -> np.ndarray:
    """64-bit hashes of the lower-cased word n-grams of a text, in order.

    Returns:
        uint64 array of shape (words - n + 1,), empty for a shorter text.
    """
    codes = np.fromiter((zlib.crc32(word.encode()) for word in text.lower().split()), dtype=np.uint64)
    count = len(codes) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for position in range(n):
            total = total * np.uint64(MULTIPLIER) + codes[position : position + count]
    return total


def shared_fractions(held_out: list[str], training: Iterable[str], *, n: int) -> np.ndarray:
    """For each held-out text, the share of its n-grams that occur in any training text.

    Memory holds only the held-out n-grams; the training texts are read once.

    Returns:
        float array of shape (len(held_out),); 0 for texts shorter than n words.
    """
    grams = [ngram_hashes(text, n=n) for text in held_out]
    distinct = np.unique(np.concatenate(grams)) if grams else np.empty(0, dtype=np.uint64)
    if not len(distinct):
        return np.zeros(len(held_out))
    seen = np.zeros(len(distinct), dtype=bool)
    for text in training:
        hashes = ngram_hashes(text, n=n)
        positions = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
        seen[positions[distinct[positions] == hashes]] = True
    return np.array([seen[np.searchsorted(distinct, gram)].mean() if len(gram) else 0.0 for gram in grams])
