"""Stage join_shards: join the shards of a corpus to its token files, each document once, and write the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budgeted_lora.data.digests import Marks, first_occurrences, open_digests, proof
from budgeted_lora.data.tokens import SIDES, TokenFile, token_writer, write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file
from budgeted_lora.provenance import Clock, write_result


@dataclass(frozen=True)
class Shard:
    """The files of one shard, opened."""

    folder: Path
    record: dict[str, Any]
    sides: tuple[TokenFile, TokenFile]
    digests: np.ndarray

    @classmethod
    def open(cls, record: Path) -> "Shard":
        """Opens the files beside shard.json. Raises BadInput if one is missing, damaged or of another job."""
        about, folder = read_json(record, expected="the record of a shard"), record.parent
        try:
            counts = about["documents"]
            sides = tuple(TokenFile.open(folder / f"{side}.bin", verify=False) for side in SIDES)
            digests = open_digests(folder / "digests.bin", documents=counts["train"] + counts["held_out"])
            for name, sha256 in about["files"].items():
                if sha256_file(folder / name) != sha256:
                    raise BadInput(f"{folder / name}: checksum mismatch with {record}; delete {folder} and rerun")
        except (KeyError, TypeError) as error:
            raise BadInput(f"{record}: not the record of a shard ({error})") from None
        return cls(folder, about, sides, digests)

    @property
    def counts(self) -> tuple[int, int]:
        """Training and held-out documents."""
        return tuple(len(side.offsets) - 1 for side in self.sides)

    def lengths(self, side: int) -> np.ndarray:
        """Tokens per document with its end token: int64, shape (documents,)."""
        return np.diff(self.sides[side].offsets).astype(np.int64)


def take_until(shards: Sequence[Shard], marks: Marks, *, tokens: int) -> int:
    """Unmarks the training documents after the one that reaches `tokens`.

    Returns:
        Tokens of all training documents that were marked before.
    """
    total = 0
    for number, shard in enumerate(shards):
        mark = marks.of(number, 0)
        lengths = np.where(mark, shard.lengths(0), 0)
        mark &= total + np.cumsum(lengths) - lengths < tokens
        total += int(lengths.sum())
    return total


def copy_side(path: Path, shards: Sequence[Shard], marks: Marks, *, side: int) -> dict[str, Any]:
    """Writes the marked documents of every shard to one token file; returns its record."""
    first = shards[0].sides[side]
    with token_writer(path, vocab_size=first.vocab_size, eos_id=first.eos_id) as writer:
        for number, shard in enumerate(shards):
            for start, stop in runs(marks.of(number, side)):
                writer.copy(shard.sides[side], start, stop)
    return writer.record


def runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of True, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def shards_needed(shards: int, *, tokens: int, wanted: int) -> int:
    """Shards that would hold `wanted` tokens at the rate of those read, plus 2 %."""
    return max(shards + 1, -(-shards * wanted * 102 // (100 * max(1, tokens))))


def check_enough(available: int, held_out: int, joining: dict[str, Any]) -> None:
    """Raises BadInput, with the number of shards to configure, if the shards hold too few tokens of a side."""
    if available < joining["train_tokens"]:
        needed = shards_needed(joining["train_shards"], tokens=available, wanted=joining["train_tokens"])
        raise BadInput(
            f"corpus: {joining['train_shards']} shards hold {available} training tokens, expected "
            f"{joining['train_tokens']} (corpus.train_tokens); raise corpus.shards.train to about {needed}"
        )
    if held_out < joining["validation_tokens"]:
        needed = shards_needed(joining["shards"], tokens=held_out, wanted=joining["validation_tokens"])
        raise BadInput(
            f"corpus: the slice of {joining['shards']} shards has {held_out} tokens, expected at least "
            f"{joining['validation_tokens']} (corpus.validation_tokens); raise corpus.shards.held_out to about {needed}"
        )


def join_shards(*, folder: Path, out: Path, joining: dict[str, Any], scale: str) -> None:
    """Writes train, validation and (empty) functions token files and manifest.json into `out`.

    Args:
        folder: holds the shards as 00000, 00001 and so on; of equal documents the first one is kept.
        joining: shards (how many), train_shards, train_tokens, validation_tokens, slice_per_mille; and source, hub,
            overlap_ngram, which are recorded.

    Raises:
        BadInput: a shard's file is damaged, or the shards hold too few tokens.
    """
    clock = Clock()
    records = [folder / f"{number:05d}" / "shard.json" for number in range(joining["shards"])]
    shards = [Shard.open(record) for record in records]
    for shard in shards:
        if shard.record["tokenizer"] != shards[0].record["tokenizer"]:
            raise BadInput(f"{shard.folder}: not made with the tokenizer of {shards[0].folder}; delete one and rerun")
    digests = [shard.digests for shard in shards]
    marks = first_occurrences(digests, [shard.counts for shard in shards])
    corpus = corpus_record(shards, marks, joining)
    available = take_until(shards, marks, tokens=joining["train_tokens"])
    held_out = sum(int(shard.lengths(1)[marks.of(number, 1)].sum()) for number, shard in enumerate(shards))
    check_enough(available, held_out, joining)
    proved = proof(digests, marks, slice_per_mille=joining["slice_per_mille"])
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
    write_result(out / "manifest.json", payload, scale=scale, cell=None, values=joining, inputs=records, clock=clock)


def corpus_record(shards: Sequence[Shard], kept: Marks, joining: dict[str, Any]) -> dict[str, Any]:
    """The `corpus` of the manifest, with the keys of a corpus in one piece."""
    counts = {
        name: sum(shard.record["documents"][name] for shard in shards)
        for name in ("read", "short", "duplicates", "left", "characters")
    }
    across = int((~kept.flat).sum())
    train, held_out = (sum(int(kept.of(number, side).sum()) for number in range(len(shards))) for side in (0, 1))
    return {
        "source": joining["source"],
        "package_versions": None,
        "hub": joining["hub"],
        "hash_rule": f"int(md5(utf8(text)), 16) % 1000 < {joining['slice_per_mille']}",
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
            "ngram": joining["overlap_ngram"],
            "largest_share_kept": 1.0,
            "mean_share_before": None,
            "mean_share_after": None,
        },
    }
