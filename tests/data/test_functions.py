"""Function documents of both sides of the split."""

import itertools

from budgeted_lora.data.documents import in_slice
from budgeted_lora.data.functions import function_documents

SLICE = 200


def test_function_documents_are_split_by_their_own_md5() -> None:
    rule = {"slice_per_mille": SLICE, "hold_out_words": False, "prompt_space": False}
    train = {digest for _, digest in itertools.islice(function_documents(**rule, held_out=False), 50)}
    held = {digest for _, digest in itertools.islice(function_documents(**rule, held_out=True), 20)}
    assert (len(train), len(held)) == (50, 20)
    assert all(in_slice(digest, slice_per_mille=SLICE) for digest in held)
    assert not any(in_slice(digest, slice_per_mille=SLICE) for digest in train)
