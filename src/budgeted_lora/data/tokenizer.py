"""Opens the tokenizer that all models of a scale share, and encodes documents with it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json

END = "<|end|>"


def open_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a folder and the id of its end-of-document token.

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
    end_id = tokenizer.token_to_id(end) if end else None
    if end_id is None:
        raise BadInput(f"{folder}: tokenizer_config.json names no eos_token of the vocabulary to end documents with")
    return tokenizer, end_id


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
