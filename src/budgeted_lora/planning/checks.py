"""Checks of a machine against a scale: devices, memory, disk, local inputs, corpus. Each yields its findings."""

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
from budgeted_lora.data.readers import find_package, matching_files
from budgeted_lora.errors import BadInput
from budgeted_lora.models.checkpoint import check_checkpoint
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import GPUS, Slots, cpu
from budgeted_lora.planning.findings import Finding, gb, gib, missing, ok, short
from budgeted_lora.planning.hub import cache_folder, spans, to_download
from budgeted_lora.planning.machine import Machine, existing, folder_bytes
from budgeted_lora.planning.storage import disk, downloads, held_out_tokens
from budgeted_lora.workflow.graph import Graph

LISTED = 4  # names of files in one line
# By key of `evaluation`: the module that it needs, and the extra of pyproject.toml that installs it.
EXTRAS = {"lm_eval": ("lm_eval", "lm-eval"), "int8": ("torchao", "int8")}


@dataclass(frozen=True)
class Check:
    """A scale and the machine that is to run it; with `remote`, jobs run on other nodes than this one."""

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
        """Devices on which jobs run side by side: GPUs, or the cores of one process."""
        devices = len(self.machine.gpus) if self.on_gpu else self.machine.cores // self.config.threads.training
        return Slots(max(1, devices), self.config.gpus_per_run)


def devices(check: Check) -> Iterator[Finding]:
    """GPUs and their memory against the job that needs most."""
    config, machine = check.config, check.machine
    if check.remote:
        yield ok("device", "jobs run on other nodes, whose GPUs cannot be checked from here")
        return
    if not check.on_gpu:
        several = f"; each student trains in {config.gpus_per_run} processes" if config.gpus_per_run > 1 else ""
        yield ok("device", f"CPU, {machine.cores} cores (device: {config.device}){several}")
        return
    if not machine.gpus:
        remedy = "run where nvidia-smi -L lists one, or choose a scale with device: auto or cpu"
        yield missing("GPU", "device: cuda, but none is visible", remedy)
        return
    if len(machine.gpus) < config.gpus_per_run:
        detail = f"{len(machine.gpus)} visible, each student trains on {config.gpus_per_run}"
        yield short("GPU", detail, "lower gpus_per_run, or run on a machine with enough GPUs")
    elif config.gpus_per_run > 1:
        slots = check.slots
        idle = slots.count - slots.trainings * slots.per_run
        spare = f", {idle} left for other jobs" if idle else ""
        text = f"{slots.count} visible, each student trains on {slots.per_run}: {slots.trainings} at once{spare}"
        yield ok("GPUs", f"{text}; other jobs take one each")
    torch = package_version("torch")
    if "+cpu" in torch:
        yield short("torch", f"{torch} is a build without CUDA", "make setup with a CUDA index")
    need, job = check.costs.largest_device_bytes()
    for gpu in machine.gpus:
        name = f"{gpu.name} ({gpu.id[:12]})"
        if gpu.memory_bytes is None:
            yield ok("GPU", f"{name}: unknown memory, the plan needs {gib(need)}")
        elif gpu.memory_bytes < need:
            detail = f"{name}: {gib(gpu.memory_bytes)}, the plan needs {gib(need)} ({job})"
            remedy = (
                "lower training.micro_batch_windows or evaluation.batch_windows, or hide it by CUDA_VISIBLE_DEVICES"
            )
            yield short("GPU", detail, remedy)
        else:
            slower = "" if gpu.has_bfloat16 else "; no bfloat16, so it computes in float32, slower and in more memory"
            yield ok("GPU", f"{name}: {gib(gpu.memory_bytes)}, the plan needs {gib(need)}{slower}")


def package_version(name: str) -> str:
    """The installed version of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def host(check: Check) -> Iterator[Finding]:
    """Host memory against one job with all its processes. To run fewer jobs side by side cures the rest."""
    if check.remote:
        return
    need, job = check.costs.largest_host_bytes()
    free, wanted = check.machine.host_bytes, check.slots.count
    if free < need:
        yield short("memory", f"{gib(free)} free, {job} needs {gib(need)}", "free some, or use smaller batches")
        return
    training, other = check.costs.largest_training_host()[0], check.costs.largest_other_host()[0]
    fitting = check.slots.jobs_within(free, training=training, other=other)
    advice = "" if fitting == wanted else f"; {wanted} could run by their devices, so start with --jobs {fitting}"
    yield ok("memory", f"{gib(free)} free, at most {gib(need)} per job ({job}): {fitting} side by side{advice}")


def storage(check: Check) -> Iterator[Finding]:
    """Free disk space against what the plan will still write."""
    machine, results, plan = check.machine, Path(check.graph.results), disk(check.costs, slots=check.slots)
    present = folder_bytes(results)
    to_come = to_download(check.config, results, downloads(check.costs)) if plan.downloads else 0
    need = max(plan.results - present, 0) + (to_come if machine.one_disk else 0)
    detail = f"{gb(machine.disk_bytes)} free at {existing(results)}, {gb(need)} to be written ({gb(present)} present)"
    if machine.disk_bytes < need:
        largest = max((name for name in vars(plan) if name != "downloads"), key=lambda name: getattr(plan, name))
        remedy = f"free some, or put results/ on a larger disk by a symbolic link; most of it is {largest}"
        yield short("disk", detail, remedy)
    else:
        yield ok("disk", detail)
    if to_come and not machine.one_disk:
        detail = f"{gb(machine.cache_bytes)} free at {existing(cache_folder())} for {gb(to_come)} of downloads"
        fits = machine.cache_bytes >= to_come
        yield ok("disk", detail) if fits else short("disk", detail, "set HF_HOME to a larger disk")


def writable(folders: list[Path]) -> Iterator[Finding]:
    """Whether files can be made in each folder, or in the place where it will be made."""
    all_writable = True
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=existing(folder)):
                pass
        except OSError as error:
            all_writable = False
            remedy = "change its permissions, or run in a folder of your own"
            yield missing("write access", f"{folder}: cannot be written ({error.strerror})", remedy)
    if all_writable:
        yield ok("write access", ", ".join(map(str, folders)))


def local_inputs(check: Check) -> Iterator[Finding]:
    """Files that the configuration names, a compiler if the scale compiles, and the corpus."""
    config, graph = check.config, check.graph
    yield from extras(graph)
    yield from own_tasks(graph)
    yield from probe_files(graph)
    yield from local_teachers(graph)
    compiles = config.teachers == "pretrain" and config.pretraining.compile
    if compiles and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield missing("compiler", "pretraining.compile needs a C++ compiler", "install one, or set compile: false")
    yield from corpus_files(graph)
    yield from held_out(graph, check.costs)


def extras(graph: Graph) -> Iterator[Finding]:
    """Optional packages that are not installed, of what the configuration asks for."""
    for what, (package, extra) in EXTRAS.items():
        if graph.asked(what) and importlib.util.find_spec(package) is None:
            yield missing("package", f"{package}, which evaluation.{what} needs", f"pip install -e '.[{extra}]'")


def own_tasks(graph: Graph) -> Iterator[Finding]:
    """A folder of tasks for lm-evaluation-harness that holds none: scoring comes after the trainings."""
    folder = graph.config.evaluation.lm_eval_folder
    if folder and graph.asked("lm_eval") and not any(name.endswith(".yaml") for name in graph.task_files()):
        yield missing("tasks", f"{folder}: no YAML file, as a task is", "correct evaluation.lm_eval_folder")


def probe_files(graph: Graph) -> Iterator[Finding]:
    """What is missing of the original probe files, where they are evaluated."""
    evaluation = graph.config.evaluation
    present = len(graph.probe_files()) if evaluation.probes == "folder" else len(PROBES)
    if present < len(PROBES):
        detail = f"{evaluation.probes_folder}: {present} of the {len(PROBES)} files of Function Vectors"
        copy = "copy them there from its dataset_files (abstractive and extractive)"
        yield missing("probes", detail, f"{copy}, or set evaluation.probes: generated")


def local_teachers(graph: Graph) -> Iterator[Finding]:
    """Whether the checkpoints of local folders can be used, by their file headers."""
    for name in graph.teachers if graph.config.teachers == "folder" else []:
        spec, remedy = graph.config.teacher_ladder[name], f"correct teacher_ladder.{name}.folder"
        if not graph.teacher_files(name):
            yield missing("teacher", f"teacher {name}: {spec.folder} holds no checkpoint", remedy)
            continue
        try:
            about = check_checkpoint(Path(spec.folder), name=name, spec=spec)
        except BadInput as error:
            yield missing("teacher", str(error), f"{remedy}, or choose another checkpoint")
        else:
            yield ok("teacher", f"{name}: {about['model_type']} of {about['parameters']:,} parameters, {spec.folder}")


def corpus_files(graph: Graph) -> Iterator[Finding]:
    """What is missing of the corpus; nothing if it is complete."""
    corpus = graph.config.corpus
    unmatched = [] if corpus.source != "files" else [name for name in corpus.files if not matching_files(name)]
    if unmatched and (len(unmatched) == len(corpus.files) or not corpus.shards):
        wanted = f" for {corpus.shards.read} shards" if corpus.shards else ""
        yield missing("corpus", f"no file matches {_some(unmatched, whole=True)}{wanted}", "correct corpus.files")
    elif corpus.shards:
        yield from _local_shards(graph)
    for name in corpus.packages if corpus.source == "docstrings" else []:
        try:
            spec = find_package(name)
        except BadInput as error:
            yield missing("corpus", str(error), "")
            continue
        if spec is None or not spec.submodule_search_locations:
            yield missing("corpus", f"package {name!r} is not installed", "install it, or edit corpus.packages")


def _local_shards(graph: Graph) -> Iterator[Finding]:
    """Whether each shard has exactly one file, if shards are not downloaded."""
    jobs, corpus = graph.shard_jobs(), graph.config.corpus
    if jobs.downloaded:
        return
    shards = corpus.shards
    needed = f"{shards.read} are read (corpus.shards: train {shards.train}, held_out {shards.read})"
    if corpus.source == "files":
        files = graph.corpus_files()
        if len(files) < shards.read:
            detail = f"{len(files)} files match corpus.files ({_some(files)}), {needed}"
            remedy = f"add {shards.read - len(files)}, or read at most {len(files)}: lower corpus.shards"
            yield short("corpus", detail, remedy)
        return
    by_shard = {shard: jobs.local_files(shard) for shard in jobs.names}
    absent = [shard for shard, files in by_shard.items() if not files]
    if absent:
        detail = f"{corpus.hub.name}: no file for {len(absent)} of its shards ({spans(absent)}), {needed}"
        yield missing("corpus", detail, f"add the files that match {jobs.pattern(absent[0])} and so on")
    double = [shard for shard, files in by_shard.items() if len(files) > 1]
    if double:
        detail = f"{corpus.hub.name}: several files for shard {double[0]} ({_some(by_shard[double[0]])})"
        yield short("corpus", detail, "expected one per shard: correct corpus.shards.pattern")


def _some(files: list[str], *, whole: bool = False) -> str:
    """The names of files, at most `LISTED`; with their folders if `whole`."""
    names = files if whole else [Path(path).name for path in files]
    return ", ".join(names if len(names) <= LISTED else [*names[: LISTED - 1], f"{len(names) - LISTED + 1} more"])


def held_out(graph: Graph, costs: ScaleCosts) -> Iterator[Finding]:
    """Whether the held-out slice of a corpus that is not here yet will be large enough."""
    corpus = graph.config.corpus
    if not (corpus.characters or corpus.shards) or (Path(graph.results) / "data/manifest.json").is_file():
        return
    expected, wanted = held_out_tokens(costs), corpus.validation_tokens
    slice_text = f"a slice of {corpus.slice_per_mille} per mille holds about {expected:,} tokens"
    detail = f"{slice_text}, corpus.validation_tokens is {wanted:,}"
    if expected < wanted:
        more = "corpus.shards.held_out" if corpus.shards else "corpus.characters"
        yield short("validation", detail, f"raise {more}, or lower corpus.validation_tokens")
    else:
        yield ok("validation", detail)
