"""How many bytes of text each token stands for, so that perplexities under different tokenizers can be compared."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgeted_lora.data.tokenizer import Opened

SPACE = "\u2581"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# A tokenizer whose tokens do not add up to these texts changes or loses text.
SAMPLES = (
    "one", "One two", "one  two   ", "a\nb\n\n  c\t3\r\n", "def f(x):\n    return x ** 2  # na\u00efve",
    "e\u0301 \u00e9", "\u6f22\u5b57 \u3068 \U0001f642", "a\x00b \u00a0 c", "x" * 50 + " " * 50 + "y",
)  # fmt: skip


@dataclass(frozen=True)
class TokenBytes:
    """UTF-8 bytes of text by token.

    Attributes:
        lengths: int64, shape (largest id + 1,): bytes of each token; 0 for the end token, which stands for no text.
        added: bytes that the tokenizer puts before a document (the space of Mistral's and Llama's): its first token
            stands for so many bytes less. Such a tokenizer may write a document that begins with a space as it writes
            the same document without it; then that one byte is not counted.
        end_id: the token between two documents.
    """

    lengths: np.ndarray
    added: int
    end_id: int

    def of(self, ids: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Bytes of tokens: int64 of the shape of `ids`.

        Args:
            ids: tokens, integers of any shape.
            before: the token before each, of the same shape; the end token where a document begins.
        """
        begins = (before == self.end_id) & (ids != self.end_id)
        return self.lengths[ids] - self.added * begins


def token_bytes(opened: Opened) -> TokenBytes | None:
    """The bytes of each token of a byte-level tokenizer, or of one that falls back to bytes.

    Bytes are those of the text as the tokenizer has normalised it. A token that is spelled out in a text counts its
    spelling, but for the end token.

    Returns:
        None for a tokenizer whose tokens do not keep the text: one with an unknown token, or one that changes letters.
    """
    tokenizer, end_id = opened.tokenizer, opened.end_id
    about = json.loads(tokenizer.to_str())
    spelled = {token["content"] for token in about["added_tokens"]}
    byte_level = "ByteLevel" in _kinds(about["decoder"]) | _kinds(about["pre_tokenizer"])
    fallback = bool(about["model"].get("byte_fallback"))

    def length(token: str) -> int:
        if token in spelled:
            return len(token.encode())
        if byte_level:
            return len(token)  # one character per byte
        if fallback and BYTE.fullmatch(token):
            return 1
        return len(token.replace(SPACE, " ").encode())

    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        lengths[number] = length(token)
    lengths[end_id] = 0

    def counted(text: str) -> int:
        return int(lengths[tokenizer.encode(text, add_special_tokens=False).ids].sum())

    added = counted("x") - 1
    if any(counted(text) - added != len(text.encode()) for text in SAMPLES):
        return None
    return TokenBytes(lengths, added, end_id)


def _kinds(part: Any) -> set[str]:
    """Every `type` in a part of tokenizer.json."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["type"]] if isinstance(value.get("type"), str) else [])
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from walk(item)

    return set(walk(part))
