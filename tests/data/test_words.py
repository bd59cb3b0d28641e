"""Ids word by word are those of whole documents, token by token, or the tokenizer gets whole documents."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.mistral import FORMS, SPACE, mistral_model, mistral_tokenizer, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from budgeted_lora.data.words import WordEncoder, batches, word_pattern
from budgeted_lora.models.checkpoint import shipped_tokenizer

LEARNT = [f"The {a} of the {b} is (not) {a}.{b}, see {b}_{a}[{i}]." for i, (a, b) in enumerate(
    (a, b) for a in ("matrix", "vector", "naïve", "sum") for b in ("field", "kernel", "norm", "theory")
)]  # fmt: skip
# Pieces of text that are awkward somewhere: runs of spaces, bytes without a piece, the mark itself, special tokens.
PARTS = [
    "the",
    " ",
    "  ",
    "      ",
    "\n",
    "\t",
    "matrix",
    "_",
    "(",
    ".",
    "é",
    "ï",
    "漢",
    "🙂",
    SPACE,
    "\x00",
    "</s>",
    "x" * 40,
]
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=30).map("".join)
SMALL = {form: small_tokenizer(LEARNT, vocab_size=420, form=form) for form in FORMS}
ENCODERS = {form: WordEncoder(tokenizer) for form, tokenizer in SMALL.items()}


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def ids(encoder: WordEncoder, found: list[str]) -> list[list[int]]:
    return [np.frombuffer(data, encoder.dtype).tolist() for data in encoder.encode(found)]


def changed(**model: object) -> Tokenizer:
    """The small tokenizer with other settings of its model."""
    about = json.loads(SMALL["prepend"].to_str())
    about["model"] |= model
    return Tokenizer.from_str(json.dumps(about))


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=150)
@given(group=st.lists(texts, max_size=4))
def test_ids_are_those_of_the_whole_document(form: str, group: list[str]) -> None:
    encoder = ENCODERS[form]
    assert encoder.words is not None
    assert ids(encoder, group) == [whole(SMALL[form], text) for text in group]


@pytest.mark.parametrize("form", FORMS)
def test_a_full_cache_is_emptied_and_changes_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("budgeted_lora.data.words.CACHE_BYTES", 2000)
    encoder = WordEncoder(SMALL[form])
    sizes = set()
    for text in LEARNT:
        assert ids(encoder, [text]) == [whole(SMALL[form], text)]
        sizes.add(len(encoder._cache))
    assert 0 in sizes


def test_a_piece_with_a_space_inside_forbids_the_cut() -> None:
    """Such a merge joins across the cut: these ids differ, so the pattern must not be used."""
    about = json.loads(SMALL["prepend"].to_str())
    about["model"]["vocab"][f"e{SPACE}"] = len(about["model"]["vocab"])
    about["model"]["merges"].insert(0, ["e", SPACE])
    joined = Tokenizer.from_str(json.dumps(about))
    encoder = WordEncoder(joined)
    assert encoder.words is None
    assert ids(encoder, ["the matrix"]) == [whole(joined, "the matrix")]
    assert whole(joined, "the matrix") != ids(ENCODERS["prepend"], ["the matrix"])[0]


@pytest.mark.parametrize("model", [{"byte_fallback": False}, {"dropout": 0.1}, {"ignore_merges": True}])
def test_models_of_another_kind_get_whole_documents(model: dict[str, object]) -> None:
    assert word_pattern(json.loads(changed(**model).to_str())) is None


def test_a_byte_level_tokenizer_gets_whole_documents() -> None:
    tokenizer = Tokenizer.from_file(str(shipped_tokenizer() / "tokenizer.json"))
    encoder = WordEncoder(tokenizer)
    assert encoder.words is None
    assert ids(encoder, LEARNT) == [whole(tokenizer, text) for text in LEARNT]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=9), max_size=30), st.integers(1, 20))
def test_batches_keep_the_order_and_read_no_further_than_their_size(found: list[str], characters: int) -> None:
    groups = list(batches(((text, i) for i, text in enumerate(found)), characters=characters))
    assert [document for group in groups for document in group] == [(text, i) for i, text in enumerate(found)]
    assert all(sum(len(text) for text, _ in group[:-1]) < characters for group in groups)


@pytest.mark.skipif(mistral_model() is None, reason="needs `pip install --no-deps mistral-common`")
@pytest.mark.parametrize("form", FORMS)
def test_mistrals_own_tokenizer(form: str) -> None:
    tokenizer = mistral_tokenizer(mistral_model(), form=form)
    assert tokenizer.get_vocab_size() == 32_000
    encoder = WordEncoder(tokenizer)
    assert encoder.words is not None
    documents = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].rglob("test_[a-m]*.py"))]
    documents += [documents[0] * 20, *PARTS, "".join(PARTS)]
    assert ids(encoder, documents) == [whole(tokenizer, text) for text in documents]
