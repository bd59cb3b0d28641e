"""Stage: token files of the mix, and the manifest that proves which documents are on which side."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from budgeted_lora.data.documents import in_slice, texts_of
from budgeted_lora.data.functions import function_documents
from budgeted_lora.data.probes import PROBES
from budgeted_lora.data.tokenizer import encode_batches, open_tokenizer
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json, sha256_file
from budgeted_lora.provenance import Clock, write_result

FUNCTION_VALIDATION_TOKENS = 20_000


Encoded = Iterator[tuple[list[int], bytes]]


def interleave(prose: Encoded, shown: Encoded | None, *, share: float, tokens: int, counts: dict[str, int]) -> Encoded:
    """Documents until `tokens` are reached or prose runs out; the kind that is behind its share comes next."""
    while counts["prose"] + counts["functions"] < tokens:
        behind = counts["functions"] < share * (counts["prose"] + counts["functions"] + 1)
        kind = "functions" if shown is not None and behind else "prose"
        document = next(shown if kind == "functions" else prose, None)
        if document is None:
            return
        counts[kind] += len(document[0]) + 1
        yield document


def at_most(documents: Encoded, *, tokens: int) -> Encoded:
    """Documents until `tokens` are reached."""
    total = 0
    for document in documents:
        yield document
        total += len(document[0]) + 1
        if total >= tokens:
            return


def noting(documents: Encoded, digests: list[bytes]) -> Iterator[list[int]]:
    """The token ids alone; each document's digest is noted as it goes by."""
    for ids, digest in documents:
        digests.append(digest)
        yield ids


def tokenize(
    *,
    documents: Path,
    collected: Path,
    tokenizer: Path,
    out: Path,
    train_tokens: int,
    validation_tokens: int,
    function_share: float,
    slice_per_mille: int,
    hold_out_words: bool,
    prompt_space: bool,
    scale: str,
) -> None:
    """Writes train, validation and functions token files and manifest.json into `out`.

    Args:
        train_tokens: tokens wanted for training; fewer are written where the corpus has fewer.
        validation_tokens: least number of held-out prose tokens.

    Raises:
        BadInput: the documents are damaged, the slice holds too few tokens, or a document is on both sides.
    """
    clock = Clock()
    check_digest(documents)
    encoder, end = open_tokenizer(tokenizer)
    rule = {"slice_per_mille": slice_per_mille, "hold_out_words": hold_out_words, "prompt_space": prompt_space}

    def prose(split: str) -> Encoded:
        return encode_batches(encoder, texts_of(documents, split))

    def demonstrations(*, held_out: bool) -> Encoded | None:
        return encode_batches(encoder, function_documents(**rule, held_out=held_out)) if function_share else None

    counts = {"prose": 0, "functions": 0}
    shown = demonstrations(held_out=False)
    streams = {
        "train": interleave(prose("train"), shown, share=function_share, tokens=train_tokens, counts=counts),
        "validation": prose("validation"),
        "functions": at_most(demonstrations(held_out=True) or iter(()), tokens=FUNCTION_VALIDATION_TOKENS),
    }
    sides: dict[str, list[bytes]] = {name: [] for name in streams}
    records = {
        name: write_tokens(
            out / f"{name}.bin", noting(stream, sides[name]), vocab_size=encoder.get_vocab_size(), eos_id=end
        )
        for name, stream in streams.items()
    }
    if records["validation"]["tokens"] < validation_tokens:
        raise BadInput(
            f"corpus: the held-out slice has {records['validation']['tokens']} tokens of prose, expected at least "
            f"{validation_tokens} (corpus.validation_tokens); widen corpus.slice_per_mille or read more"
        )
    sides["overlap"] = [digest for _, digest in texts_of(documents, "overlap")]
    payload = {
        "corpus": {key: value for key, value in read_json(collected).items() if key != "provenance"},
        "tokenizer": {"vocab_size": encoder.get_vocab_size(), "end_id": end, "sha256": sha256_file(tokenizer)},
        "train_tokens_by_kind": counts,
        "function_share": counts["functions"] / max(1, sum(counts.values())),
        "probes": list(PROBES),
        "files": records,
        "proof": disjointness(sides, slice_per_mille=slice_per_mille),
    }
    values = {
        "train_tokens": train_tokens,
        "function_share": function_share,
        "slice_per_mille": slice_per_mille,
        "hold_out_words": hold_out_words,
    }
    write_result(
        out / "manifest.json",
        payload,
        scale=scale,
        cell=None,
        values=values,
        inputs=[documents, tokenizer],
        clock=clock,
    )


def list_digest(digests: Iterable[bytes]) -> str:
    """SHA-256 of the sorted hexadecimal MD5s, one a line: what a third party can compare without the texts."""
    return hashlib.sha256(
        "".join(f"{line}\n" for line in sorted(digest.hex() for digest in digests)).encode()
    ).hexdigest()


def disjointness(sides: dict[str, list[bytes]], *, slice_per_mille: int) -> dict[str, Any]:
    """Checks that no held-out document was written to training, by digest and by the rule itself.

    Raises:
        BadInput: one was.
    """
    train = set(sides["train"])
    held = {name: set(sides[name]) for name in ("validation", "functions", "overlap")}
    common = train & set().union(*held.values())
    inside = sum(in_slice(digest, slice_per_mille=slice_per_mille) for digest in train)
    if common or inside:
        raise BadInput(
            f"corpus: {len(common)} documents on both sides, {inside} training documents in the slice; expected 0 and 0"
        )
    return {
        "train_documents": len(sides["train"]),
        "distinct_train_documents": len(train),
        "held_out_documents": {name: len(digests) for name, digests in held.items()},
        "documents_on_both_sides": len(common),
        "training_documents_inside_the_slice": inside,
        "held_out_md5_list_sha256": {name: list_digest(digests) for name, digests in held.items()},
        "train_md5_list_sha256": list_digest(train),
    }
