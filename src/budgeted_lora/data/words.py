"""Token ids word by word, equal to those of whole documents, for tokenizers that see a document as one word.

Mistral's and Llama's tokenizers have no pre-tokenizer: byte-pair encoding runs over the whole document, which costs
more than its length. But a cut between two characters that no merge has side by side changes nothing: a merge across
it would make a piece with both, and there is none, so both sides are merged as if they stood alone. In these
vocabularies a piece has spaces in front only, and characters without a piece become bytes that nothing joins. So a
text falls into words with the spaces before them, most of which were seen before.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

SPACE = "\u2581"
CACHE_BYTES = 100_000_000
ENTRY_BYTES = 200  # of a cached word, besides its characters and ids
BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))
# What the rule must get right, compared once when a tokenizer is opened.
SAMPLES = (
    "", " ", "   ", "one", " one", "one two", "  one  two   ", f"{SPACE}one{SPACE} two", "\n", " \n one\n\n  two\t3 ",
    "def f(x):\n    return x ** 2  # naïve\r\n", "漢字 と 🙂  🙂漢", "a\x00b \u00a0 c", "x" * 300 + " " * 300 + "y",
)  # fmt: skip


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Little-endian uint16, or uint32 where the vocabulary needs it."""
    return np.dtype("<u2" if tokenizer.get_vocab_size() <= 1 << 16 else "<u4")


class WordEncoder:
    """Encodes documents with a tokenizer, word by word where that is proved to be the same.

    Attributes:
        words: the pattern a text is cut with, or None: this tokenizer gets whole documents.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer)
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
        """The ids of each text, without special tokens, as the bytes of an array of `dtype`."""
        texts = list(texts)
        if self.words is None:
            return self._whole(texts)
        # A text that spells a special token is cut there first: left to the tokenizer, as a whole.
        plain = [not self._added.search(text) for text in texts]
        cut = [self._cut(text) if good else [] for text, good in zip(texts, plain, strict=True)]
        self._learn(set().union(*cut).difference(self._cache))
        seen = self._cache.__getitem__
        whole = iter(self._whole([text for text, good in zip(texts, plain, strict=True) if not good]))
        found = [b"".join(map(seen, words)) if good else next(whole) for words, good in zip(cut, plain, strict=True)]
        if self._room < 0:
            self._cache.clear()
            self._room = CACHE_BYTES
        return found

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
    """What a text is cut with, once its spaces are written as U+2581; None where a cut could change the ids.

    Args:
        about: the tokenizer as its tokenizer.json has it.
    """
    model = about["model"]
    plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or not plain or model.get("ignore_merges") or _prefix(about) is None:
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
    """Which texts get a space in front, `always` or `unless there`; None for text handling of another kind."""
    normalizer, before = about["normalizer"], about["pre_tokenizer"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if before is None and normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
        return "always"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    return "unless there" if normalizer is None and before == metaspace else None


def batches(documents: Iterable[tuple[str, Any]], *, characters: int = 1 << 20) -> Iterator[list[tuple[str, Any]]]:
    """Documents in groups of about so many characters; a longer one is a group of its own or closes one."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group
