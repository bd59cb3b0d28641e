"""Corpora, probes, tokens and tokenizers with damaged bytes: read as far as they can be, or one line."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fixtures.fuzzing import damaged, fuzz, mutated, used_or_refused
from hypothesis import strategies as st

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.data.documents import document_table, text_md5, texts_of
from budgeted_lora.data.probes import PROBES, read_original
from budgeted_lora.data.readers import read_file, read_hub
from budgeted_lora.data.tokens import TokenFile, Windows, write_tokens
from budgeted_lora.files import CONTENT

TEXTS = ["First document.", "Zweites: äöü 漢字", "third", "third", "x" * 70]
RECORDS = [{"id": number, "text": text, "meta": {"tags": ["a"]}} for number, text in enumerate(TEXTS)]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def parquet(**options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), out, row_group_size=2, **options)
    return out.getvalue()


def zst(data: bytes) -> bytes:
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in (data[:half], data[half:]))


FILES = {
    "a.txt": "\n".join(TEXTS).encode(),
    "a.jsonl": LINES,
    "a.jsonl.zst": zst(LINES),
    "a.parquet": parquet(),
    "snappy.parquet": parquet(compression="snappy", use_dictionary=False),
    "v2.parquet": parquet(compression="zstd", data_page_version="2.0", write_page_checksum=True),
}


def read(path: Path) -> None:
    for text in read_file(path, text_field="text"):
        assert isinstance(text, str)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    read(path)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        used_or_refused(lambda: read(path))

    fuzz(check, data=damaged(FILES[name]), examples=20)


@pytest.mark.parametrize("compressed", [False, True], ids=["jsonl", "jsonl.zst"])
def test_odd_records(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / ("a.jsonl.zst" if compressed else "a.jsonl")

    def check(records: Any) -> None:
        listed = records if isinstance(records, list) else [records]
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in listed)
        path.write_bytes(zst(lines) if compressed else lines)
        used_or_refused(lambda: read(path))

    fuzz(check, records=mutated(RECORDS), examples=15)


def test_odd_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=4)
    same = st.one_of(*(st.lists(st.none() | kind, max_size=4) for kind in (plain.filter(bool), st.text(max_size=3))))

    def check(name: str, values: list[Any]) -> None:
        try:
            table = pa.table({name: pa.array(values)})
        except (pa.ArrowException, TypeError, UnicodeEncodeError):  # no column of several kinds
            return
        pq.write_table(table, path)
        used_or_refused(lambda: read(path))

    fuzz(check, name=st.sampled_from(["text", "", "a\nb", "text.text"]), values=same, examples=15)


# --- a folder in the Hub's form, which the library datasets reads

CSV = "id,text\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(TEXTS))
HUB = {
    "train.csv": CSV.encode(),
    "train.csv.gz": gzip.compress(CSV.encode(), mtime=0),
    "train.json": json.dumps(RECORDS).encode(),
    "train.jsonl": LINES,
    "train.jsonl.gz": gzip.compress(LINES, mtime=0),
    "train.jsonl.zst": zst(LINES),
    "train.parquet": FILES["a.parquet"],
    "train.txt": FILES["a.txt"],
}


@pytest.mark.parametrize("name", HUB)
def test_damaged_datasets(tmp_path: Path, name: str) -> None:
    path = tmp_path / "set" / name
    path.parent.mkdir()
    corpus = Corpus.model_validate({"source": "hub", "hub": {"name": str(path.parent), "split": "train"}})

    def read_all() -> int:
        return sum(isinstance(text, str) for text in read_hub(corpus))

    path.write_bytes(HUB[name])
    assert read_all() >= len(TEXTS)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        used_or_refused(read_all)

    fuzz(check, data=damaged(HUB[name]), examples=3)


# --- what the stages hand on


def test_damaged_documents(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    pq.write_table(document_table([(text, text_md5(text), "train") for text in dict.fromkeys(TEXTS)]), path)
    assert list(texts_of(path, "train"))

    def check(data: bytes) -> None:
        path.write_bytes(data)
        used_or_refused(lambda: list(texts_of(path, "train")))

    fuzz(check, data=damaged(path.read_bytes()), examples=20)


def test_odd_probes(tmp_path: Path) -> None:
    pairs = [{"input": "a, b, c", "output": "a"}, {"input": "d, e, f", "output": "d"}]
    for probe in PROBES:
        (tmp_path / f"{probe}.json").write_text(json.dumps(pairs))
    path = tmp_path / f"{next(iter(PROBES))}.json"
    assert read_original(tmp_path)

    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        used_or_refused(lambda: read_original(tmp_path))

    fuzz(check, value=mutated(pairs), examples=15)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    documents = ([1, 2, 3], [4, 5], list(range(40)))
    write_tokens(tmp_path / "a.bin", iter(documents), vocab_size=50, eos_id=0)
    return tmp_path / "a.bin"


def windows(path: Path) -> None:
    """Reads every window of a token file."""
    file = TokenFile.open(path)
    for packing in ("packed", "document"):
        cut = Windows(file, 8, packing)
        cut.read(np.arange(cut.count))


def test_odd_records_of_tokens(tokens: Path) -> None:
    windows(tokens)
    record = json.loads(tokens.with_suffix(".json").read_text())
    del record[CONTENT]

    def check(value: Any) -> None:
        tokens.with_suffix(".json").write_text(json.dumps(value))
        used_or_refused(lambda: windows(tokens))

    fuzz(check, value=mutated(record), examples=20)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_damaged_tokens(tokens: Path, suffix: str) -> None:
    def check(data: bytes) -> None:
        tokens.with_suffix(suffix).write_bytes(data)
        used_or_refused(lambda: windows(tokens))

    fuzz(check, data=damaged(tokens.with_suffix(suffix).read_bytes()), examples=15)
