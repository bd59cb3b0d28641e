"""Whether a machine can run a scale: its software and hardware against what the plan needs."""

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from budgeted_lora.planning.checks import Check, devices, host, local_inputs, package_version, storage, writable
from budgeted_lora.planning.findings import Finding, missing, ok, short, troubles
from budgeted_lora.planning.hub import cache_folder, check_hub
from budgeted_lora.planning.machine import Machine, this_machine
from budgeted_lora.planning.teachers import local_weights, shipped_teachers
from budgeted_lora.workflow.graph import Graph

DISTRIBUTION = "budgeted-lora"
SLURM_PLUGIN = "snakemake-executor-plugin-slurm"
PYTHONS = ("3.11", "3.13")


def examine(graph: Graph, *, slurm: bool = False, lock: Path = Path("requirements.lock")) -> list[Finding]:
    """Every line of `budgeted-lora doctor`, in its order; asks the Hub if the scale needs it."""
    return [
        *software(lock),
        *(slurm_tools() if slurm else []),
        *examine_quickly(graph, remote=slurm, ask_hub=True),
        *local_weights(graph),
        *writable([Path(graph.results), Path(graph.reports), Path(".snakemake")]),
    ]


def examine_quickly(graph: Graph, *, remote: bool, ask_hub: bool = False) -> list[Finding]:
    """Hardware and inputs against the plan; without `ask_hub` in an instant and without a network."""
    check = Check(graph, machine_for(graph), remote=remote)
    return [
        *devices(check),
        *host(check),
        *storage(check),
        *check_hub(graph.config, Path(graph.results), ask=ask_hub),
        *local_inputs(check),
        *shipped_teachers(graph),
    ]


def refusal(graph: Graph, *, remote: bool) -> str | None:
    """Why a scale cannot run here, in one line; None if it can."""
    problems = troubles(examine_quickly(graph, remote=remote))
    if not problems:
        return None
    text = " | ".join(f"{item.name} {item.state}: {item.line()}" for item in problems)
    return f"scale {graph.config.scale} cannot run here: {text} (`budgeted-lora doctor`; --config fit=warn starts it)"


def machine_for(graph: Graph) -> Machine:
    """This machine, with the disk of the Hub's cache if the scale uses the Hub."""
    uses_hub = graph.config.teachers == "hub" or graph.config.corpus.source == "hub"
    return this_machine(Path(graph.results), hub_cache=cache_folder() if uses_hub else None)


def software(lock: Path) -> list[Finding]:
    """Python, and every required package against its range and the lock."""
    version = platform.python_version()
    fits = Version(PYTHONS[0]) <= Version(version) and Version(version).release[:2] <= Version(PYTHONS[1]).release
    wanted = f"{PYTHONS[0]} to {PYTHONS[1]}"
    python = ok("Python", f"{version} (needs {wanted})")
    if not fits:
        python = short("Python", f"{version}, needs {wanted}", "make setup PYTHON=/path/to/python3.12")
    return [python, *packages(pinned(lock))]


def pinned(lock: Path) -> dict[str, str]:
    """Versions in the lock by normalised name; empty without a lock."""
    if not lock.is_file():
        return {}
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {_normal(name): version for name, version in pins}


def packages(pins: dict[str, str]) -> Iterator[Finding]:
    """One line for each required package that is missing or out of range, and one for all others."""
    required = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    required = [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    other, in_range = [], 0
    for item in required:
        version = package_version(item.name)
        if not version:
            yield missing("package", f"{item.name} (needs {item.specifier})", "make setup")
        elif not item.specifier.contains(Version(version).public, prereleases=True):
            yield short("package", f"{item.name} {version}, needs {item.specifier}", "make setup")
        else:
            in_range += 1
            pin = pins.get(_normal(item.name))
            if pin and Version(pin).public != Version(version).public:
                other.append(f"{item.name} {version} (lock: {pin})")
    text = f"{in_range} of {len(required)} required packages are in range"
    if not pins:
        text += "; no requirements.lock here to compare with"
    elif other:
        text += f"; not the lock's version: {', '.join(other)}, results can differ in the last digits"
    else:
        text += ", all as in the lock"
    yield ok("packages", text)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def slurm_tools() -> Iterator[Finding]:
    """Snakemake's Slurm plugin, and the commands that it calls."""
    plugin = package_version(SLURM_PLUGIN)
    if plugin:
        yield ok("Slurm plugin", f"{SLURM_PLUGIN} {plugin}")
    else:
        yield missing("Slurm plugin", SLURM_PLUGIN, f"pip install {SLURM_PLUGIN}")
    absent = [name for name in ("sbatch", "squeue", "scancel", "sacct") if shutil.which(name) is None]
    if absent:
        yield missing("Slurm", f"no {', '.join(absent)} on PATH", "run on a submit node of the cluster")
    else:
        yield ok("Slurm", "sbatch, squeue, scancel and sacct are on PATH")
