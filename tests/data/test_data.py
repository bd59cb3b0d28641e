"""From documents to the manifest: duplicates, the slice, the overlap filter, the mix, and the proof."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.data.documents import (
    Counts,
    in_slice,
    text_md5,
    texts_of,
    unique_documents,
)
from budgeted_lora.data.functions import function_documents
from budgeted_lora.data.overlap import ngram_hashes, shared_fractions
from budgeted_lora.data.tokenizer import END, open_tokenizer
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.collect_corpus import collect_corpus
from budgeted_lora.stages.copy_tokenizer import copy_tokenizer
from budgeted_lora.stages.tokenize_corpus import (
    at_most,
    disjointness,
    interleave,
    list_digest,
    tokenize_corpus,
)
from budgeted_lora.stages.train_tokenizer import train_tokenizer

SLICE = 200
COMMON = settings(deadline=None, max_examples=40)
texts = st.lists(st.text(max_size=12), max_size=30)
sentences = st.lists(st.sampled_from(["a", "b", "c", "D", "d"]), max_size=14).map(" ".join)


def corpus(folder: Path, documents: list[str], **values: object) -> Corpus:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return Corpus(source="files", files=[str(path)], min_characters=1, slice_per_mille=SLICE, **values)


def prose(count: int) -> list[str]:
    """Distinct documents of a few dozen words, no two of them alike in thirteen."""
    names = ["matrix", "vector", "graph", "sum", "root", "field", "kernel", "basis", "array", "norm", "index", "shape"]
    rng = np.random.default_rng(0)
    return [f"Returns number {i}: " + " ".join(rng.choice(names, size=40)) + "." for i in range(count)]


def collected(folder: Path, documents: list[str], **values: object) -> tuple[Path, dict]:
    out, report = folder / "documents.parquet", folder / "corpus.json"
    collect_corpus(corpus=corpus(folder, documents, **values), out=out, record=report, scale="tiny")
    return out, json.loads(report.read_text())


# --- duplicates and limits


@COMMON
@given(texts)
def test_exact_duplicates_go_and_the_order_stays(documents: list[str]) -> None:
    counts = Counts()
    kept = [text for text, _ in unique_documents(documents, Corpus(min_characters=3), counts)]
    assert kept == list(dict.fromkeys(text for text in documents if len(text) >= 3))
    assert counts.read == len(documents) == len(kept) + counts.short + counts.duplicates


@pytest.mark.parametrize(
    ("limit", "expected"), [({"documents": 2}, 2), ({"characters": 5}, 2), ({"characters": 6}, 2), ({}, 4)]
)
def test_limits_count_what_is_kept(limit: dict[str, int], expected: int) -> None:
    counts = Counts()
    source = iter(["aaa", "aaa", "bbb", "ccc", "ddd"])
    assert len(list(unique_documents(source, Corpus(min_characters=1, **limit), counts))) == expected
    assert counts.duplicates == 1


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    counts = Counts()
    [(text, digest)] = unique_documents(["odd \ud800 text"], Corpus(min_characters=1), counts)
    assert text == "odd ? text"
    assert digest == hashlib.md5(b"odd ? text").digest()


# --- the slice


@COMMON
@given(st.text(max_size=50), st.integers(1, 999))
def test_slice_is_the_md5_as_a_number_modulo_1000(text: str, slice_per_mille: int) -> None:
    expected = int(hashlib.md5(text.encode()).hexdigest(), 16) % 1000 < slice_per_mille
    assert in_slice(text_md5(text), slice_per_mille=slice_per_mille) == expected


@COMMON
@given(st.binary(min_size=16, max_size=16), st.integers(1, 998))
def test_a_wider_slice_holds_the_narrower_one(digest: bytes, slice_per_mille: int) -> None:
    assert in_slice(digest, slice_per_mille=slice_per_mille) <= in_slice(digest, slice_per_mille=slice_per_mille + 1)


def test_slice_has_the_share_it_names() -> None:
    held = sum(in_slice(text_md5(f"document {i}"), slice_per_mille=40) for i in range(20_000))
    assert abs(held - 800) < 5 * np.sqrt(20_000 * 0.04 * 0.96)


def test_split_does_not_depend_on_the_other_documents(tmp_path: Path) -> None:
    documents = prose(60)
    whole, _ = collected(tmp_path, documents)
    sides = {row["text"]: row["split"] for row in pq.read_table(whole).to_pylist()}
    half, _ = collected(tmp_path, documents[::-2])
    assert all(sides[row["text"]] == row["split"] for row in pq.read_table(half).to_pylist())


# --- n-gram overlap


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    items = text.lower().split()
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@COMMON
@given(st.lists(sentences, max_size=5), st.lists(sentences, max_size=5), st.integers(1, 4))
def test_overlap_against_brute_force(held_out: list[str], training: list[str], n: int) -> None:
    seen = {gram for text in training for gram in ngrams(text, n)}
    shares = [[gram in seen for gram in ngrams(text, n)] for text in held_out]
    expected = [sum(share) / len(share) if share else 0.0 for share in shares]
    assert shared_fractions(held_out, iter(training), n=n).tolist() == pytest.approx(expected)


def test_ngram_hashes_tell_order_and_ignore_case() -> None:
    assert len(ngram_hashes("one two", n=3)) == 0
    assert ngram_hashes("One two THREE", n=3).tolist() == ngram_hashes("one two\nthree", n=3).tolist()
    assert ngram_hashes("one two three", n=3).tolist() != ngram_hashes("two one three", n=3).tolist()


# --- collect


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


# --- the mix


def documents_of_length(length: int) -> object:
    return (([1] * (length - 1), number.to_bytes(16, "big")) for number in itertools.count())


@COMMON
@given(st.floats(0.05, 0.9), st.integers(2, 60), st.integers(2, 60))
def test_interleaving_keeps_the_share_all_the_way(share: float, prose_length: int, shown_length: int) -> None:
    counts = {"prose": 0, "functions": 0}
    total, longest = 3000, max(prose_length, shown_length)
    stream = interleave(
        documents_of_length(prose_length),
        documents_of_length(shown_length),
        share=share,
        token_limit=total,
        counts=counts,
    )
    for _ in stream:
        assert abs(counts["functions"] - share * sum(counts.values())) <= longest + 1
    assert total <= sum(counts.values()) < total + longest


def test_interleaving_stops_where_prose_ends() -> None:
    counts = {"prose": 0, "functions": 0}
    few = itertools.islice(documents_of_length(10), 5)
    list(interleave(few, documents_of_length(10), share=0.5, token_limit=10_000, counts=counts))
    assert counts["prose"] == 50
    assert counts["functions"] in (50, 60)


def test_without_function_documents_all_is_prose() -> None:
    counts = {"prose": 0, "functions": 0}
    list(interleave(documents_of_length(10), None, share=0.0, token_limit=95, counts=counts))
    assert counts == {"prose": 100, "functions": 0}


def test_at_most_stops_with_the_document_that_reaches_it() -> None:
    assert len(list(at_most(documents_of_length(10), token_limit=25))) == 3


def test_function_documents_are_split_by_their_own_md5() -> None:
    rule = {"slice_per_mille": SLICE, "hold_out_words": False, "prompt_space": False}
    train = {digest for _, digest in itertools.islice(function_documents(**rule, held_out=False), 50)}
    held = {digest for _, digest in itertools.islice(function_documents(**rule, held_out=True), 20)}
    assert (len(train), len(held)) == (50, 20)
    assert all(in_slice(digest, slice_per_mille=SLICE) for digest in held)
    assert not any(in_slice(digest, slice_per_mille=SLICE) for digest in train)


# --- tokenizer, token files and the manifest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Documents and a tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("world")
    documents, _ = collected(folder, prose(150))
    rule = {"function_share": 0.3, "slice_per_mille": SLICE, "hold_out_words": False, "prompt_space": False}
    train_tokenizer(documents=documents, vocab_size=300, out=folder / "tokenizer", **rule)
    return {"documents": documents, "collected": folder / "corpus.json", "tokenizer": folder / "tokenizer"}


def run(world: dict[str, Path], out: Path, **values: object) -> dict:
    common = {"train_tokens": 12_000, "validation_tokens": 500, "function_share": 0.3, "slice_per_mille": SLICE}
    tokenize_corpus(**world, out=out, hold_out_words=False, prompt_space=False, scale="tiny", **(common | values))
    return json.loads((out / "manifest.json").read_text())


def test_tokenizer_gives_the_text_back(world: dict[str, Path]) -> None:
    encoder, end = open_tokenizer(world["tokenizer"])
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
    assert open_tokenizer(tmp_path / "copy")[1] == open_tokenizer(world["tokenizer"])[1]
    (tmp_path / "copy.sha256").unlink()
    (tmp_path / "copy" / "tokenizer_config.json").write_text('{"eos_token": "</nothing>"}')
    with pytest.raises(BadInput, match="names no eos_token of the vocabulary"):
        open_tokenizer(tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(BadInput, match="not a tokenizer"):
        open_tokenizer(tmp_path / "copy")


def test_manifest_says_what_was_written_and_repeats(world: dict[str, Path], tmp_path: Path) -> None:
    manifest = run(world, tmp_path / "a")
    files = {name: TokenFile.open(tmp_path / "a" / f"{name}.bin") for name in ("train", "validation", "functions")}
    for name, file in files.items():
        assert manifest["files"][name]["tokens"] == len(file.tokens)
        assert manifest["files"][name]["sha256"] == file.sha256
        file.check_digest()
    assert manifest["function_share"] == pytest.approx(0.3, abs=0.03)
    assert sum(manifest["train_tokens_by_kind"].values()) == len(files["train"].tokens) >= 12_000
    again = run(world, tmp_path / "b")
    left_out = {"provenance": 0, "content_sha256": 0}
    assert {**manifest, **left_out} == {**again, **left_out}
    assert (tmp_path / "a" / "train.bin").read_bytes() == (tmp_path / "b" / "train.bin").read_bytes()


def test_manifest_proof_against_the_texts_themselves(world: dict[str, Path], tmp_path: Path) -> None:
    """Decodes both sides back to text and compares, independently of the digests noted while writing."""
    proof = run(world, tmp_path)["proof"]
    encoder, _ = open_tokenizer(world["tokenizer"])
    sides = {}
    for name in ("train", "validation", "functions"):
        file = TokenFile.open(tmp_path / f"{name}.bin")
        bounds = itertools.pairwise(file.offsets.tolist())
        sides[name] = [encoder.decode(file.tokens[a : b - 1].tolist()) for a, b in bounds]
    train = {text_md5(text) for text in sides["train"]}
    for name in ("validation", "functions"):
        held = [text_md5(text) for text in sides[name]]
        assert held
        assert not train & set(held)
        assert all(in_slice(digest, slice_per_mille=SLICE) for digest in held)
        lines = "".join(f"{line}\n" for line in sorted(digest.hex() for digest in held))
        assert proof["held_out_md5_list_sha256"][name] == hashlib.sha256(lines.encode()).hexdigest()
    assert not any(in_slice(digest, slice_per_mille=SLICE) for digest in train)
    assert proof["documents_on_both_sides"] == proof["training_documents_inside_the_slice"] == 0
    assert proof["train_md5_list_sha256"] == list_digest(train)


def test_a_slice_with_too_few_tokens_is_refused(world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the held-out slice has \d+ tokens of prose, expected at least 900000"):
        run(world, tmp_path, validation_tokens=900_000)
    assert not (tmp_path / "manifest.json").exists()


def test_documents_split_by_another_slice_fail_the_proof(world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"[1-9]\d* training documents in the slice; expected 0 and 0"):
        run(world, tmp_path, slice_per_mille=SLICE + 300, function_share=0.0)


def test_a_document_on_both_sides_fails_the_proof() -> None:
    inside = next(d for d in map(text_md5, map(str, itertools.count())) if in_slice(d, slice_per_mille=SLICE))
    outside = next(d for d in map(text_md5, map(str, itertools.count())) if not in_slice(d, slice_per_mille=SLICE))
    fine = {"train": [outside], "validation": [inside], "functions": [], "overlap": []}
    assert disjointness(fine, slice_per_mille=SLICE)["documents_on_both_sides"] == 0
    for side in ("validation", "functions", "overlap"):
        with pytest.raises(BadInput, match="1 documents on both sides, 0 training documents in the slice"):
            disjointness(fine | {side: [outside]}, slice_per_mille=SLICE)
    with pytest.raises(BadInput, match="1 documents on both sides, 1 training documents in the slice"):
        disjointness(fine | {"train": [inside]}, slice_per_mille=SLICE)
