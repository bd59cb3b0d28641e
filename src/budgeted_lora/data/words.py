"""Tokenises word by word, with the same ids as whole documents, for tokenizers that treat a document as one word.

The tokenizers of Mistral and Llama have no pre-tokenizer: byte-pair encoding runs over the whole document, in more than
linear time. A cut between two characters that no merge has side by side does not change the ids: a merge across the cut
would make a piece that contains both characters, and no such piece exists. In these vocabularies a piece has spaces
only in front, and characters without a piece become bytes that no merge joins. So a text can be cut into words, each
with the spaces before it, and most words are in the cache.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from budgeted_lora.data.tokenizer import vocabulary_size
from budgeted_lora.data.tokens import token_dtype

SPACE = "\u2581"
CACHE_BYTES = 100_000_000
ENTRY_BYTES = 200  # memory per cached word besides its characters and ids
BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))
# Compared with whole-document encoding once, when a tokenizer is opened.
SAMPLES = (
    "", " ", "   ", "one", " one", "one two", "  one  two   ", f"{SPACE}one{SPACE} two", "\n", " \n one\n\n  two\t3 ",
    "def f(x):\n    return x ** 2  # naïve\r\n", "漢字 と 🙂  🙂漢", "a\x00b \u00a0 c", "x" * 300 + " " * 300 + "y",
)  # fmt: skip


class WordEncoder:
    """Encodes documents with a tokenizer, word by word if that provably gives the same ids.

    Attributes:
        words: the pattern of a word; None if this tokenizer must see whole documents.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = token_dtype(vocabulary_size(tokenizer))
        about = json.loads(tokenizer.to_str())
        self._model_alone = Tokenizer(tokenizer.model)
        self._always_prefixed = _prefix(about) == "always"
        self._cache: dict[str, bytes] = {}
        self._room = CACHE_BYTES
        added = [token["content"] for token in about["added_tokens"]]
        self._added = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        self.words = word_pattern(about)
        if self.words is not None and self.encode(SAMPLES) != self._whole(SAMPLES):
            self.words = None

    def encode(self, texts: Iterable[str]) -> list[bytes]:
        """The ids of each text as the bytes of an array of `dtype`, without special tokens."""
        texts = list(texts)
        if self.words is None:
            return self._whole(texts)
        # The tokenizer first cuts a text at every special token that it spells, so it must see such a text whole.
        special = {number: text for number, text in enumerate(texts) if self._added.search(text)}
        cut = {number: self._cut(text) for number, text in enumerate(texts) if number not in special}
        self._learn(set().union(*cut.values()).difference(self._cache))
        encoded = dict(zip(special, self._whole(special.values()), strict=True))
        encoded |= {number: b"".join(map(self._cache.__getitem__, words)) for number, words in cut.items()}
        if self._room < 0:
            self._cache.clear()
            self._room = CACHE_BYTES
        return [encoded[number] for number in range(len(texts))]

    def _cut(self, text: str) -> list[str]:
        spaced = text.replace(" ", SPACE)
        if spaced and (self._always_prefixed or not spaced.startswith(SPACE)):
            spaced = SPACE + spaced
        return self.words.findall(spaced)

    def _learn(self, words: set[str]) -> None:
        new = list(words)
        encodings = self._model_alone.encode_batch_fast(new, add_special_tokens=False)
        for word, encoding in zip(new, encodings, strict=True):
            ids = np.array(encoding.ids, self.dtype).tobytes()
            self._cache[word] = ids
            self._room -= ENTRY_BYTES + len(word) + len(ids)

    def _whole(self, texts: Iterable[str]) -> list[bytes]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype).tobytes() for encoding in encodings]


def word_pattern(about: dict[str, Any]) -> re.Pattern[str] | None:
    """The pattern of a word in a text whose spaces are written as U+2581; None if a cut could change the ids.

    Args:
        about: content of tokenizer.json.
    """
    model = about["model"]
    special = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or any(model.get(key) for key in special) or _prefix(about) is None:
        return None
    if not model.get("byte_fallback") or not model["vocab"].keys() >= BYTES:
        return None  # an unknown character would be one token with its neighbours
    if any(SPACE in token["content"] or " " in token["content"] for token in about["added_tokens"]):
        return None
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    pieces = ["".join(pair) for pair in merges]
    if any(BYTES & set(pair) for pair in merges) or any(re.search(f"[^{SPACE}]{SPACE}", piece) for piece in pieces):
        return None
    joined = "".join(map(re.escape, sorted(set("".join(pieces)) - {SPACE})))
    if not joined:
        return None
    return re.compile(f"{SPACE}*[{joined}]+|{SPACE}+|[^{joined}{SPACE}]")


def _prefix(about: dict[str, Any]) -> str | None:
    """Whether texts get a space in front, `always` or `unless present`; None for any other normalisation."""
    normalizer, before = about["normalizer"], about["pre_tokenizer"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if before is None and normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
        return "always"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    return "unless present" if normalizer is None and before == metaspace else None


def batches(documents: Iterable[tuple[str, Any]], *, characters: int = 1 << 20) -> Iterator[list[tuple[str, Any]]]:
    """Groups of documents; a group is complete when it has at least `characters` characters."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group
