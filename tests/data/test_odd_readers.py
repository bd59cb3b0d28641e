"""Files that other programs write: read as what they are, or refused in one line."""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.data.probes import PROBES, read_original
from budgeted_lora.data.readers import read_documents, read_file
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json

TEXTS = ["First document.", "Zweites: äöü 漢字", "third", "third"]


def texts(path: Path) -> list[str]:
    return list(read_file(path, text_field="text"))


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        texts(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(values: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in values)


def test_zstandard_with_a_long_window(tmp_path: Path) -> None:
    """`zstd --long=30` refers up to 1 GiB back; a decoder takes 128 MiB unless it is told."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, hash_log=10, chain_log=10)
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as writer:
        writer.write(lines(TEXTS))
    (tmp_path / "a.jsonl.zst").write_bytes(out.getvalue())
    assert zstandard.get_frame_parameters(out.getvalue()).window_size == 2**30
    assert texts(tmp_path / "a.jsonl.zst") == TEXTS


def test_zstandard_with_a_dictionary_is_one_line(tmp_path: Path) -> None:
    samples = [f"a sample of text {number} for a dictionary {number * number}".encode() for number in range(500)]
    dictionary = zstandard.train_dictionary(1024, samples)
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(lines(TEXTS))
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert "a.jsonl.zst: not whole Zstandard data" in refusal(tmp_path / "a.jsonl.zst")


COLUMNS = {
    "string": pa.array(TEXTS),
    "large": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "large dictionary": pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    "view": pa.array(TEXTS, pa.string_view()),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_every_kind_of_text(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": COLUMNS[kind]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == TEXTS


@pytest.mark.parametrize("index", ["int8", "int32", "uint16"])
def test_a_dictionary_of_many_texts(tmp_path: Path, index: str) -> None:
    many = [f"text {number % 120}" for number in range(3000)]
    column = pa.array(many).dictionary_encode().cast(pa.dictionary(getattr(pa, index)(), pa.string()))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=700)
    assert texts(tmp_path / "a.parquet") == many


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfA text.")
    assert texts(tmp_path / "a.txt") == ["A text."]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(TEXTS))
    assert texts(tmp_path / "a.jsonl") == TEXTS
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"\xef\xbb\xbf" + lines(TEXTS)))
    assert texts(tmp_path / "a.jsonl.zst") == TEXTS
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "a.jsonl").write_bytes('{"text": "a"}\n'.encode(encoding))
        assert "not" in refusal(tmp_path / "a.jsonl")
        (tmp_path / "a.txt").write_bytes("A text.".encode(encoding))
        assert "not UTF-8 text" in refusal(tmp_path / "a.txt")


def test_probe_files_with_such_a_mark(tmp_path: Path) -> None:
    for probe in PROBES:
        (tmp_path / f"{probe}.json").write_bytes(b'\xef\xbb\xbf[{"input": "a", "output": "b"}]')
    assert all(pairs[0].output == "b" for pairs in read_original(tmp_path).values())


DEEP = sys.getrecursionlimit() * 100
ODD_JSON = ["[" * DEEP, '{"a":' * DEEP, "1" * 5000, '{"text": ' + "7" * 5000 + "}", '{"text": -' + "7" * 5000 + "}"]


@pytest.mark.parametrize("text", ODD_JSON, ids=lambda text: f"{text[:9]}...{text[-1]}")
def test_json_without_end_and_numbers_of_thousands_of_digits(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text + "\n")
    assert "a.jsonl, line 1: not JSON" in refusal(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match=r"a\.json: not JSON"):
        read_json(tmp_path / "a.json")


def test_fields_are_named_on_one_line(tmp_path: Path) -> None:
    record = {"two\nlines": 1} | {f"field {number}": number for number in range(1000)}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert len(refusal(tmp_path / "a.jsonl")) < 600
    pq.write_table(pa.table({name: [value] for name, value in record.items()}), tmp_path / "a.parquet")
    assert len(refusal(tmp_path / "a.parquet")) < 600


def hub(folder: Path, **keys: object) -> list[str]:
    return list(read_documents(Corpus(source="hub", hub={"name": str(folder), "split": "train", **keys})))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return


def test_a_dataset_that_is_a_script_is_one_line(tmp_path: Path, offline: None) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    (folder / "pile.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(BadInput) as caught:
        hub(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_dataset_of_several_configurations_is_one_line_that_names_them(tmp_path: Path, offline: None) -> None:
    folder = tmp_path / "pile"
    for language in ("en", "de"):
        (folder / language).mkdir(parents=True)
        pq.write_table(pa.table({"text": [language]}), folder / language / "train-00000.parquet")
    card = ["---", "configs:"]
    for language in ("en", "de"):
        card += [f"- config_name: {language}", "  data_files:", "  - split: train", f"    path: {language}/train-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    with pytest.raises(BadInput) as caught:
        hub(folder)
    assert "\n" not in str(caught.value)
    assert "corpus.hub.config" in str(caught.value)
    assert "en" in str(caught.value)
    assert "de" in str(caught.value)
    assert hub(folder, config="de") == ["de"]
    with pytest.raises(BadInput, match="fr"):
        hub(folder, config="fr")


def test_a_split_that_is_missing_is_one_line(tmp_path: Path, offline: None) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), folder / "train-00000.parquet")
    with pytest.raises(BadInput, match="validation"):
        hub(folder, split="validation")


@pytest.mark.parametrize("name", ["broken.part", "", ".relative", "os..path"])
def test_a_package_that_does_not_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput) as caught:
        list(read_documents(Corpus(source="docstrings", packages=[name])))
    assert f"corpus.packages: {name!r}" in str(caught.value)
    assert "\n" not in str(caught.value)
