"""Whether a machine can run a scale: what is there beside what the plan needs."""

import importlib.metadata
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from budgeted_lora.config import Config
from budgeted_lora.data.probes import PROBES
from budgeted_lora.graph import Graph
from budgeted_lora.planning.corpus import check_corpus
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import GPUS, cpu
from budgeted_lora.planning.findings import Finding, ok, troubles
from budgeted_lora.planning.hub import cache_folder, check_hub, to_download
from budgeted_lora.planning.machine import Machine, existing, folder_bytes, this_machine
from budgeted_lora.planning.side_by_side import Slots
from budgeted_lora.planning.storage import Disk, disk, downloads

DISTRIBUTION = "budgeted-lora"
SLURM_PLUGIN = "snakemake-executor-plugin-slurm"
PYTHONS = ("3.11", "3.13")


@dataclass(frozen=True)
class Check:
    """A scale and the machine that shall run it. With `remote`, jobs run on other nodes than this one."""

    graph: Graph
    machine: Machine
    remote: bool = False

    @property
    def config(self) -> Config:
        return self.graph.config

    @property
    def on_gpu(self) -> bool:
        """Whether training will run on a GPU."""
        return self.config.device == "cuda" or (self.config.device == "auto" and bool(self.machine.gpus))

    @cached_property
    def costs(self) -> ScaleCosts:
        return ScaleCosts(self.graph, GPUS["a100-80gb"] if self.on_gpu else cpu(self.config.threads.training))

    @property
    def slots(self) -> Slots:
        """Devices that jobs run on side by side: GPUs, or the cores of one process."""
        devices = len(self.machine.gpus) if self.on_gpu else self.machine.cores // self.config.threads.training
        return Slots(max(1, devices), self.config.gpus_per_run)


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


def devices(check: Check) -> Iterator[Finding]:
    """GPUs and their memory against the job that needs most."""
    config, machine = check.config, check.machine
    if check.remote:
        yield ok("device", "jobs run on other nodes; their GPUs are not looked at from here")
        return
    if not check.on_gpu:
        several = f"; each student trains in {config.gpus_per_run} processes" if config.gpus_per_run > 1 else ""
        yield ok("device", f"CPU, {machine.cores} cores (device: {config.device}){several}")
        return
    if not machine.gpus:
        yield Finding(
            "GPU", "missing", "device: cuda, but none is visible",
            "run where nvidia-smi -L lists one, or take a scale with device: auto or cpu",
        )  # fmt: skip
        return
    if len(machine.gpus) < config.gpus_per_run:
        said = f"{len(machine.gpus)} visible, each student trains on {config.gpus_per_run}"
        yield Finding("GPU", "short", said, "lower gpus_per_run, or run where there are as many")
    elif config.gpus_per_run > 1:
        yield ok("GPUs", together(check))
    if "+cpu" in _version("torch"):
        yield Finding("torch", "short", f"{_version('torch')} is a build without CUDA", "make setup with a CUDA index")
    need, job = check.costs.largest_device_bytes()
    for gpu in machine.gpus:
        said = f"{gpu.name} ({gpu.id[:12]}): "
        if gpu.memory_bytes is None:
            yield ok("GPU", f"{said}its memory is not told; the plan needs {gib(need)}")
        elif gpu.memory_bytes < need:
            yield Finding(
                "GPU", "short", f"{said}{gib(gpu.memory_bytes)}, the plan needs {gib(need)} ({job})",
                "lower training.micro_batch_windows or evaluation.batch_windows, or hide it by CUDA_VISIBLE_DEVICES",
            )  # fmt: skip
        else:
            slower = "" if gpu.has_bfloat16 else "; no bfloat16, so it computes in float32, slower and in more memory"
            yield ok("GPU", f"{said}{gib(gpu.memory_bytes)}, the plan needs {gib(need)}{slower}")


def together(check: Check) -> str:
    """How many trainings and other jobs run at once, where a training takes several GPUs."""
    slots = check.slots
    idle = slots.count - slots.trainings * slots.a_run
    said = f"{slots.count} visible, each student trains on {slots.a_run}: {slots.trainings} at once"
    return f"{said}{f', {idle} left to other jobs' if idle else ''}; other jobs take one each"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def host(check: Check) -> Iterator[Finding]:
    """Host memory against one job, all its processes; fewer jobs side by side are the remedy for the rest."""
    if check.remote:
        return
    need, job = check.costs.largest_host_bytes()
    have, wanted = check.machine.host_bytes, check.slots.count
    if have < need:
        yield Finding("memory", "short", f"{gib(have)} free, {job} needs {gib(need)}", "free some, or smaller batches")
        return
    training, other = check.costs.largest_training_host()[0], check.costs.largest_other_host()[0]
    fitting = check.slots.jobs_within(have, training=training, other=other)
    advice = "" if fitting == wanted else f"; {wanted} could run by their devices, so start with --jobs {fitting}"
    yield ok("memory", f"{gib(have)} free, {gib(need)} a job at most ({job}): {fitting} side by side{advice}")


def storage(check: Check) -> Iterator[Finding]:
    """Free disk against what the plan will still write."""
    machine, results = check.machine, Path(check.graph.results)
    plan: Disk = disk(check.costs, slots=check.slots)
    there = folder_bytes(results)
    left = max(plan.results - there, 0)
    to_come = to_download(check.config, results, downloads(check.costs)) if plan.downloads else 0
    need = left + (to_come if machine.one_disk else 0)
    said = f"{gb(machine.disk_bytes)} free at {existing(results)}, {gb(need)} to be written ({gb(there)} is there)"
    if machine.disk_bytes < need:
        largest = max((name for name in vars(plan) if name != "downloads"), key=lambda name: getattr(plan, name))
        remedy = f"free some, or put results/ on a larger disk by a symbolic link; most of it is {largest}"
        yield Finding("disk", "short", said, remedy)
    else:
        yield ok("disk", said)
    if to_come and not machine.one_disk:
        said = f"{gb(machine.cache_bytes)} free at {existing(cache_folder())} for {gb(to_come)} of downloads"
        short = machine.cache_bytes < to_come
        yield Finding("disk", "short", said, "set HF_HOME to a larger disk") if short else ok("disk", said)


def writable(folders: list[Path]) -> Iterator[Finding]:
    """Whether files can be made in each folder, or where it will be made."""
    bad = []
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=existing(folder)):
                pass
        except OSError as error:
            bad.append(folder)
            said = f"{folder}: cannot be written ({error.strerror})"
            yield Finding("write access", "missing", said, "see to its permissions, or run in a folder of your own")
    if not bad:
        yield ok("write access", ", ".join(map(str, folders)))


# --- what else a scale reads


def local_inputs(check: Check) -> Iterator[Finding]:
    """Files that the configuration names, a compiler if it compiles, and the corpus."""
    config, graph = check.config, check.graph
    probes = config.evaluation.probes_folder
    if config.evaluation.probes == "folder" and len(graph.probe_files()) < len(PROBES):
        said = f"{probes}: {len(graph.probe_files())} of the {len(PROBES)} files of Function Vectors"
        remedy = (
            "copy them there from its dataset_files (abstractive and extractive), or set evaluation.probes: generated"
        )
        yield Finding("probes", "missing", said, remedy)
    for name in graph.teachers if config.teachers == "folder" else []:
        if not graph.teacher_files(name):
            said = f"teacher {name}: {config.teacher_ladder[name].folder} holds no checkpoint"
            yield Finding("teacher", "missing", said, f"correct teacher_ladder.{name}.folder")
    compiles = config.teachers == "pretrain" and config.pretraining.compile
    if compiles and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield Finding(
            "compiler", "missing", "pretraining.compile needs a C++ compiler", "install one, or compile: false"
        )
    yield from check_corpus(graph, check.costs)


def gib(count: float) -> str:
    """Memory, in the unit that cards are sold by."""
    return f"{count / 2**30:.1f} GiB"


def gb(count: float) -> str:
    """Disk, in the unit that disks are sold by."""
    return f"{count / 1e9:.1f} GB"
