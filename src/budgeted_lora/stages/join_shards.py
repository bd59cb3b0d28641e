"""Stage: the token files of a sharded corpus, each document once, streamed from the shards to one file a side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budgeted_lora.data.digests import (
    Marks,
    first_occurrences,
    open_digests,
    proof,
)
from budgeted_lora.data.tokens import SIDES, TokenFile, write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import (
    atomic_path,
    read_json,
    sha256_file,
    write_record,
)
from budgeted_lora.provenance import Clock, write_result

BLOCK = 1 << 22  # tokens copied at a time


@dataclass(frozen=True)
class Shard:
    """One shard's folder as its job left it."""

    folder: Path
    record: dict[str, Any]
    sides: tuple[TokenFile, TokenFile]
    digests: np.ndarray

    @classmethod
    def open(cls, record: Path) -> "Shard":
        """Opens what lies beside shard.json, and compares every digest.

        Raises:
            BadInput: a file is missing or is not what the shard's job wrote.
        """
        about, folder = read_json(record, expected="the record of a shard"), record.parent
        try:
            counts = about["documents"]
            sides = tuple(TokenFile.open(folder / f"{side}.bin", verify=False) for side in SIDES)
            digests = open_digests(folder / "digests.bin", documents=counts["train"] + counts["held_out"])
            for name, sha256 in about["files"].items():
                if sha256_file(folder / name) != sha256:
                    raise BadInput(
                        f"{folder / name}: its SHA-256 differs from the one in {record}; make its shard anew"
                    )
        except (KeyError, TypeError) as error:
            raise BadInput(f"{record}: not the record of a shard ({error})") from None
        return cls(folder, about, sides, digests)

    @property
    def counts(self) -> tuple[int, int]:
        """Training and held-out documents."""
        return tuple(len(side.offsets) - 1 for side in self.sides)

    def lengths(self, side: int) -> np.ndarray:
        """Tokens of each document with its end token: int64 of shape (documents,)."""
        return np.diff(self.sides[side].offsets).astype(np.int64)


def take_until(shards: Sequence[Shard], marks: Marks, *, tokens: int) -> int:
    """Unmarks the training documents after the one that reaches `tokens`.

    Returns:
        tokens of all training documents that were marked.
    """
    total = 0
    for number, shard in enumerate(shards):
        mark = marks.of(number, 0)
        lengths = np.where(mark, shard.lengths(0), 0)
        mark &= total + np.cumsum(lengths) - lengths < tokens
        total += int(lengths.sum())
    return total


def marked_tokens(shards: Sequence[Shard], marks: Marks, *, side: int) -> int:
    """Tokens of the marked documents of a side."""
    return sum(int(shard.lengths(side)[marks.of(number, side)].sum()) for number, shard in enumerate(shards))


def copy_side(path: Path, shards: Sequence[Shard], marks: Marks, *, side: int) -> dict[str, Any]:
    """Writes the marked documents of every shard to one token file, a few megabytes at a time.

    Returns:
        the record written to `x.json`, as `write_tokens` returns it.
    """
    first, total, documents = shards[0].sides[side], 0, 0
    dtype = np.dtype(first.tokens.dtype).newbyteorder("<")
    with atomic_path(path.with_suffix(".idx")) as index, atomic_path(path) as temporary:
        with temporary.open("wb") as stream, index.open("wb") as ends:
            ends.write(np.zeros(1, "<u8").tobytes())
            for number, shard in enumerate(shards):
                file, chosen = shard.sides[side], marks.of(number, side)
                for start, stop in runs(chosen):
                    begin, end = int(file.offsets[start]), int(file.offsets[stop])
                    for at in range(begin, end, BLOCK):
                        stream.write(file.tokens[at : min(end, at + BLOCK)].tobytes())
                lengths = shard.lengths(side)[chosen]
                ends.write((total + np.cumsum(lengths)).astype("<u8").tobytes())
                total += int(lengths.sum())
                documents += len(lengths)
        digest, offsets_digest = sha256_file(temporary), sha256_file(index)
    record = {"dtype": dtype.name, "tokens": total, "documents": documents, "sha256": digest}
    record |= {"offsets_sha256": offsets_digest, "vocab_size": first.vocab_size, "eos_id": first.eos_id}
    write_record(path.with_suffix(".json"), record)
    return record


def runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of True, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def check_alike(shards: Sequence[Shard]) -> None:
    """Refuses shards that were made with different tokenizers.

    Raises:
        BadInput: naming the first that differs.
    """
    for shard in shards[1:]:
        if shard.record["tokenizer"] != shards[0].record["tokenizer"]:
            raise BadInput(
                f"{shard.folder}: made with another tokenizer than {shards[0].folder}; make one of them anew"
            )


def more(shards: int, *, found: int, wanted: int) -> int:
    """Shards that would hold as many tokens as are wanted, at the rate of those read and a little over."""
    return max(shards + 1, -(-shards * wanted * 102 // (100 * max(1, found))))


def join_shards(*, folder: Path, out: Path, values: dict[str, Any], scale: str) -> None:
    """Writes train, validation and (empty) functions token files and manifest.json into `out`.

    Args:
        folder: holds the shards as 00000, 00001 and so on; equal documents are kept where they come first.
        values: shards (how many), train_shards, train_tokens, validation_tokens, slice_per_mille; and source, hub,
            overlap_ngram, which are recorded.

    Raises:
        BadInput: a shard's file is damaged, or the shards hold too few tokens; it says what to raise.
    """
    clock = Clock()
    records = [folder / f"{number:05d}" / "shard.json" for number in range(values["shards"])]
    shards = [Shard.open(record) for record in records]
    check_alike(shards)
    digests = [shard.digests for shard in shards]
    marks = first_occurrences(digests, [shard.counts for shard in shards])
    corpus = corpus_record(shards, marks, values)
    available = take_until(shards, marks, tokens=values["train_tokens"])
    held_out_tokens = marked_tokens(shards, marks, side=1)
    if available < values["train_tokens"]:
        wanted = more(values["train_shards"], found=available, wanted=values["train_tokens"])
        raise BadInput(
            f"corpus: {values['train_shards']} shards hold {available} training tokens, expected "
            f"{values['train_tokens']} (corpus.train_tokens); raise corpus.shards.train to about {wanted}"
        )
    if held_out_tokens < values["validation_tokens"]:
        wanted = more(len(shards), found=held_out_tokens, wanted=values["validation_tokens"])
        raise BadInput(
            f"corpus: the slice of {len(shards)} shards has {held_out_tokens} tokens, expected at least "
            f"{values['validation_tokens']} (corpus.validation_tokens); raise corpus.shards.held_out to about {wanted}"
        )
    proved = proof(digests, marks, slice_per_mille=values["slice_per_mille"])
    about = shards[0].record["tokenizer"]
    files = {
        "train": copy_side(out / "train.bin", shards, marks, side=0),
        "validation": copy_side(out / "validation.bin", shards, marks, side=1),
        "functions": write_tokens(
            out / "functions.bin", iter(()), vocab_size=about["vocab_size"], eos_id=about["end_id"]
        ),
    }
    payload = {
        "corpus": corpus,
        "tokenizer": about,
        "train_tokens_by_kind": {"prose": files["train"]["tokens"], "functions": 0},
        "train_tokens_available": available,
        "function_share": 0.0,
        "probes": [],
        "files": files,
        "proof": proved,
        "shards": [
            {name: shard.record[name] for name in ("source", "documents", "tokens", "files")} for shard in shards
        ],
    }
    write_result(out / "manifest.json", payload, scale=scale, cell=None, values=values, inputs=records, clock=clock)


def corpus_record(shards: Sequence[Shard], kept: Marks, values: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the documents, under the names that a corpus in one piece has."""
    counts = {
        name: sum(shard.record["documents"][name] for shard in shards)
        for name in ("read", "short", "duplicates", "left", "characters")
    }
    across = int((~kept.flat).sum())
    train, held_out = (sum(int(kept.of(number, side).sum()) for number in range(len(shards))) for side in (0, 1))
    return {
        "source": values["source"],
        "package_versions": None,
        "hub": values["hub"],
        "hash_rule": f"int(md5(utf8(text)), 16) % 1000 < {values['slice_per_mille']}",
        "documents": {
            **counts,
            "duplicates": counts["duplicates"] + across,
            "duplicates_across_shards": across,
            "train": train,
            "held_out": held_out,
            "validation": held_out,
            "overlap": 0,
        },
        "overlap": {
            "ngram": values["overlap_ngram"],
            "largest_share_kept": 1.0,
            "mean_share_before": None,
            "mean_share_after": None,
        },
    }
