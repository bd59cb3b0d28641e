"""A corpus in shards: the same tokens as in one piece, and every damage named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures.mistral import small_tokenizer, write_tokenizer
from fixtures.shard_files import TEXTS, A, B, hub_folder, zst_files
from tokenizers import Tokenizer

from budgeted_lora.data.documents import in_slice, text_md5
from budgeted_lora.data.tokens import TokenFile, write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.join_shards import join_shards, runs
from budgeted_lora.stages.tokenize_corpus import list_digest
from budgeted_lora.stages.tokenize_shard import tokenize_shard

SLICE = 200
VALUES = {"text_field": "text", "min_characters": 5, "slice_per_mille": SLICE}
JOIN = {"source": "hub", "hub": {"name": "x"}, "slice_per_mille": SLICE, "overlap_ngram": 13}
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


def joined(
    shards: Path, out: Path, *, count: int = 3, train: int = 1000, validation: int = 100, **more: object
) -> dict:
    values = JOIN | {"shards": count, "train_shards": more.pop("train_shards", count)}
    join_shards(
        folder=shards, out=out, scale="tiny", joining=values | {"train_tokens": train, "validation_tokens": validation}
    )
    return json.loads((out / "manifest.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Three shards in the Hub's layout, tokenised."""
    folder = tmp_path_factory.mktemp("world")
    hub = hub_folder(folder / "hub", TEXTS)
    make(folder / "shards", [str(hub / PATTERN.format(shard=number)) for number in range(3)], tokenizer)
    return folder / "shards"


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return shutil.copytree(world, tmp_path / "shards")


def expected(sides: bool, texts: list[str], tokenizer: Path) -> tuple[list[list[int]], list[str]]:
    """Ids of the documents of a side by the raw tokenizer, each once, and their texts."""
    raw = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end = raw.token_to_id("</s>")
    once = [text for text in dict.fromkeys(texts) if len(text) >= 5]
    mine = [text for text in once if in_slice(text_md5(text), slice_per_mille=SLICE) == sides]
    return [[*raw.encode(text, add_special_tokens=False).ids, end] for text in mine], mine


def held(file: TokenFile) -> list[list[int]]:
    return [file.tokens[a:b].tolist() for a, b in zip(file.offsets[:-1], file.offsets[1:], strict=True)]


def test_shards_give_the_tokens_of_one_piece(world: Path, tmp_path: Path, tokenizer: Path) -> None:
    everything = [text for shard in TEXTS for text in shard]
    train, train_texts = expected(False, everything, tokenizer)
    validation, validation_texts = expected(True, everything, tokenizer)
    manifest = joined(world, tmp_path, train=sum(map(len, train)))
    file = TokenFile.open(tmp_path / "train.bin")
    file.check_digest()
    assert held(file) == train
    assert held(TokenFile.open(tmp_path / "validation.bin")) == validation
    assert len(TokenFile.open(tmp_path / "functions.bin").tokens) == 0
    proof = manifest["proof"]
    assert proof["documents_on_both_sides"] == proof["training_documents_inside_the_slice"] == 0
    assert proof["train_md5_list_sha256"] == list_digest(map(text_md5, train_texts))
    assert proof["held_out_md5_list_sha256"]["validation"] == list_digest(map(text_md5, validation_texts))
    said = manifest["corpus"]["documents"]
    assert said["read"] == len(everything)
    assert said["short"] == 2
    assert said["read"] - said["short"] - said["duplicates"] == said["train"] + said["held_out"] == 120
    assert (said["train"], said["validation"]) == (len(train), len(validation))
    assert [shard["source"]["file"].split("-")[1] for shard in manifest["shards"]] == ["00000", "00001", "00002"]


def test_the_token_file_is_that_of_the_other_path(world: Path, tmp_path: Path, tokenizer: Path) -> None:
    """Byte by byte what `write_tokens` writes, so its readers see no difference."""
    train, _ = expected(False, [text for shard in TEXTS for text in shard], tokenizer)
    joined(world, tmp_path, train=sum(map(len, train)))
    about = json.loads((tmp_path / "train.json").read_text())
    same = {"vocab_size": about["vocab_size"], "eos_id": about["eos_id"]}
    assert write_tokens(tmp_path / "one.bin", (ids[:-1] for ids in train), **same).items() <= about.items()
    for ending in ("bin", "idx", "json"):
        assert (tmp_path / f"train.{ending}").read_bytes() == (tmp_path / f"one.{ending}").read_bytes()


def test_training_stops_with_the_document_that_reaches_the_tokens(world: Path, tmp_path: Path, tokenizer: Path) -> None:
    train, texts = expected(False, [text for shard in TEXTS for text in shard], tokenizer)
    lengths = np.cumsum([len(ids) for ids in train])
    manifest = joined(world, tmp_path, train=int(lengths[49]) - 3)
    assert held(TokenFile.open(tmp_path / "train.bin")) == train[:50]
    assert manifest["proof"]["train_documents"] == 50
    assert manifest["proof"]["train_md5_list_sha256"] == list_digest(map(text_md5, texts[:50]))
    assert manifest["train_tokens_available"] == lengths[-1]


def test_shards_beyond_training_give_their_slice_only(tmp_path: Path, tokenizer: Path) -> None:
    files = sorted(zst_files(tmp_path / "pile", TEXTS).iterdir())
    shards = make(tmp_path / "shards", [str(path) for path in files], tokenizer, training=2)
    assert len(TokenFile.open(shards / "00002" / "train.bin").tokens) == 0
    joined(shards, tmp_path, train_shards=2)
    validation, _ = expected(True, [text for shard in TEXTS for text in shard], tokenizer)
    assert held(TokenFile.open(tmp_path / "validation.bin")) == validation


def test_blocks_smaller_than_documents_copy_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(world, tmp_path / "a")
    monkeypatch.setattr("budgeted_lora.data.tokens.BLOCK", 5)
    joined(world, tmp_path / "b")
    assert (tmp_path / "a" / "train.bin").read_bytes() == (tmp_path / "b" / "train.bin").read_bytes()
    assert runs(np.array([0, 1, 1, 0, 1], bool)) == [(1, 3), (4, 5)]


def test_too_few_training_tokens_say_what_to_raise(world: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"3 shards hold \d+ training tokens, expected 10000 .*corpus.shards.train to ab"
    ):
        joined(world, tmp_path / "out", train=10_000)
    assert not (tmp_path / "out").exists()


def test_too_few_held_out_tokens_say_what_to_raise(world: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"slice of 3 shards has \d+ tokens.* 9000 .*corpus.shards.held_out to about \d+"
    ):
        joined(world, tmp_path / "out", validation=9000)


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "held_out.bin", "digests.bin"])
def test_a_flipped_bit_of_a_shard_is_found(copy: Path, name: str) -> None:
    path = copy / "00001" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    said = refusal(lambda: joined(copy, copy / "out"))
    assert f"00001/{name}: checksum mismatch" in said
    assert not (copy / "out").exists()


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "held_out.bin", "digests.bin", "shard.json"])
def test_a_truncated_or_missing_file_of_a_shard_is_named(copy: Path, name: str) -> None:
    path = copy / "00002" / name
    path.write_bytes(path.read_bytes()[:-5])
    assert f"00002/{name}: " in refusal(lambda: joined(copy, copy / "out"))
    path.unlink()
    assert f"00002/{name}: no " in refusal(lambda: joined(copy, copy / "out"))


def test_shards_of_two_tokenizers_are_refused(copy: Path, tmp_path: Path) -> None:
    other = write_tokenizer(small_tokenizer(B, vocab_size=390), tmp_path / "other")
    hub = hub_folder(tmp_path / "hub", TEXTS)
    values = VALUES | {"training": True}
    source = str(hub / PATTERN.format(shard=1))
    tokenize_shard(source=source, tokenizer=other, out=copy / "00001", reading=values, scale="tiny")
    assert "00001: not made with the tokenizer of " in refusal(lambda: joined(copy, tmp_path / "out"))


def test_shards_of_two_slices_are_refused(copy: Path, tmp_path: Path, tokenizer: Path) -> None:
    hub = hub_folder(tmp_path / "hub", TEXTS)
    values = VALUES | {"training": True, "slice_per_mille": 2}
    source = str(hub / PATTERN.format(shard=1))
    tokenize_shard(source=source, tokenizer=tokenizer, out=copy / "00001", reading=values, scale="tiny")
    assert "training documents in the slice" in refusal(lambda: joined(copy, tmp_path / "out"))
