"""A tokenizer is opened in one state, whatever its owner had switched on when it was saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.mistral import small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from budgeted_lora.data.tokenizer import encode_batches, open_tokenizer, switch_off
from budgeted_lora.data.words import WordEncoder
from budgeted_lora.models.checkpoint import shipped_tokenizer

TEXTS = ["", "one", " one two  three\n", "The matrix of the field, see matrix_field[3]. " * 40, "naïve 漢字 🙂" * 9]
KINDS = {
    "byte level": json.loads((shipped_tokenizer() / "tokenizer.json").read_text(encoding="utf-8")),
    "prepend": json.loads(small_tokenizer(TEXTS, vocab_size=320, form="prepend").to_str()),
}
PLAIN = {kind: Tokenizer.from_str(json.dumps(about)) for kind, about in KINDS.items()}
for _tokenizer in PLAIN.values():
    _tokenizer.no_truncation(), _tokenizer.no_padding()  # the state that the saved ones must come to


def template(about: dict[str, Any]) -> dict[str, Any]:
    """A post-processor that puts the first special token in front of a text, as Llama's does."""
    token = about["added_tokens"][0]
    special = {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}
    pieces = [{"SpecialToken": {"id": token["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token["content"]: special}}  # fmt: skip


def saved(folder: Path, kind: str, *switches: str) -> Path:
    """A folder with a tokenizer that was saved with these switches on."""
    about = json.loads(json.dumps(KINDS[kind]))
    token = about["added_tokens"][0]
    states = {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None,
                    "pad_id": token["id"], "pad_type_id": 0, "pad_token": token["content"]},
        "post_processor": template(about),
    }  # fmt: skip
    about |= {name: state for name, state in states.items() if name in switches}
    if "dropout" in switches:
        about["model"]["dropout"] = 0.5
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": token["content"]}))
    return folder


SWITCHES = ("truncation", "padding", "post_processor", "dropout")


def expected(kind: str, texts: list[str]) -> list[list[int]]:
    return [PLAIN[kind].encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switches", [*((name,) for name in SWITCHES), SWITCHES], ids="+".join)
def test_what_was_switched_on_changes_no_id(tmp_path: Path, kind: str, switches: tuple[str, ...]) -> None:
    tokenizer = open_tokenizer(saved(tmp_path, kind, *switches)).tokenizer
    whole = [ids for ids, _ in encode_batches(tokenizer, iter([(text, b"") for text in TEXTS]))]
    assert whole == expected(kind, TEXTS)
    assert [tokenizer.encode(text).ids for text in TEXTS] == whole, "asked for special tokens, it adds none"
    encoder = WordEncoder(tokenizer)
    assert [np.frombuffer(ids, encoder.dtype).tolist() for ids in encoder.encode(TEXTS)] == whole


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_batch_gives_the_ids_of_each_text_alone(texts: list[str]) -> None:
    about = json.loads(json.dumps(KINDS["byte level"]))
    about["model"]["dropout"] = 0.9
    tokenizer = Tokenizer.from_str(json.dumps(about))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    switch_off(tokenizer)
    found = [ids for ids, _ in encode_batches(tokenizer, iter([(text, b"") for text in texts]), batch=2)]
    assert found == expected("byte level", texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_says_what_is_added_and_what_was_switched_off(tmp_path: Path, kind: str) -> None:
    first = KINDS[kind]["added_tokens"][0]["content"]
    record = open_tokenizer(saved(tmp_path, kind, *SWITCHES)).record()
    assert (record["before_each_text"], record["after_each_document"]) == (None, first)
    assert record["switched_off"] == [
        "truncation to 4 tokens", f"padding with {first}", "BPE dropout 0.5", f"tokens around a text: {first}",
    ]  # fmt: skip
    assert open_tokenizer(saved(tmp_path, kind)).record()["switched_off"] == []
