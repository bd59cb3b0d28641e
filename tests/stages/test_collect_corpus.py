"""From documents to their split: every document once, on its side."""

import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fixtures.small_corpus import SLICE, collected, prose

from budgeted_lora.data.documents import in_slice, text_md5, texts_of
from budgeted_lora.errors import BadInput


def test_split_does_not_depend_on_the_other_documents(tmp_path: Path) -> None:
    documents = prose(60)
    whole, _ = collected(tmp_path, documents)
    sides = {row["text"]: row["split"] for row in pq.read_table(whole).to_pylist()}
    half, _ = collected(tmp_path, documents[::-2])
    assert all(sides[row["text"]] == row["split"] for row in pq.read_table(half).to_pylist())


def test_collect_writes_every_document_once_on_its_side(tmp_path: Path) -> None:
    documents = prose(80)
    out, report = collected(tmp_path, documents + documents[:7])
    rows = pq.read_table(out).to_pylist()
    assert sorted(row["text"] for row in rows) == sorted(documents)
    for row in rows:
        assert row["md5"] == text_md5(row["text"])
        assert (row["split"] == "train") != in_slice(row["md5"], slice_per_mille=SLICE)
    counts = report["documents"]
    assert (counts["read"], counts["duplicates"]) == (87, 7)
    assert counts["train"] + counts["held_out"] == 80
    assert counts["overlap"] == 0
    files = {"documents.jsonl", "documents.parquet", "documents.parquet.sha256", "corpus.json"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_held_out_copies_of_training_text_are_set_apart(tmp_path: Path) -> None:
    documents = prose(40)
    train = next(text for text in documents if not in_slice(text_md5(text), slice_per_mille=SLICE))
    candidates = (f"{train} Copy {number}." for number in itertools.count())
    copied = next(text for text in candidates if in_slice(text_md5(text), slice_per_mille=SLICE))
    out, report = collected(tmp_path, [*documents, copied])
    assert [text for text, _ in texts_of(out, "overlap")] == [copied]
    assert copied not in [text for text, _ in texts_of(out, "validation")]
    assert report["documents"]["overlap"] == 1
    assert report["overlap"]["mean_share_after"] < report["overlap"]["mean_share_before"]
    kept, _ = collected(tmp_path, [*documents, copied], overlap_share=1.0)
    assert list(texts_of(kept, "overlap")) == []


@pytest.mark.parametrize("documents", [[], ["one lonely document"]])
def test_an_empty_side_is_refused(tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(BadInput, match="expected at least one document on each side"):
        collected(tmp_path, documents)
    assert not (tmp_path / "documents.parquet").exists()


def test_a_damaged_document_file_is_refused(tmp_path: Path) -> None:
    out, _ = collected(tmp_path, prose(40))
    out.write_bytes(out.read_bytes()[:-20])
    with pytest.raises(BadInput, match="not a whole Parquet file of documents"):
        list(texts_of(out, "train"))
