"""Function-style documents of one side of the split, for the tokenizer's mix and for the token files."""

from collections.abc import Iterator

from budgeted_lora.data.documents import in_slice, text_md5
from budgeted_lora.data.probes import function_document


def function_documents(
    *, slice_per_mille: int, hold_out_words: bool, prompt_space: bool, held_out: bool
) -> Iterator[tuple[str, bytes]]:
    """Endless (text, md5) of distinct function documents; the MD5 of a document decides its side.

    Args:
        prompt_space: whether a space follows `Q:` and `A:`.
        held_out: the side to yield.
    """
    rule = {"slice_per_mille": slice_per_mille, "hold_out_words": hold_out_words, "prompt_space": prompt_space}
    number, seen = 0, set()
    while True:
        text = function_document(number, seed=0, **rule)
        digest = text_md5(text)
        if digest not in seen and in_slice(digest, slice_per_mille=slice_per_mille) == held_out:
            seen.add(digest)
            yield text, digest
        number += 1
