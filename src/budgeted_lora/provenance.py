"""What every result carries: values, inputs, versions, machine, time."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import budgeted_lora
from budgeted_lora.files import sha256_file, write_record

SCHEMA_VERSION = 1
CODE = ("src", "workflow", "Snakefile")
STAGES, STARTERS = "budgeted_lora.stages.", ("dispatch", "launch")
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "snakemake",
)


class Clock:
    """Start of a stage: `provenance` derives the start time and the duration from it.

    The duration comes from a clock that is never set, so it is right however the time of day jumps.
    """

    def __init__(self) -> None:
        self.started_at = datetime.now(UTC)
        self._tick = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._tick


def stage_in_progress() -> str | None:
    """Dotted name of the function of the stage that is running, however deep below this is; None outside of a stage."""
    name, frame = None, sys._getframe()
    while frame is not None:  # up to the outermost: a stage may call helpers of its own file
        module = frame.f_globals.get("__name__", "")
        if module.startswith(STAGES) and module.removeprefix(STAGES) not in STARTERS:
            name = f"{module}.{module.rpartition('.')[2]}"
        frame = frame.f_back
    return name


def provenance(
    *,
    scale: str,
    cell: str | None,
    values: Mapping[str, Any],
    inputs: Iterable[Path | str],
    clock: Clock,
    files: Iterable[Path] = (),
    scored: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The provenance fields of one result.

    Args:
        values: the options the stage was given.
        inputs: files or folders the result depends on; their SHA-256 are recorded under their own names.
        files: files written beside the result; their SHA-256 are recorded for later readers.
        scored: of scores, by which an equal model finds them (`stages.twins`).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "scale": scale,
        "cell": cell,
        "made_by": stage_in_progress(),
        "values": dict(values),
        "inputs": {str(path): sha256_file(path) for path in inputs},
        "files": {path.name: sha256_file(path) for path in files},
        **({} if scored is None else {"scored": dict(scored)}),
        "package_version": budgeted_lora.__version__,
        **git_state(),
        "libraries": library_versions(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "device": device_in_use(),
        "started_at": clock.started_at.isoformat(timespec="seconds"),
        "seconds": round(clock.seconds, 3),
    }


def write_result(path: Path | str, payload: Mapping[str, Any], **about: Any) -> None:
    """Writes `payload` with its provenance (keywords of `provenance`) under the key "provenance", and its digest."""
    write_record(path, {**payload, "provenance": provenance(**about)})


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a number."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def git_state() -> dict[str, Any]:
    """Commit of the checkout the package lies in, and whether its code differs; None where there is no checkout.

    Only code counts (`CODE`): values are recorded one by one, so a scale file of one's own is no uncommitted code.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    status = git("status", "--porcelain", "--", *CODE)
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}


@cache
def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def device_in_use() -> dict[str, Any]:
    """The accelerator in use, or the CPU. Looks at torch only if the stage has already loaded it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        properties = torch.cuda.get_device_properties(0)
        return {"type": "cuda", "name": properties.name, "uuid": str(getattr(properties, "uuid", ""))}
    return {"type": "cpu", "name": cpu_name(), "threads": torch.get_num_threads() if torch is not None else None}
