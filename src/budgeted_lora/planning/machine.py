"""What this machine has: GPUs, memory, disk; found without torch, within a second."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from budgeted_lora.workflow.visible import visible_devices

QUERY_FIELDS = ("uuid", "name", "memory.total", "compute_cap")
QUERY = ["nvidia-smi", f"--query-gpu={','.join(QUERY_FIELDS)}", "--format=csv,noheader,nounits"]
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
CGROUP_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
AMPERE = 8.0  # the first generation with bfloat16


@dataclass(frozen=True)
class Gpu:
    """One GPU that a job may take. Memory and capability are None if the driver does not report them (MIG)."""

    id: str
    name: str
    memory_bytes: int | None
    capability: float | None

    @property
    def has_bfloat16(self) -> bool:
        return self.capability is None or self.capability >= AMPERE


@dataclass(frozen=True)
class Machine:
    """What a scale can use: GPUs of the pool, cores, and the free bytes of memory and disks."""

    gpus: tuple[Gpu, ...]
    cores: int
    host_bytes: int
    disk_bytes: int
    cache_bytes: int
    one_disk: bool


def this_machine(results: Path, *, hub_cache: Path | None = None) -> Machine:
    """This machine as it is now.

    Args:
        results: folder of the results; need not exist.
        hub_cache: folder of downloads; need not exist; the one of the results when None.
    """
    results, downloads = existing(results), existing(hub_cache or results)
    return Machine(
        gpus=tuple(gpus()),
        cores=usable_cores(),
        host_bytes=host_memory(),
        disk_bytes=shutil.disk_usage(results).free,
        cache_bytes=shutil.disk_usage(downloads).free,
        one_disk=results.stat().st_dev == downloads.stat().st_dev,
    )


def usable_cores() -> int:
    """The cores that this process may use, fewer than the machine's in many containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_multiplies_bfloat16(described: Path = Path("/proc/cpuinfo")) -> bool:
    """What `models.device` asks torch, from Linux's description of the CPU; False where there is none."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", described.read_text(encoding="utf-8"), flags=re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; a file with several names counts once."""
    seen, total = set(), 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                about = os.lstat(os.path.join(root, name))
            except OSError:  # removed meanwhile
                continue
            if (about.st_dev, about.st_ino) not in seen:
                seen.add((about.st_dev, about.st_ino))
                total += about.st_size
    return total


def gpus() -> list[Gpu]:
    """The GPUs of the pool: those of an inherited CUDA_VISIBLE_DEVICES, or all."""
    names = visible_devices()
    if not names:
        return []
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return [Gpu(name, "unknown", None, None) for name in names]
    lines = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    known = {}
    for uuid, name, mebibytes, capability in (fields for fields in lines if len(fields) == len(QUERY_FIELDS)):
        amount, number = (  # "[N/A]" where the driver does not say
            float(text) if re.fullmatch(r"[\d.]+", text) else None for text in (mebibytes, capability)
        )
        known[uuid] = Gpu(uuid, name, None if amount is None else int(amount) * 2**20, number)
    return [known.get(name, Gpu(name, "unknown", None, None)) for name in names]


def host_memory() -> int:
    """Bytes of free memory: what the system calls available, or less in a container with a limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in zip(CGROUPS, CGROUP_USED, strict=True):
        try:
            available = min(available, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(available, 0)
