"""The bytes of a document's tokens add up to the document, whatever the tokenizer that keeps its text."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.mistral import FORMS, SPACE, small_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from budgeted_lora.data.token_bytes import TokenBytes, token_bytes
from budgeted_lora.data.tokenizer import END, Opened
from budgeted_lora.models.checkpoint import shipped_tokenizer

LEARNT = [f"The {a} of the {b} is (not) {a}.{b}" for a in ("matrix", "na\u00efve") for b in ("field", "kernel")]
BYTE_LEVEL = Tokenizer.from_file(str(shipped_tokenizer() / "tokenizer.json"))
ALL = {"byte-level": (BYTE_LEVEL, BYTE_LEVEL.token_to_id(END))} | {
    form: (small_tokenizer(LEARNT, vocab_size=320, form=form), 2) for form in FORMS
}


def sizes(tokenizer: Tokenizer, end_id: int) -> TokenBytes | None:
    return token_bytes(Opened(tokenizer, Path("made"), "", end_id, ()))


SIZES = {name: sizes(*opened) for name, opened in ALL.items()}


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=150)
@given(st.lists(st.text(max_size=40) | st.sampled_from(["The matrix", "  ", "\n", "\U0001f642"]), max_size=5))
def test_bytes_of_all_tokens_are_the_documents_bytes(name: str, documents: list[str]) -> None:
    """Also where documents lie one after another, each with its end token."""
    tokenizer, end = ALL[name]
    spelled = [token["content"] for token in json.loads(tokenizer.to_str())["added_tokens"]]
    assume(not any(token in text for token in spelled for text in documents))
    if name != "byte-level":  # these write a space as this letter, and may write a first space as none
        documents = [text.replace(SPACE, "_").lstrip(" ") for text in documents]
    joined = [end]
    for text in documents:
        joined += [*tokenizer.encode(text, add_special_tokens=False).ids, end]
    ids = np.array(joined)
    counted = SIZES[name].of(ids[1:], ids[:-1])
    ends = np.flatnonzero(ids[1:] == end)
    each = [int(part.sum()) for part in np.split(counted, ends + 1)[:-1]]
    assert each == [len(text.encode()) for text in documents]


def test_a_token_inside_a_character_counts_its_own_bytes() -> None:
    for name in ALL:
        tokenizer, end = ALL[name]
        ids = np.array(tokenizer.encode("a\U0001f642", add_special_tokens=False).ids)
        counted = SIZES[name].of(ids, np.concatenate([[end], ids[:-1]]))
        assert len(ids) >= 4
        assert counted.sum() == 5
        assert counted[-1] < 4


def words_with_unknown() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "<unk>": 1, "<end>": 2, "x": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def composing() -> Tokenizer:
    tokenizer = Tokenizer.from_str(BYTE_LEVEL.to_str())
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize("make", [words_with_unknown, composing])
def test_a_tokenizer_that_loses_text_has_no_bytes(make) -> None:
    assert sizes(make(), 2) is None
