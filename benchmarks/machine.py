"""The machine a result comes from, without names of hosts or folders."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from budgeted_lora.provenance import cpu_name, git_state

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "liger-kernel", "numpy", "snakemake")
ASK_TORCH = """
import json, sys, torch
cuda = sys.argv[1] != "cpu" and torch.cuda.is_available()
print(json.dumps({
    "device": "cuda" if cuda else "cpu",
    "gpu": torch.cuda.get_device_name() if cuda else None,
    "cuda": torch.version.cuda if cuda else None,
    "cpu_capability": torch.backends.cpu.get_cpu_capability(),
}))
"""


def describe(device: str) -> dict[str, Any]:
    """Processor, cores, memory, GPU, versions, commit; torch is asked in a process of its own."""
    asked = subprocess.run([sys.executable, "-c", ASK_TORCH, device], capture_output=True, text=True, check=True)
    found = json.loads(asked.stdout)
    if device == "cuda" and found["device"] != "cuda":
        raise SystemExit("device is cuda, but torch finds no usable GPU")
    return {
        **found,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": memory_gb(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        **git_state(),
    }


def memory_gb() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    except (ValueError, OSError):
        return None


def versions() -> dict[str, str | None]:
    """Installed versions; None for what is missing, such as a peer."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def result_name(machine: dict[str, Any], *, quick: bool) -> str:
    """cpu-2c, nvidia-h200, ..."""
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()) if machine["gpu"] else f"cpu-{machine['cores']}c"
    return f"{name}-quick" if quick else name
