"""Which device a stage computes on."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from budgeted_lora.errors import BadInput


def choose_device(device: str) -> torch.device:
    """The device of a configuration's word: "auto" is a GPU where torch sees one, else the CPU.

    Raises:
        BadInput: "cuda" without a usable GPU, or an unknown word.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}; expected auto, cpu or cuda")
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise BadInput("device is cuda, but torch finds no usable GPU; expected one, or device: auto or cpu")
    return torch.device("cuda" if available else "cpu")


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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed blocks instead of returning them to the system.

    A training step allocates and frees the same megabytes of activations again and again; by default each round
    costs the page faults anew, which on a virtual machine can take longer than the arithmetic. No result changes.

    Returns:
        whether the C library took the setting (others than glibc have none).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_resident_bytes() -> int:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def prepare(device: str, *, threads: int) -> torch.device:
    """Settings of the whole process: threads, repeatable kernels, allocator, denormals (slow and without meaning).

    Raises:
        BadInput: see `choose_device`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bytes only with a fixed workspace
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    return choose_device(device)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What student (by autocast) and teacher compute in: bfloat16 on a GPU that has it, if asked for; else float32."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16 else torch.float32
