"""The device and CPU threads of one measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from budgeted_lora.errors import BadInput
from budgeted_lora.memory import keep_freed_memory


@contextmanager
def on_device(device: str, *, threads: int) -> Iterator[torch.device]:
    """Yields the device and gives torch `threads` CPU threads until the block ends.

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        BadInput: "cuda" without a usable GPU, or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}; expected auto, cpu or cuda")
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise BadInput("device is cuda, but torch finds no usable GPU; expected one, or device: auto or cpu")
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield torch.device("cuda" if available else "cpu")
    finally:
        torch.set_num_threads(before)
