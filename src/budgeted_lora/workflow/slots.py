"""Device slots: which GPU a job may use, held by a file lock that the kernel releases when the job dies.

Snakemake's `resources: gpu=N` only counts; this module pins. The user's folder has two lock files per device: the
holder of `<id>.lock` uses it, the holder of `<id>.turn` gets it next. A waiting job takes the turns of its whole pool,
then keeps every device that becomes free until it has enough. So a job that needs two devices is not overtaken again
and again by jobs that need one. Chance decides whose turn is next, not size.

Processes that a job starts on its devices share its locks (`share_slots`); a device is free when the last of them has
ended. Nothing here imports torch, because CUDA_VISIBLE_DEVICES must be set first.
"""

import os
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from budgeted_lora.errors import BadInput
from budgeted_lora.files import lock
from budgeted_lora.workflow.visible import VISIBLE, refuse_twice, visible_devices

FOLDER = "BUDGETED_LORA_GPU_LOCKS"  # environment variable: replaces the folder of the lock files
HELD = "BUDGETED_LORA_GPU_SLOTS"  # environment variable: lock files of the devices a job holds, for its processes
MIG = "MIG-"  # how UUIDs of MIG instances begin
POLL_SECONDS = 0.5


@contextmanager
def gpu_slots(
    count: int, *, device: Literal["auto", "cpu", "cuda"], folder: Path | None = None, pool: Sequence[str] | None = None
) -> Iterator[list[str]]:
    """Holds `count` GPUs for the body and sets CUDA_VISIBLE_DEVICES to them; waits while too few are free.

    Args:
        count: devices this job takes; 0 runs on the CPU.
        device: without a GPU, auto runs on the CPU and cuda refuses; cpu hides the GPUs.
        folder: of the lock files; None for `lock_folder()`.
        pool: ids to choose from; None for those of an inherited CUDA_VISIBLE_DEVICES, or else all devices.

    Yields:
        The ids held; empty if the job runs on the CPU.

    Raises:
        BadInput: device is cuda and there is no GPU, or the job needs more devices than the pool has.
    """
    available = list(visible_devices() if pool is None else pool) if device != "cpu" and count > 0 else []
    if device == "cuda" and count > 0 and not available:
        raise BadInput(
            f"device: cuda, but no GPU is visible (nvidia-smi -L, {VISIBLE}); expected one, or device: auto or cpu"
        )
    refuse_twice(available, where="gpu slots")
    if count > 1 and any(name.startswith(MIG) for name in available):
        whole = [name for name in available if not name.startswith(MIG)]
        if count > len(whole):
            raise BadInput(
                f"gpu slots: {count} whole GPUs needed, {len(whole)} in the pool ({', '.join(available)}); CUDA lets a "
                "process use one MIG instance, so they cannot train together"
            )
        available = whole
    if available and count > len(available):
        raise BadInput(f"gpu slots: {count} needed, {len(available)} in the pool ({', '.join(available)})")
    if not available:
        with _environment({VISIBLE: "", HELD: ""}):
            yield []
        return
    _refuse_late_pinning()
    folder = folder or lock_folder()
    locks = _wait_for(count, available, folder)
    files = os.pathsep.join(str(_file(folder, name, "lock")) for name in locks)
    try:
        with _environment({VISIBLE: ",".join(locks), HELD: files}):
            yield list(locks)
    finally:
        _release(locks)


def share_slots() -> None:
    """Holds the devices of the job that started this process, for the life of this process.

    So no other job gets a device while an orphan computes on it. Call it while that job is alive.
    """
    for name in filter(None, os.environ.get(HELD, "").split(os.pathsep)):
        lock(os.open(name, os.O_RDWR), shared=True, wait=True)  # never closed


def lock_folder() -> Path:
    """This user's folder of lock files; one per machine, independent of TMPDIR."""
    return Path(os.environ.get(FOLDER) or f"/tmp/budgeted-lora-gpu-{os.getuid()}")


def _wait_for(count: int, pool: Sequence[str], folder: Path) -> dict[str, int]:
    """Locks `count` devices of the pool, waiting for its turn.

    Only a job with the turns of its whole pool may hold devices and wait for more, so two jobs never each hold half of
    what both need. If another job waits for a part of the pool, the rest is taken all at once or not at all.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    turns: dict[str, int] = {}
    held: dict[str, int] = {}
    warned = False
    try:
        while True:
            _take(turns, pool, folder, "turn", most=len(pool))
            _take(held, list(turns), folder, "lock", most=count)
            if len(held) == count:
                return held
            if len(turns) < len(pool):
                _release(held)
                _release(turns)
            if not warned:
                print(f"waiting for {count} of {len(pool)} GPU slots (locks in {folder})", file=sys.stderr, flush=True)
                warned = True
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))
    except BaseException:
        _release(held)
        raise
    finally:
        _release(turns)


def _take(
    mine: dict[str, int], names: Sequence[str], folder: Path, kind: Literal["turn", "lock"], *, most: int
) -> None:
    """Takes free locks until `most` are held."""
    for name in names:
        if name not in mine and len(mine) < most:
            handle = _try_lock(_file(folder, name, kind))
            if handle is not None:
                mine[name] = handle


def _release(locks: dict[str, int]) -> None:
    for handle in locks.values():
        os.close(handle)
    locks.clear()


def _file(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.{kind}"


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process does. Children do not inherit descriptors.

    Taken exclusively, then held shared, so that the job's processes can share it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if lock(handle) and lock(handle, shared=True):  # the kernel may lose it in between
        return handle
    os.close(handle)
    return None


def _refuse_late_pinning() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError(f"gpu_slots must be entered before CUDA is initialised, or {VISIBLE} has no effect")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
