"""A corpus in shards: the same tokens as one piece would give, in the Hub's own layout, and every damage named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fixtures.mistral import small_tokenizer, write_tokenizer
from fixtures.shard_files import TEXTS, A, B, hub_folder, zst_files
from pydantic import ValidationError
from tokenizers import Tokenizer

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.data.documents import Counts, distinct_documents, in_slice, text_md5
from budgeted_lora.data.readers import BATCH_ROWS, read_file
from budgeted_lora.data.tokens import TokenFile, write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import sha256_file
from budgeted_lora.stages.join_shards import join_shards, runs
from budgeted_lora.stages.tokenize_corpus import list_digest
from budgeted_lora.stages.tokenize_shard import shard_file, tokenize_shard
from budgeted_lora.workflow.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
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
        tokenize_shard(source=source, tokenizer=tokenizer, out=folder / f"{number:05d}", values=values, scale="tiny")
    return folder


def joined(
    shards: Path, out: Path, *, count: int = 3, train: int = 1000, validation: int = 100, **more: object
) -> dict:
    values = JOIN | {"shards": count, "train_shards": more.pop("train_shards", count)}
    join_shards(
        folder=shards, out=out, scale="tiny", values=values | {"train_tokens": train, "validation_tokens": validation}
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


# --- the whole path


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


def test_jsonl_and_parquet_give_the_same_shards(world: Path, tmp_path: Path, tokenizer: Path) -> None:
    files = sorted(zst_files(tmp_path / "pile", TEXTS).iterdir())
    make(tmp_path / "shards", [str(path) for path in files], tokenizer)
    for path in sorted(world.glob("*/*.bin")):
        assert path.read_bytes() == (tmp_path / "shards" / path.relative_to(world)).read_bytes()


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


def test_documents_are_read_as_they_are_asked_for() -> None:
    """Memory: of a shard of any length no more is read than the documents taken from it."""
    taken: list[int] = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield f"document {number}"

    documents = distinct_documents(endless(), Counts(), min_characters=1)
    [next(documents) for _ in range(5)]
    assert len(taken) <= 6


# --- too little


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


# --- damage


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(path: Path, field: str = "text") -> Callable[[], object]:
    return lambda: list(read_file(path, text_field=field))


def test_parquet_reads_a_few_rows_at_a_time_and_names_the_row(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.parquet", [f"text {i}" for i in range(2 * BATCH_ROWS + 10)]
    pq.write_table(pa.table({"text": texts}), path)
    assert read(path)() == texts
    pq.write_table(pa.table({"text": [*texts[: BATCH_ROWS + 4], None]}), path)
    assert f"a.parquet, row {BATCH_ROWS + 5}: field 'text'" in refusal(read(path))
    assert "no column 'body' (corpus.text_field); it has text" in refusal(read(path, "body"))
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert "a.parquet, row 1: field 'text' (corpus.text_field) holds int, expected text" in refusal(read(path))


def test_parquet_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    data = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "<i4")), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": data}), tmp_path / "a.parquet")
    assert "a.parquet" in (said := refusal(read(tmp_path / "a.parquet")))
    assert "not UTF-8 text" in said


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_truncated_parquet(tmp_path: Path, cut: int) -> None:
    path = next(hub_folder(tmp_path, TEXTS[:1]).glob("data/*"))
    path.write_bytes(path.read_bytes()[:-cut])
    assert ".parquet: not a whole Parquet file" in refusal(read(path))


def test_overwritten_pages_of_parquet(tmp_path: Path) -> None:
    path = next(hub_folder(tmp_path, TEXTS[:1]).glob("data/*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(400) + whole[404:])
    assert "not a whole Parquet file" in refusal(read(path))


def test_damaged_lines_and_wrong_files(tmp_path: Path) -> None:
    path = next(zst_files(tmp_path / "pile", TEXTS[:1]).iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "00.jsonl.zst: truncated" in refusal(read(path))
    path.write_bytes(b"plain")
    assert "00.jsonl.zst: not whole Zstandard data" in refusal(read(path))
    path.write_bytes(zstandard.compress(b'{"text": "fine"}\n{"text": "cut'))
    assert "00.jsonl.zst, line 2: not JSON" in refusal(read(path))
    path.write_bytes(zstandard.compress(b'{"text": "fine"}\n{"body": "x"}\n'))
    assert "00.jsonl.zst, line 2: no field 'text'" in refusal(read(path))
    path.write_bytes(zstandard.compress(b"[" * 200_000))
    assert "00.jsonl.zst" in refusal(read(path))
    (tmp_path / "a.csv").write_text("text\n")
    assert "a.csv: unknown ending" in refusal(read(tmp_path / "a.csv"))


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text('{"text": "fine"}\n')
    assert read(tmp_path / "a[1].jsonl")() == ["fine"]
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
        lambda: tokenize_shard(source=str(path), tokenizer=tokenizer, out=tmp_path / "out", values=values, scale="t")
    )
    assert list((tmp_path / "out").iterdir()) == []


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
    tokenize_shard(source=source, tokenizer=other, out=copy / "00001", values=values, scale="tiny")
    assert "00001: not made with the tokenizer of " in refusal(lambda: joined(copy, tmp_path / "out"))


def test_shards_of_two_slices_are_refused(copy: Path, tmp_path: Path, tokenizer: Path) -> None:
    hub = hub_folder(tmp_path / "hub", TEXTS)
    values = VALUES | {"training": True, "slice_per_mille": 2}
    source = str(hub / PATTERN.format(shard=1))
    tokenize_shard(source=source, tokenizer=tokenizer, out=copy / "00001", values=values, scale="tiny")
    assert "training documents in the slice" in refusal(lambda: joined(copy, tmp_path / "out"))


# --- the configuration


def corpus(**values: object) -> Corpus:
    base = {"source": "hub", "overlap_share": 1.0, "hub": {"name": "some/dataset"}}
    return Corpus.model_validate(base | {"shards": {"pattern": PATTERN, "train": 2, "held_out": 3}} | values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"source": "docstrings"}, "corpus.shards needs corpus.source files or hub"),
        ({"source": "files"}, "corpus.shards.pattern is required with source hub"),
        ({"shards": {"train": 2}}, "corpus.shards.pattern is required with source hub"),
        ({"shards": {"train": 2, "held_out": 1, "pattern": PATTERN}}, "held_out 1 is less than corpus.shards.train 2"),
        ({"shards": {"train": 2, "pattern": "data/train-*.parquet"}}, "does not contain {shard}"),
        ({"shards": {"train": 2, "pattern": "data/{part}.parquet"}}, "is not a valid pattern"),
        ({"overlap_share": 0.5}, "corpus.overlap_share must be 1 with corpus.shards"),
        ({"documents": 5}, "corpus.documents must be empty with corpus.shards"),
        ({"function_share": 0.5}, "corpus.function_share must be 0 with corpus.shards"),
    ],
)
def test_what_shards_do_not_go_with_is_refused(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        corpus(**values)


def paper(**corpus: object) -> Config:
    return load_config(ROOT / "config" / "paper.yaml", {"corpus": corpus})


def test_teachers_made_here_need_a_corpus_in_one_piece() -> None:
    with pytest.raises(BadInput, match=r"corpus.shards needs teachers that have a tokenizer"):
        load_config(ROOT / "config" / "paper.yaml", {"teachers": "pretrain", "calibration": {"teachers": False}})


def test_shards_that_are_only_scored_on_leave_the_cells_as_they_are() -> None:
    before = set(Graph(paper()).cells)
    assert set(Graph(paper(shards={"held_out": 60})).cells) == before
    assert not set(Graph(paper(shards={"train": 30})).cells) & before


@pytest.mark.parametrize("scale", ["mini", "smoke"])
def test_a_corpus_in_one_piece_is_recorded_as_before_there_were_shards(scale: str) -> None:
    config = load_config(ROOT / "config" / f"{scale}.yaml")
    assert "shards" not in config.corpus.model_dump()
    assert "shards" not in config.model_dump(mode="json")["corpus"]


def test_jobs_of_a_hub_dataset_and_of_a_local_copy(tmp_path: Path) -> None:
    jobs = Graph(paper()).shard_jobs()
    assert len(jobs.names) == 44
    assert jobs.downloaded
    assert jobs.pattern("00043") == "data/train-00043-of-01650-*.parquet"
    assert jobs.source("00007") == "results/paper/data/shards/00007/source.parquet"
    assert [jobs.reading(name)["training"] for name in jobs.names] == [True] * 22 + [False] * 22
    hub = hub_folder(tmp_path / "hub", TEXTS)
    local = Graph(paper(hub={"name": str(hub)}, shards={"pattern": PATTERN, "train": 3, "held_out": 4})).shard_jobs()
    assert not local.downloaded
    assert [len(local.local_files(name)) for name in local.names] == [1, 1, 1, 0]
    assert Path(local.local_files("00001")[0]) == shard_file(local.source("00001"))


def test_jobs_of_local_files_are_in_sorted_order(tmp_path: Path) -> None:
    folder = zst_files(tmp_path / "pile", TEXTS)
    config = paper(source="files", files=[f"{folder}/*.zst"], shards={"pattern": None, "train": 4, "held_out": None})
    jobs = Graph(config).shard_jobs()
    assert [Path(jobs.source(name)).name for name in jobs.names[:3]] == ["00.jsonl.zst", "01.jsonl.zst", "02.jsonl.zst"]
    assert jobs.local_files("00003") == []
    assert "corpus.files has 3 files, none for shard 00003" in refusal(lambda: shard_file(jobs.source("00003")))
