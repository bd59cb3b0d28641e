"""How a process that trains, or computes what training reads, is set up."""

import os

import torch

from budgeted_lora.device import choose_device
from budgeted_lora.memory import keep_freed_memory


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
