"""Whether texts of an evaluation occur word for word in what was trained on, by n-grams of words."""

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

from budgeted_lora.data.overlap import ngram_hashes
from budgeted_lora.data.tokens import TokenFile

BATCH = 512  # documents decoded together


def document_texts(file: TokenFile, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each document of a token file, as its tokenizer writes it, one batch in memory at a time."""
    for first in range(0, len(file.offsets) - 1, BATCH):
        bounds = file.offsets[first : first + BATCH + 1].astype(np.int64)
        ends = zip(bounds[:-1], bounds[1:] - 1, strict=True)  # without the end token
        yield from tokenizer.decode_batch([file.tokens[a:b].tolist() for a, b in ends], skip_special_tokens=False)


def occurring(texts: list[str], training: Iterable[str], *, n: int) -> list[np.ndarray]:
    """Which word n-grams of each text occur in any training text; case and the kind of space do not matter.

    Memory holds only the n-grams of `texts`; the training texts are read once.

    Returns:
        For each text a bool array of shape (words - n + 1,) in the order of its n-grams, empty for a shorter text.
    """
    grams = [ngram_hashes(text, n=n) for text in texts]
    distinct = np.unique(np.concatenate(grams)) if grams else np.empty(0, dtype=np.uint64)
    seen = np.zeros(len(distinct), dtype=bool)
    if len(distinct):
        for text in training:
            hashes = ngram_hashes(text, n=n)
            places = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
            seen[places[distinct[places] == hashes]] = True
    return [seen[np.searchsorted(distinct, gram)] for gram in grams]
