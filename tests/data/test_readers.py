"""Corpus readers: every form gives the same texts, and whatever is damaged is refused by file and line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.data.readers import package_versions, read_docstrings, read_documents
from budgeted_lora.errors import BadInput

TEXTS = ["First document.\nTwo lines.", "Zweites: äöü 漢字 🙂", "third"]


def lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()


def write_txt(folder: Path, texts: list[str]) -> str:
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return str(folder / "*.txt")


def write_jsonl(folder: Path, texts: list[str]) -> str:
    (folder / "a.jsonl").write_bytes(lines(texts))
    return str(folder / "a.jsonl")


def write_zst(folder: Path, texts: list[str]) -> str:
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines(texts)))
    return str(folder / "a.jsonl.zst")


def write_parquet(folder: Path, texts: list[str]) -> str:
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), folder / "a.parquet")
    return str(folder / "*.parquet")


WRITERS = [write_txt, write_jsonl, write_zst, write_parquet]


def read(*patterns: str, text_field: str = "text") -> list[str]:
    return list(read_documents(Corpus(source="files", files=list(patterns), text_field=text_field)))


def refusal(*patterns: str, text_field: str = "text") -> str:
    with pytest.raises(BadInput) as caught:
        read(*patterns, text_field=text_field)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_texts(tmp_path: Path, write: Callable[[Path, list[str]], str]) -> None:
    assert read(write(tmp_path, TEXTS)) == TEXTS


def test_files_are_read_in_sorted_order_whatever_their_form(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name, [f"of {name}"])
    (tmp_path / "c.txt").write_text("of c")
    assert read(f"{tmp_path}/**/*.jsonl", f"{tmp_path}/*.txt") == ["of a", "of b", "of c"]


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS, "body"))
    assert read(f"{tmp_path}/a.jsonl", text_field="body") == TEXTS


def test_zstandard_of_many_frames_and_blank_lines(tmp_path: Path) -> None:
    frames = [zstandard.compress(lines([text]) + b"\n") for text in TEXTS]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert read(f"{tmp_path}/a.jsonl.zst") == TEXTS


def test_zstandard_line_longer_than_a_block(tmp_path: Path) -> None:
    long = ["x" * 300_000 + str(number) for number in range(3)]
    assert read(write_zst(tmp_path, long)) == long


def test_no_match_and_unknown_ending(tmp_path: Path) -> None:
    assert "matches no file" in refusal(f"{tmp_path}/*.jsonl")
    (tmp_path / "a.csv").write_text("text\n")
    assert "unknown ending; expected .txt, .jsonl, .jsonl.zst or .parquet" in refusal(f"{tmp_path}/a.csv")


@pytest.mark.parametrize("write", [write_jsonl, write_zst, write_parquet])
def test_missing_field_is_named(tmp_path: Path, write: Callable[[Path, list[str]], str]) -> None:
    message = refusal(write(tmp_path, TEXTS), text_field="body")
    assert "'body' (corpus.text_field)" in message
    assert "it has" in message


@pytest.mark.parametrize("value", ["null", "7", '["a"]'])
def test_a_field_that_holds_no_text_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{{"text": {value}}}\n')
    assert "a.jsonl, line 2: field 'text'" in refusal(f"{tmp_path}/a.jsonl")


def test_a_null_in_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    assert "a.parquet, row 2: field 'text'" in refusal(f"{tmp_path}/a.parquet")


def test_a_line_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n"just text"\n')
    assert "line 2: no field 'text'" in refusal(f"{tmp_path}/a.jsonl")


def test_truncated_jsonl_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS)[:-5])
    assert "a.jsonl, line 3: not JSON" in refusal(f"{tmp_path}/a.jsonl")


@pytest.mark.parametrize("cut", [1, 4, 30])
def test_truncated_zstandard_is_refused(tmp_path: Path, cut: int) -> None:
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(lines(TEXTS))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-cut])
    assert "a.jsonl.zst: truncated" in refusal(f"{tmp_path}/a.jsonl.zst")


def test_truncation_between_lines_is_seen(tmp_path: Path) -> None:
    """A flushed block ends at a line's end: only the unfinished frame tells that more was to come."""
    compressor = zstandard.ZstdCompressor().compressobj()
    head = compressor.compress(lines(TEXTS)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "a.jsonl.zst").write_bytes(head)
    assert "truncated" in refusal(f"{tmp_path}/a.jsonl.zst")


def test_damaged_zstandard_is_refused(tmp_path: Path) -> None:
    whole = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(lines(TEXTS)))
    whole[-1] ^= 0xFF
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    assert "not whole Zstandard data" in refusal(f"{tmp_path}/a.jsonl.zst")
    (tmp_path / "a.jsonl.zst").write_bytes(b"plain text")
    assert "not whole Zstandard data" in refusal(f"{tmp_path}/a.jsonl.zst")


def test_truncated_and_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path, ["word " * 2000 + str(i) for i in range(200)])).with_name("a.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert "a.parquet: not a whole Parquet file" in refusal(str(path))
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])
    assert "a.parquet: not a whole Parquet file" in refusal(str(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(lines(["fine"]) + '{"text": "größe"}\n'.encode("latin-1"))
    message = refusal(str(tmp_path / name))
    assert "not UTF-8 text" in message
    assert name in message


def dataset(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    """A folder as the Hub holds a dataset: a card that names the shards of each split."""
    (folder / "data").mkdir()
    card = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, rows in texts.items():
        half = len(rows) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            name = f"data/{split}-{number:05d}-of-00002.parquet"
            pq.write_table(pa.table({"text": part, "meta": ["m"] * len(part)}), folder / name)
        card += [f"  - split: {split}", f"    path: data/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", "# A dataset"]) + "\n")
    return Corpus(source="hub", hub={"name": str(folder), "split": "train"})


def test_local_folder_in_the_form_of_the_hub(tmp_path: Path) -> None:
    corpus = dataset(tmp_path, {"train": TEXTS, "validation": ["not wanted", "nor this"]})
    assert list(read_documents(corpus)) == TEXTS


def test_hub_folder_with_zstandard_shards(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00.jsonl.zst").write_bytes(zstandard.compress(lines(TEXTS)))
    assert list(read_documents(Corpus(source="hub", hub={"name": str(tmp_path)}))) == TEXTS


@pytest.mark.parametrize(
    ("change", "expected"), [({"text_field": "body"}, "row 1: no field 'body'"), ({"split": "test"}, "cannot read")]
)
def test_hub_folder_with_another_field_or_split_is_refused(tmp_path: Path, change: dict, expected: str) -> None:
    corpus = dataset(tmp_path, {"train": TEXTS})
    hub = corpus.hub.model_copy(update={"split": change.pop("split", "train")})
    with pytest.raises(BadInput, match=expected) as caught:
        list(read_documents(corpus.model_copy(update={"hub": hub, **change})))
    assert "\n" not in str(caught.value)


def test_hub_dataset_without_a_pinned_revision_is_refused() -> None:
    with pytest.raises(BadInput, match=r"corpus\.hub\.revision must pin a commit of some/dataset"):
        list(read_documents(Corpus(source="hub", hub={"name": "some/dataset"})))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package with docstrings, tests to skip and files that do not parse."""
    root = tmp_path / "documented_package"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text('"""The package."""\nraise RuntimeError("never imported")\n')
    (root / "code.py").write_text(
        '"""A module."""\n\n\nclass One:\n    """A class."""\n\n    async def run(self):\n        """A method\n'
        '        of two lines."""\n\n\ndef plain():\n    return "no docstring"\n'
    )
    (root / "odd.py").write_text('"""Half a pair: \\ud800."""\n')
    (root / "template.py").write_text("def {{ name }}(:\n")
    (root / "latin.py").write_bytes('"""größe"""'.encode("latin-1"))
    (root / "tests" / "test_code.py").write_text('"""A test."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    return root.name


def test_docstrings_of_a_package(package: str) -> None:
    found = read_docstrings([package])
    assert sorted(found) == sorted(
        ["The package.", "A module.", "A class.", "A method\nof two lines.", "Half a pair: \ud800."]
    )
    assert found == read_docstrings([package], processes=2)
    assert package not in sys.modules


def test_package_that_is_not_installed_is_refused() -> None:
    with pytest.raises(BadInput, match="'no_such_package' is not an installed package"):
        read_docstrings(["no_such_package"])


def test_package_versions_come_from_the_distribution() -> None:
    assert package_versions(["numpy", "no_such_package"]) == {"numpy": __import__("numpy").__version__}
