"""Stage tokenize_corpus: token files of the mix, and the manifest that proves the split of the documents."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from budgeted_lora.data.documents import in_slice, texts_of
from budgeted_lora.data.functions import function_documents
from budgeted_lora.data.probes import PROBES
from budgeted_lora.data.tokenizer import encode_batches, open_tokenizer
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json
from budgeted_lora.provenance import Clock, write_result

FUNCTION_VALIDATION_TOKENS = 20_000
Encoded = Iterator[tuple[list[int], bytes]]


def interleave(
    prose: Encoded, functions: Encoded | None, *, share: float, token_limit: int, counts: dict[str, int]
) -> Encoded:
    """Documents up to `token_limit` tokens or the end of prose, each of the kind that is below its share."""
    while counts["prose"] + counts["functions"] < token_limit:
        behind = counts["functions"] < share * (counts["prose"] + counts["functions"] + 1)
        kind = "functions" if functions is not None and behind else "prose"
        document = next(functions if kind == "functions" else prose, None)
        if document is None:
            return
        counts[kind] += len(document[0]) + 1
        yield document


def at_most(documents: Encoded, *, token_limit: int) -> Encoded:
    """Documents up to the one that reaches `token_limit` tokens."""
    total = 0
    for document in documents:
        yield document
        total += len(document[0]) + 1
        if total >= token_limit:
            return


def noting(documents: Encoded, digests: list[bytes]) -> Iterator[list[int]]:
    """The token ids of each document; appends its digest to `digests`."""
    for ids, digest in documents:
        digests.append(digest)
        yield ids


def tokenize_corpus(
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
        train_tokens: training tokens to write; fewer if the corpus has fewer.
        validation_tokens: least number of held-out prose tokens.

    Raises:
        BadInput: the documents are damaged, the slice holds too few tokens, or a document is on both sides.
    """
    clock = Clock()
    check_digest(documents)
    opened = open_tokenizer(tokenizer)
    encoder = opened.tokenizer
    counts = {"prose": 0, "functions": 0}
    rule = {"slice_per_mille": slice_per_mille, "hold_out_words": hold_out_words, "prompt_space": prompt_space}
    mix = {"token_limit": train_tokens, "share": function_share, "counts": counts}
    streams = token_streams(documents, encoder, mix, **rule)
    digests: dict[str, list[bytes]] = {name: [] for name in streams}
    about = {"vocab_size": opened.vocab_size, "eos_id": opened.end_id}
    records = {
        name: write_tokens(out / f"{name}.bin", noting(stream, digests[name]), **about)
        for name, stream in streams.items()
    }
    if records["validation"]["tokens"] < validation_tokens:
        raise BadInput(
            f"corpus: the held-out slice has {records['validation']['tokens']} tokens of prose, expected at least "
            f"{validation_tokens} (corpus.validation_tokens); widen corpus.slice_per_mille or read more"
        )
    digests["overlap"] = [digest for _, digest in texts_of(documents, "overlap")]
    payload = {
        "corpus": {key: value for key, value in read_json(collected).items() if key != "provenance"},
        "tokenizer": opened.record(),
        "train_tokens_by_kind": counts,
        "function_share": counts["functions"] / max(1, sum(counts.values())),
        "probes": list(PROBES),
        "files": records,
        "proof": disjointness(digests, slice_per_mille=slice_per_mille),
    }
    values = {"train_tokens": train_tokens, "validation_tokens": validation_tokens, "function_share": function_share}
    values |= rule
    about = {"scale": scale, "cell": None, "values": values, "inputs": [documents, tokenizer], "clock": clock}
    write_result(out / "manifest.json", payload, **about)


def list_digest(digests: Iterable[bytes]) -> str:
    """SHA-256 of the sorted hexadecimal MD5s, one per line, which a third party can compare without the texts."""
    lines = "".join(f"{line}\n" for line in sorted(digest.hex() for digest in digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def token_streams(documents: Path, encoder: Tokenizer, mix: dict[str, Any], **rule: Any) -> dict[str, Encoded]:
    """The encoded documents of each token file.

    Args:
        mix: keyword arguments of `interleave`, whose counts are complete once train has been read.
        rule: keyword arguments of `function_documents`.
    """
    encode = partial(encode_batches, encoder)
    shown, held_out = None, iter(())
    if mix["share"]:
        shown, held_out = (encode(function_documents(**rule, held_out=side)) for side in (False, True))
    return {
        "train": interleave(encode(texts_of(documents, "train")), shown, **mix),
        "validation": encode(texts_of(documents, "validation")),
        "functions": at_most(held_out, token_limit=FUNCTION_VALIDATION_TOKENS),
    }


def disjointness(sides: dict[str, list[bytes]], *, slice_per_mille: int) -> dict[str, Any]:
    """Checks by digest and by the rule that no held-out document is among the training ones.

    Returns:
        The `proof` of the manifest.

    Raises:
        BadInput: a held-out document is among the training ones.
    """
    train = set(sides["train"])
    held_out = {name: set(sides[name]) for name in ("validation", "functions", "overlap")}
    common = train & set().union(*held_out.values())
    inside = sum(in_slice(digest, slice_per_mille=slice_per_mille) for digest in train)
    if common or inside:
        raise BadInput(
            f"corpus: {len(common)} documents on both sides, {inside} training documents in the slice; expected 0 and 0"
        )
    return {
        "train_documents": len(sides["train"]),
        "distinct_train_documents": len(train),
        "held_out_documents": {name: len(digests) for name, digests in held_out.items()},
        "documents_on_both_sides": len(common),
        "training_documents_inside_the_slice": inside,
        "held_out_md5_list_sha256": {name: list_digest(digests) for name, digests in held_out.items()},
        "train_md5_list_sha256": list_digest(train),
    }
