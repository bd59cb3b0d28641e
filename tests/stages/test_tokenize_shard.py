"""One shard from its file to tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.mistral import small_tokenizer, write_tokenizer
from fixtures.shard_files import TEXTS, A, hub_folder, zst_files

from budgeted_lora.data.readers import read_file
from budgeted_lora.errors import BadInput
from budgeted_lora.files import sha256_file
from budgeted_lora.stages.tokenize_shard import shard_file, tokenize_shard

SLICE = 200
VALUES = {"text_field": "text", "min_characters": 5, "slice_per_mille": SLICE}
PATTERN = "data/train-{shard:05d}-of-00003-*.parquet"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = small_tokenizer(A, vocab_size=380)
    return write_tokenizer(small, tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def make(folder: Path, sources: list[str], tokenizer: Path, *, training: int | None = None) -> Path:
    for number, source in enumerate(sources):
        values = VALUES | {"training": training is None or number < training}
        tokenize_shard(source=source, tokenizer=tokenizer, out=folder / f"{number:05d}", reading=values, scale="tiny")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Three shards in the Hub's layout, tokenised."""
    folder = tmp_path_factory.mktemp("world")
    hub = hub_folder(folder / "hub", TEXTS)
    make(folder / "shards", [str(hub / PATTERN.format(shard=number)) for number in range(3)], tokenizer)
    return folder / "shards"


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_jsonl_and_parquet_give_the_same_shards(world: Path, tmp_path: Path, tokenizer: Path) -> None:
    files = sorted(zst_files(tmp_path / "pile", TEXTS).iterdir())
    make(tmp_path / "shards", [str(path) for path in files], tokenizer)
    for path in sorted(world.glob("*/*.bin")):
        assert path.read_bytes() == (tmp_path / "shards" / path.relative_to(world)).read_bytes()


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text('{"text": "fine"}\n')
    assert list(read_file(tmp_path / "a[1].jsonl", text_field="text")) == ["fine"]
    assert shard_file(str(tmp_path / "a[1].jsonl")).name == "a[1].jsonl"


def test_a_shard_that_is_not_there_or_there_twice(tmp_path: Path) -> None:
    hub = hub_folder(tmp_path / "hub", TEXTS)
    assert shard_file(str(hub / PATTERN.format(shard=1))).name.startswith("train-00001-of-00003-")
    assert "0 files match this shard" in refusal(lambda: shard_file(str(hub / PATTERN.format(shard=7))))
    (hub / "data" / "train-00001-of-00003-other.parquet").touch()
    assert "2 files match this shard" in refusal(lambda: shard_file(str(hub / PATTERN.format(shard=1))))


def test_a_download_that_changed_since_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in A))
    about = {"file": "data/a.jsonl", "sha256": sha256_file(path), "provenance": {"values": {"hub": {"name": "x"}}}}
    (tmp_path / "source.json").write_text(json.dumps(about))
    make(tmp_path, [str(path)], tokenizer)
    said = json.loads((tmp_path / "00000" / "shard.json").read_text())["source"]
    assert (said["file"], said["name"], said["sha256"]) == ("data/a.jsonl", "x", about["sha256"])
    path.write_text(path.read_text().replace("matrix", "vector"))
    assert "source.jsonl: checksum mismatch" in refusal(lambda: make(tmp_path, [str(path)], tokenizer))


def test_a_failed_shard_leaves_no_file(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in A) + '{"text": "cut')
    values = VALUES | {"training": True}
    refusal(
        lambda: tokenize_shard(source=str(path), tokenizer=tokenizer, out=tmp_path / "out", reading=values, scale="t")
    )
    assert list((tmp_path / "out").iterdir()) == []
