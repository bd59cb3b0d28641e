"""Checkpoints whose headers, configurations and tokenizers were changed: a model that computes, or one line.

What the check of a fetched checkpoint lets through must load: a fault that shows only later costs the jobs before it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.families import IDS, write_checkpoint
from fixtures.fuzzing import damaged, fuzz, mutated, used_or_refused
from fixtures.mistral import small_tokenizer, write_tokenizer
from hypothesis import strategies as st

from budgeted_lora.config.sections import Teacher
from budgeted_lora.data.tokenizer import encode_batches, open_tokenizer
from budgeted_lora.models.checkpoint import check_checkpoint, vocabulary_of
from budgeted_lora.models.load import load_model

FAMILIES = ("llama", "mistral", "qwen3", "gemma3_text")
SPEC = Teacher.model_validate({"folder": "anywhere"})


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("made") / "model", request.param)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("shards") / "model", "llama", shards=True)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model"))


def checked(folder: Path) -> bool:
    """What fetching looks at; True if it finds nothing."""
    return used_or_refused(lambda: check_checkpoint(folder, name="A", spec=SPEC, context=8, contents=True)) is not None


def test_odd_configurations(made: Path, tmp_path: Path) -> None:
    folder = copy(made, tmp_path)
    about = json.loads((folder / "config.json").read_text())

    def check(value: Any) -> None:
        (folder / "config.json").write_text(json.dumps(value))
        if checked(folder):
            with torch.no_grad():
                assert load_model(folder)(input_ids=IDS).logits.shape[:2] == IDS.shape

    fuzz(check, value=mutated(about), examples=7)


def test_odd_tensors(made: Path, tmp_path: Path) -> None:
    """Headers that are JSON, with other names, types, shapes and places."""
    file = copy(made, tmp_path) / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")

    def check(entries: Any) -> None:
        text = json.dumps(entries).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        if checked(file.parent):
            load_model(file.parent)

    fuzz(check, entries=mutated(json.loads(data[8 : 8 + length])), examples=7)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_headers(made: Path, tmp_path: Path, name: str) -> None:
    folder = copy(made, tmp_path)
    data = (folder / name).read_bytes()
    first = 8 + int.from_bytes(data[:8], "little") if name == "model.safetensors" else len(data)

    def check(start: bytes) -> None:
        (folder / name).write_bytes(start + data[first:])
        if checked(folder):
            load_model(folder)

    fuzz(check, start=damaged(data[:first]), examples=7)


def test_odd_index(shards: Path, tmp_path: Path) -> None:
    folder = copy(shards, tmp_path)
    path = folder / "model.safetensors.index.json"

    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        if checked(folder):
            load_model(folder)

    fuzz(check, value=mutated(json.loads(path.read_text())), examples=7)


# --- tokenizers


def encoded(folder: Path) -> list[list[int]]:
    """What a folder's tokenizer makes of two documents."""
    opened = open_tokenizer(folder)
    opened.record()
    texts = ["w1 w2 and more", "", "äöü\n"]
    return [ids for ids, _ in encode_batches(opened.tokenizer, iter([(text, b"") for text in texts]))]


def bpe_folder(folder: Path) -> Path:
    return write_tokenizer(small_tokenizer(["some words and some more", "äöü"] * 3, vocab_size=300), folder)


def tokenizer_folders(tmp_path: Path, made: Path) -> dict[str, Path]:
    return {"words": copy(made, tmp_path), "bpe": bpe_folder(tmp_path / "bpe")}


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_odd_tokenizers(shards: Path, tmp_path: Path, kind: str) -> None:
    folder = tokenizer_folders(tmp_path, shards)[kind]
    path = folder / "tokenizer.json"
    assert encoded(folder)

    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        used_or_refused(lambda: vocabulary_of(folder))
        used_or_refused(lambda: encoded(folder))

    fuzz(check, value=mutated(json.loads(path.read_text())), examples=12)


def test_odd_parts_of_a_tokenizer(tmp_path: Path) -> None:
    """Changes of what stands beside the vocabulary, which is most of the file."""
    folder = bpe_folder(tmp_path / "bpe")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    parts = {name: value for name, value in whole.items() if name != "model"}
    about = {name: value for name, value in whole["model"].items() if name not in ("vocab", "merges")}

    def check(value: Any, model: Any) -> None:
        model = (
            model | {name: whole["model"][name] for name in ("vocab", "merges")} if isinstance(model, dict) else model
        )
        path.write_text(json.dumps(value | {"model": model} if isinstance(value, dict) else value))
        used_or_refused(lambda: vocabulary_of(folder))
        used_or_refused(lambda: encoded(folder))

    fuzz(check, value=mutated(parts), model=st.just(about) | mutated(about), examples=12)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizers(tmp_path: Path, name: str) -> None:
    folder = bpe_folder(tmp_path / "bpe")
    path = folder / name

    def check(data: bytes) -> None:
        path.write_bytes(data)
        used_or_refused(lambda: vocabulary_of(folder))
        used_or_refused(lambda: encoded(folder))

    fuzz(check, data=damaged(path.read_bytes()), examples=12)


def test_odd_settings_of_a_tokenizer(tmp_path: Path) -> None:
    folder = bpe_folder(tmp_path / "bpe")
    path = folder / "tokenizer_config.json"

    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        used_or_refused(lambda: encoded(folder))

    fuzz(check, value=mutated(json.loads(path.read_text())), examples=12)
