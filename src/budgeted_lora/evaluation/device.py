"""The device and CPU threads of one measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from budgeted_lora.device import choose_device
from budgeted_lora.memory import keep_freed_memory


@contextmanager
def on_device(device: str, *, threads: int) -> Iterator[torch.device]:
    """Yields the device and gives torch `threads` CPU threads until the block ends.

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        BadInput: "cuda" without a usable GPU, or an unknown name.
    """
    where = choose_device(device)
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield where
    finally:
        torch.set_num_threads(before)
