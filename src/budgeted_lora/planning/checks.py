"""Single checks of a machine against a scale: devices, memory, disk, local inputs."""

import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from budgeted_lora.config.scale import Config
from budgeted_lora.data.probes import PROBES
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import GPUS, Slots, cpu
from budgeted_lora.planning.findings import Finding, ok
from budgeted_lora.planning.hub import cache_folder, spans, to_download
from budgeted_lora.planning.machine import Machine, existing, folder_bytes
from budgeted_lora.planning.storage import Disk, disk, downloads, held_out_tokens
from budgeted_lora.workflow.graph import Graph

LISTED = 4  # names of files in a line


def check_corpus(graph: Graph, costs: ScaleCosts) -> Iterator[Finding]:
    """A line for everything that is missing, one for the held-out slice."""
    corpus = graph.config.corpus
    if corpus.source == "files" and not graph.corpus_files():
        wanted = f" for {corpus.shards.read} shards" if corpus.shards else ""
        yield Finding("corpus", "missing", f"no file matches {', '.join(corpus.files)}{wanted}", "correct corpus.files")
    elif corpus.shards:
        yield from _local_shards(graph)
    for name in corpus.packages if corpus.source == "docstrings" else []:
        if importlib.util.find_spec(name) is None:
            remedy = "install it, or take it off corpus.packages"
            yield Finding("corpus", "missing", f"package {name!r} is not installed", remedy)
    yield from _held_out(graph, costs)


def _local_shards(graph: Graph) -> Iterator[Finding]:
    """Whether each shard has its one file, where none is downloaded."""
    jobs, corpus = graph.shard_jobs(), graph.config.corpus
    if jobs.downloaded:
        return
    shards = corpus.shards
    needed = f"{shards.read} are read (corpus.shards: train {shards.train}, held_out {shards.read})"
    if corpus.source == "files":
        files = graph.corpus_files()
        if len(files) < shards.read:
            said = f"{len(files)} files match corpus.files ({_some(files)}), {needed}"
            remedy = f"add {shards.read - len(files)}, or read {len(files)} at most: lower corpus.shards"
            yield Finding("corpus", "short", said, remedy)
        return
    found = {shard: jobs.local_files(shard) for shard in jobs.names}
    absent = [shard for shard, files in found.items() if not files]
    if absent:
        said = f"{corpus.hub.name}: no file for {len(absent)} of its shards ({spans(absent)}), {needed}"
        yield Finding("corpus", "missing", said, f"add what matches {jobs.pattern(absent[0])} and so on")
    double = [shard for shard, files in found.items() if len(files) > 1]
    if double:
        said = f"{corpus.hub.name}: several files for shard {double[0]} ({_some(found[double[0]])})"
        yield Finding("corpus", "short", said, "expected one a shard: correct corpus.shards.pattern")


def _some(files: list[str]) -> str:
    """The names of files, at most a few."""
    names = [Path(path).name for path in files]
    return ", ".join(names if len(names) <= LISTED else [*names[: LISTED - 1], f"{len(names) - LISTED + 1} more"])


def _held_out(graph: Graph, costs: ScaleCosts) -> Iterator[Finding]:
    corpus = graph.config.corpus
    if not (corpus.characters or corpus.shards) or (Path(graph.results) / "data/manifest.json").is_file():
        return
    expected, wanted = held_out_tokens(costs), corpus.validation_tokens
    said = f"a slice of {corpus.slice_per_mille} per mille holds about {expected:,} tokens, {wanted:,} are asked for"
    if expected < wanted:
        more = "corpus.shards.held_out" if corpus.shards else "corpus.characters"
        yield Finding("validation", "short", said, f"raise {more}, or lower corpus.validation_tokens")
    else:
        yield ok("validation", said)


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
