"""Tokenizers that are trained, copied and opened."""

from pathlib import Path

import pytest
from fixtures.small_corpus import SLICE, collected, prose

from budgeted_lora.data.tokenizer import END, open_tokenizer
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.copy_tokenizer import copy_tokenizer
from budgeted_lora.stages.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Documents and a tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("world")
    documents, _ = collected(folder, prose(150))
    rule = {"function_share": 0.3, "slice_per_mille": SLICE, "hold_out_words": False, "prompt_space": False}
    train_tokenizer(documents=documents, vocab_size=300, out=folder / "tokenizer", **rule)
    return {"documents": documents, "collected": folder / "corpus.json", "tokenizer": folder / "tokenizer"}


def test_tokenizer_gives_the_text_back(world: dict[str, Path]) -> None:
    opened = open_tokenizer(world["tokenizer"])
    encoder, end = opened.tokenizer, opened.end_id
    assert encoder.get_vocab_size() == 300
    assert encoder.id_to_token(end) == END
    for text in [*prose(3), "Zweites: äöü 漢字 🙂\n\tend", "Q:a, b\nA:a\n"]:
        assert encoder.decode(encoder.encode(text).ids) == text


def test_tokenizer_that_comes_out_too_small_is_refused(world: dict[str, Path], tmp_path: Path) -> None:
    rule = {"function_share": 0.0, "slice_per_mille": SLICE, "hold_out_words": False, "prompt_space": False}
    with pytest.raises(BadInput, match="vocab_size is 60000, but the corpus yields only"):
        train_tokenizer(documents=world["documents"], vocab_size=60_000, out=tmp_path / "t", **rule)
    assert not (tmp_path / "t").exists()


def test_broken_tokenizer_folders_are_refused(world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        copy_tokenizer(source=tmp_path, out=tmp_path / "copy")
    with pytest.raises(BadInput, match=r"tokenizer\.json: no such file"):
        open_tokenizer(tmp_path)
    copy_tokenizer(source=world["tokenizer"], out=tmp_path / "copy")
    assert open_tokenizer(tmp_path / "copy").end_id == open_tokenizer(world["tokenizer"]).end_id
    (tmp_path / "copy.sha256").unlink()
    (tmp_path / "copy" / "tokenizer_config.json").write_text('{"eos_token": "</nothing>"}')
    with pytest.raises(BadInput, match="names no eos_token of the vocabulary"):
        open_tokenizer(tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(BadInput, match="not a tokenizer"):
        open_tokenizer(tmp_path / "copy")
