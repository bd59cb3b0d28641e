"""What a row is told: threads, device, how long it may take, and where files may lie."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measures import say
from benchmarks.shapes import Shape, shape_named
from benchmarks.turns import ROOT, environment
from benchmarks.world import World


@dataclass(frozen=True, kw_only=True)
class Context:
    """Options of one row.

    Attributes:
        folder: temporary files, shared by all rows of one call of `make bench`.
        base: commit to compare with, for rows 9 and 10; empty for none.
        target: what `snakemake` is asked for in row 10.
        shapes: names of the shapes to measure, of those a row has.
    """

    threads: int
    device: str
    quick: bool
    folder: Path
    base: str = ""
    target: str = "main"
    shapes: list[str] = field(default_factory=lambda: ["mini", "paper", "1B"])

    @property
    def precision(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    def shape(self, name: str) -> Shape:
        return shape_named(name, quick=self.quick)

    def rounds(self, full: int, *, quick: int = 2) -> int:
        return quick if self.quick else full

    def world(self, name: str) -> World:
        """The files of a shape, made once, in a process of its own so that this one's memory stays small."""
        root = self.folder / f"world-{name}"
        if not root.exists():
            say(f"  files for {name}")
            size = "quick" if self.quick else "full"
            subprocess.run(
                [sys.executable, "-m", "benchmarks.world", name, str(root), size, self.device],
                cwd=ROOT,
                env=environment(threads=self.threads),
                check=True,
                capture_output=True,
            )
        return World(root)

    def run_options(self, shape: Shape, method: str, *, steps: int, **changed: Any) -> dict[str, Any]:
        """Options of a training run, see `run_ours`."""
        options: dict[str, Any] = {
            "shape": shape.name,
            "quick": self.quick,
            "world": str(self.world(shape.name).root),
            "method": method,
            "teacher": "teacher",
            "cached": False,
            "steps": steps,
            "threads": self.threads,
            "device": self.device,
            "precision": self.precision,
            "changes": {},
        }
        return options | changed


def available_bytes(device: str) -> int:
    """Free memory of the device."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
