"""Opens the tokenizer that all models of a scale share, in one known state, and encodes documents with it.

A `tokenizer.json` also holds what its owner had switched on when it was saved: truncation, padding, BPE dropout, and a
post-processor that puts tokens around a text. All that is off here, so that a text always has the same ids, all of
them, and none besides. Normalisers and pre-tokenizers of such a file have no state and draw nothing. A document is
followed by the end token; no token precedes a document or a prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json, sha256_file

END = "<|end|>"


@dataclass(frozen=True)
class Opened:
    """A tokenizer in its known state.

    Attributes:
        end: the token after each document; `end_id` is its id.
        switched_off: what the folder's files would do to a text, and is not done here.
    """

    tokenizer: Tokenizer
    folder: Path
    end: str
    end_id: int
    switched_off: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding matrix needs for it."""
        return vocabulary_size(self.tokenizer)

    def record(self) -> dict[str, Any]:
        """What results say of it."""
        return {
            "vocab_size": self.vocab_size,
            "end_id": self.end_id,
            "sha256": sha256_file(self.folder),
            "before_each_text": None,
            "after_each_document": self.end,
            "switched_off": list(self.switched_off),
        }


def open_tokenizer(folder: Path) -> Opened:
    """The tokenizer of a folder.

    Raises:
        BadInput: a file is missing or damaged, or no end token is configured.
    """
    check_digest(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; expected a tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises a bare Exception
        raise BadInput(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None
    config = read_json(folder / "tokenizer_config.json", expected="the tokenizer's settings")
    end = config.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    end_id = tokenizer.token_to_id(end) if isinstance(end, str) else None
    if end_id is None:
        raise BadInput(f"{folder}: tokenizer_config.json names no eos_token of the vocabulary to end documents with")
    return Opened(tokenizer, folder, end, end_id, tuple(switch_off(tokenizer)))


def switch_off(tokenizer: Tokenizer) -> list[str]:
    """Puts a tokenizer into the known state; returns what was on, in words."""
    was_on = []
    if tokenizer.truncation is not None:
        was_on.append(f"truncation to {tokenizer.truncation['max_length']} tokens")
        tokenizer.no_truncation()
    if tokenizer.padding is not None:
        was_on.append(f"padding with {tokenizer.padding['pad_token']}")
        tokenizer.no_padding()
    dropout = getattr(tokenizer.model, "dropout", None)
    if dropout:
        was_on.append(f"BPE dropout {dropout:g}")
        tokenizer.model.dropout = None
    probe = tokenizer.encode("a")
    if added := [token for token, is_added in zip(probe.tokens, probe.special_tokens_mask, strict=True) if is_added]:
        was_on.append(f"tokens around a text: {' '.join(added)}")
    tokenizer.post_processor = None
    return was_on


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Rows that an embedding matrix needs for the tokenizer: its largest id, and one more; ids may have gaps."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def encode_batches(
    tokenizer: Tokenizer, documents: Iterator[tuple[str, bytes]], *, batch: int = 512
) -> Iterator[tuple[list[int], bytes]]:
    """(token ids without special tokens, digest) for each (text, digest), encoded one batch at a time."""
    while group := list(islice(documents, batch)):
        encodings = tokenizer.encode_batch_fast([text for text, _ in group], add_special_tokens=False)
        for encoding, (_, digest) in zip(encodings, group, strict=True):
            yield encoding.ids, digest
