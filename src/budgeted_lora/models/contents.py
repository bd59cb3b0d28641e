"""Looks at the weights of a checkpoint themselves: values that are no numbers, a head that is not the embeddings."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from budgeted_lora.errors import BadInput

if TYPE_CHECKING:
    from budgeted_lora.models.checkpoint import Stored

# By type of the format: the integers of its size, and the bits of its exponent; all set, a value is no finite number.
TYPES = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
BLOCK = 1 << 23  # values in memory at a time


def check_contents(stored: dict[str, "Stored"], *, tied: tuple[str, str] | None = None) -> None:
    """Reads every weight once, at the speed of the disk and in little memory.

    Args:
        tied: names of the output layer and the embedding matrix, if config.json says that they are one; the first of
            them may be absent.

    Raises:
        BadInput: a weight is NaN or infinite, or the embeddings are tied to a head that differs.
    """
    for name, tensor in stored.items():
        exponent = TYPES[tensor.dtype][1] if tensor.dtype in TYPES else None  # a mask or a position is always a number
        if exponent is not None and any(((block & exponent) == exponent).any() for block in blocks(tensor)):
            raise BadInput(f"{tensor.file}: {name} holds NaN or infinity, expected numbers; damaged, or it diverged")
    if tied is None or tied[0] not in stored:
        return
    head, embeddings = tied
    if not equal(stored[head], stored[embeddings]):
        raise BadInput(
            f"{stored[head].file}: {head} differs from {embeddings}, but config.json says tie_word_embeddings: true; "
            "expected one matrix, or tie_word_embeddings: false"
        )


def blocks(tensor: "Stored") -> Iterator[np.ndarray]:
    """The values of a tensor as unsigned integers, some at a time."""
    kind = np.dtype(TYPES[tensor.dtype][0])
    count = (tensor.stop - tensor.start) // kind.itemsize
    with Path(tensor.file).open("rb") as stream:
        stream.seek(tensor.start)
        for done in range(0, count, BLOCK):
            yield np.fromfile(stream, dtype=kind, count=min(BLOCK, count - done))


def equal(one: "Stored", other: "Stored") -> bool:
    """Whether two tensors hold the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(np.array_equal(a, b) for a, b in zip(blocks(one), blocks(other), strict=True))
