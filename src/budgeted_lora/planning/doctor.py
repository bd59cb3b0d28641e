"""Whether a machine can run a scale: what is there beside what the plan needs."""

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from budgeted_lora.planning.checks import Check, devices, host, local_inputs, storage, writable
from budgeted_lora.planning.findings import Finding, ok, troubles
from budgeted_lora.planning.hub import cache_folder, check_hub
from budgeted_lora.planning.machine import (
    Machine,
    this_machine,
)
from budgeted_lora.workflow.graph import Graph

DISTRIBUTION = "budgeted-lora"
SLURM_PLUGIN = "snakemake-executor-plugin-slurm"
PYTHONS = ("3.11", "3.13")


def examine(graph: Graph, *, slurm: bool = False, lock: Path = Path("requirements.lock")) -> list[Finding]:
    """Every line of `budgeted-lora doctor`, in its order. Asks the Hub where the scale needs it."""
    check = Check(graph, machine_for(graph), remote=slurm)
    results = Path(graph.results)
    return [
        *software(lock),
        *(slurm_tools() if slurm else []),
        *devices(check),
        *host(check),
        *storage(check),
        *writable([results, Path(graph.reports), Path(".snakemake")]),
        *check_hub(graph.config, results, ask=True),
        *local_inputs(check),
    ]


def examine_quickly(graph: Graph, *, remote: bool) -> list[Finding]:
    """What can be told at once and without a network: asked before the first job of every run."""
    check = Check(graph, machine_for(graph), remote=remote)
    results = Path(graph.results)
    return [
        *devices(check),
        *host(check),
        *storage(check),
        *check_hub(graph.config, results, ask=False),
        *local_inputs(check),
    ]


def refusal(graph: Graph, *, remote: bool) -> str | None:
    """Why a scale cannot run here, in one line; None where nothing is short."""
    found = troubles(examine_quickly(graph, remote=remote))
    if not found:
        return None
    said = " | ".join(f"{item.name} {item.state}: {item.line()}" for item in found)
    return f"scale {graph.config.scale} cannot run here: {said} (`budgeted-lora doctor`; --config fit=warn starts it)"


def machine_for(graph: Graph) -> Machine:
    """This machine as a scale sees it."""
    uses_hub = graph.config.teachers == "hub" or graph.config.corpus.source == "hub"
    return this_machine(Path(graph.results), hub_cache=cache_folder() if uses_hub else None)


# --- software


def software(lock: Path) -> list[Finding]:
    """Python, and every package this one requires against its range and the lock."""
    version = platform.python_version()
    fits = Version(PYTHONS[0]) <= Version(version) and Version(version).release[:2] <= Version(PYTHONS[1]).release
    wanted = f"{PYTHONS[0]} to {PYTHONS[1]}"
    python = ok("Python", f"{version} (needs {wanted})")
    if not fits:
        python = Finding("Python", "short", f"{version}, needs {wanted}", "make setup PYTHON=/path/to/python3.12")
    return [python, *packages(pinned(lock))]


def pinned(lock: Path) -> dict[str, str]:
    """Versions of the lock by normalised name; none where there is no lock."""
    if not lock.is_file():
        return {}
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {_normal(name): version for name, version in found}


def packages(pins: dict[str, str]) -> Iterator[Finding]:
    """A line for each required package that is absent or out of range, one for all others."""
    required = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    wanted = [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    other, absent = [], 0
    for item in wanted:
        try:
            found = importlib.metadata.version(item.name)
        except importlib.metadata.PackageNotFoundError:
            absent += 1
            yield Finding("package", "missing", f"{item.name} (needs {item.specifier})", "make setup")
            continue
        if not item.specifier.contains(Version(found).public, prereleases=True):
            absent += 1
            yield Finding("package", "short", f"{item.name} {found}, needs {item.specifier}", "make setup")
            continue
        pin = pins.get(_normal(item.name))
        if pin and Version(pin).public != Version(found).public:
            other.append(f"{item.name} {found} (lock: {pin})")
    said = f"{len(wanted) - absent} of {len(wanted)} required packages are in range"
    if not pins:
        said += "; no requirements.lock here to compare with"
    elif other:
        said += f"; not the lock's version: {', '.join(other)}, results can differ in the last digits"
    else:
        said += ", all as the lock has them"
    yield ok("packages", said)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def slurm_tools() -> Iterator[Finding]:
    """Snakemake's Slurm plugin, the commands it calls, and our profile."""
    try:
        yield ok("Slurm plugin", f"{SLURM_PLUGIN} {importlib.metadata.version(SLURM_PLUGIN)}")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("Slurm plugin", "missing", SLURM_PLUGIN, f"pip install {SLURM_PLUGIN}")
    absent = [name for name in ("sbatch", "squeue", "scancel", "sacct") if shutil.which(name) is None]
    if absent:
        yield Finding("Slurm", "missing", f"no {', '.join(absent)} on PATH", "run on a submit node of the cluster")
    else:
        yield ok("Slurm", "sbatch, squeue, scancel and sacct are on PATH")


# --- hardware against the plan


# --- what else a scale reads
