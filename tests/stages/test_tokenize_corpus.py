"""The mix of prose and function documents, the manifest and its proof."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from fixtures.small_corpus import SLICE, collected, prose
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.data.documents import in_slice, text_md5
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.tokenize_corpus import at_most, disjointness, interleave, list_digest, tokenize_corpus
from budgeted_lora.stages.train_tokenizer import train_tokenizer

COMMON = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Documents and a tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("world")
    documents, _ = collected(folder, prose(150))
    rule = {"function_share": 0.3, "slice_per_mille": SLICE, "hold_out_words": False, "prompt_space": False}
    train_tokenizer(documents=documents, vocab_size=300, out=folder / "tokenizer", **rule)
    return {"documents": documents, "collected": folder / "corpus.json", "tokenizer": folder / "tokenizer"}


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


def run(world: dict[str, Path], out: Path, **values: object) -> dict:
    common = {"train_tokens": 12_000, "validation_tokens": 500, "function_share": 0.3, "slice_per_mille": SLICE}
    tokenize_corpus(**world, out=out, hold_out_words=False, prompt_space=False, scale="tiny", **(common | values))
    return json.loads((out / "manifest.json").read_text())


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
    encoder = open_tokenizer(world["tokenizer"]).tokenizer
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
