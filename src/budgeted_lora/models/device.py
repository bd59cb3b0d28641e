"""The device a stage computes on, and the settings of its process: threads, repeatable kernels, memory allocator."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from budgeted_lora.errors import BadInput

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MMAP_THRESHOLDS = (2**30, 2**25)  # bytes; glibc before 2.35 refuses more than 32 MiB
WIDE = 256  # hidden size from which oneDNN's products in float32 are the faster ones


def choose_device(device: str) -> torch.device:
    """The torch device for `auto` (a GPU if torch finds one, else the CPU), `cpu` or `cuda`.

    Raises:
        BadInput: "cuda" without a usable GPU, or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}; expected auto, cpu or cuda")
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise BadInput("device is cuda, but torch finds no usable GPU; use device: auto or cpu")
    return torch.device("cuda" if available else "cpu")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype in which student (by autocast) and teacher compute in training.

    This is bfloat16 if `precision` asks for it and the device multiplies in it, else float32.
    """
    supported = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_multiplies_bfloat16()
    return torch.bfloat16 if precision == "bfloat16" and supported else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 (AVX512_BF16 or AMX); others would emulate them."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def prepare(device: str, *, threads: int) -> torch.device:
    """Sets up the process for training: threads, repeatable kernels, allocator, no denormals (slow and insignificant).

    Raises:
        BadInput: see `choose_device`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with a fixed workspace
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # our code never reads memory it has not written
    return choose_device(device)


def multiply_wide(hidden: int, device: torch.device) -> None:
    """Chooses who multiplies in float32 on a CPU, for a model of this hidden size: oneDNN if it is wide, else MKL.

    oneDNN takes 0.8 of MKL's time or less for many tokens and wide matrices, and more for one token or narrow ones.
    torch sends float32 products there only together with leave to round their inputs to bfloat16. A CPU with AMX takes
    that leave; others compute in float32 all the same. A product that rounding would change tells which it is, and
    where it is rounded MKL keeps the work. On a GPU nothing changes.
    """
    if device.type != "cpu":
        return
    torch.set_float32_matmul_precision("medium" if hidden >= WIDE else "highest")
    if hidden >= WIDE and not _keeps_float32():
        torch.set_float32_matmul_precision("highest")


def _keeps_float32() -> bool:
    """Whether products on the CPU read all digits of float32."""
    fine = torch.full((64, 64), 1 + 2**-20)
    return torch.equal(fine @ torch.eye(64), fine)


@contextmanager
def on_device(device: str, *, threads: int) -> Iterator[torch.device]:
    """Yields the device for evaluation and gives torch `threads` CPU threads until the block ends.

    What the block chose by `multiply_wide` ends with it, too.

    Raises:
        BadInput: see `choose_device`.
    """
    chosen = choose_device(device)
    keep_freed_memory()
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    try:
        yield chosen
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed blocks instead of returning them to the system.

    Each training step allocates and frees the same megabytes of activations. By default each step pays for the page
    faults again, which on a virtual machine can take longer than the arithmetic. Results do not change.

    Returns:
        Whether the C library accepted the setting; only glibc has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = any(mallopt(M_MMAP_THRESHOLD, threshold) for threshold in MMAP_THRESHOLDS)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_resident_bytes() -> int:
    """Peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
