"""Device slots: which GPU a job may use, held by a file lock that the kernel releases when the job dies.

Snakemake's `resources: gpu=N` only counts; this module pins. The lock files lie in a folder of the user in the
temporary directory, one a device. Nothing here imports torch: CUDA_VISIBLE_DEVICES must be set before it is.
"""

import fcntl
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from budgeted_lora.errors import BadInput

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5


@contextmanager
def gpu_slots(
    count: int, *, device: Literal["auto", "cpu", "cuda"], folder: Path | None = None, pool: Sequence[str] | None = None
) -> Iterator[list[str]]:
    """Holds `count` GPUs for the body, with CUDA_VISIBLE_DEVICES set to them; waits while too few are free.

    Args:
        count: devices this job takes; 0 runs on the CPU.
        device: auto runs on the CPU where there is no GPU, cuda refuses, cpu hides the GPUs.
        folder: where the lock files lie; a folder of this user in the temporary directory when None.
        pool: ids to choose from; an inherited CUDA_VISIBLE_DEVICES, or else all devices, when None.

    Yields:
        The ids held, empty when the job runs on the CPU.

    Raises:
        BadInput: device is cuda and there is no GPU, or the job wants more devices than there are.
    """
    available = list(visible_devices() if pool is None else pool) if device != "cpu" and count > 0 else []
    if device == "cuda" and count > 0 and not available:
        raise BadInput(
            f"device: cuda, but no GPU is visible (nvidia-smi -L, {VISIBLE}); expected one, or device: auto or cpu"
        )
    if available and count > len(available):
        raise BadInput(f"gpu slots: {count} asked for, {len(available)} in the pool ({', '.join(available)})")
    if not available:
        with _environment(""):
            yield []
        return
    _refuse_late_pinning()
    locks = _wait_for(count, available, folder or lock_folder())
    try:
        with _environment(",".join(locks)):
            yield list(locks)
    finally:
        for handle in locks.values():
            os.close(handle)


def lock_folder() -> Path:
    """This user's folder of lock files, the same for every job on the machine."""
    return Path(tempfile.gettempdir()) / f"budgeted-lora-gpu-{os.getuid()}"


def visible_devices() -> list[str]:
    """Ids this process may choose from: those of an inherited CUDA_VISIBLE_DEVICES (Slurm, Kubernetes), or all.

    Ids are UUIDs where nvidia-smi tells them, so that a job that inherits "0" and one that sees all devices lock the
    same file.
    """
    listed = _nvidia_smi()
    inherited = os.environ.get(VISIBLE)
    if inherited is None:
        return [uuid for group in listed for uuid in group]
    named = [name.strip() for name in inherited.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    whole = {str(index): group[0] for index, group in enumerate(listed) if len(group) == 1}
    return [whole.get(name, name) for name in named]


def _nvidia_smi() -> list[list[str]]:
    """UUIDs by GPU: its own, or those of its MIG instances where it is split; empty without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _parse_listing(done.stdout) if done.returncode == 0 else []


def _parse_listing(listing: str) -> list[list[str]]:
    groups: list[list[str]] = []
    for kind, uuid in re.findall(r"^\s*(GPU|MIG)\b.*\(UUID: ([^)]+)\)", listing, flags=re.MULTILINE):
        if kind == "GPU":
            groups.append([uuid])
        elif groups:
            groups[-1] = [name for name in groups[-1] if name.startswith("MIG-")] + [uuid]
    return groups


def _wait_for(count: int, pool: Sequence[str], folder: Path) -> dict[str, int]:
    """Locks `count` devices, all or none at a time so that two jobs never each hold half of what both need."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while True:
        held: dict[str, int] = {}
        for name in pool:
            if len(held) == count:
                break
            handle = _try_lock(folder / (re.sub(r"[^\w.-]", "_", name) + ".lock"))
            if handle is not None:
                held[name] = handle
        if len(held) == count:
            return held
        for handle in held.values():
            os.close(handle)
        if not told:
            print(f"waiting for {count} of {len(pool)} GPU slots (locks in {folder})", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process does. Descriptors are not inherited by children."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _refuse_late_pinning() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError(f"gpu_slots must be entered before CUDA is initialised, or {VISIBLE} has no effect")


@contextmanager
def _environment(value: str) -> Iterator[None]:
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
