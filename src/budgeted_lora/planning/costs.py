"""The cost of every job of a scale that computes on a device: FLOPs, time, memory, disk (method, section 6).

FLOPs are counted. Time is FLOPs over the assumed rate of a named device, or follows from the steps that `calibrate`
timed. Corpus, tables and figures need no GPU and are not counted. A training on several devices (`gpus_per_run`) takes
the time on one, divided by their number and an assumed efficiency; device memory is that of one of them.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from budgeted_lora.beyond.elastic import scheduled_fraction
from budgeted_lora.config.anatomy import Anatomy
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.data.probes import PROBES
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.method.cost import ModelShape, forward_flops, lora_macs, projections, step_flops
from budgeted_lora.method.schedule import trained_share
from budgeted_lora.planning import memory
from budgeted_lora.planning.devices import EFFICIENCY, Device, Slots, of_one_process
from budgeted_lora.planning.memory import Network
from budgeted_lora.reporting.contents import ICL_TABLES
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.options import removal_windows
from budgeted_lora.workflow.recipes import first_anatomy, shape_of
from budgeted_lora.workflow.targets import limited

ASSUMED_VOCABULARY = 32_000  # "about 32k", derived in the method; a local checkpoint says it exactly
START_UP_SECONDS = 5.0  # per job: imports and loading
DECOMPOSITION_RATE = 3.5e10  # float64 FLOP/s of LAPACK with one thread of a CPU with AVX-512
PROMPT_TOKENS, LONGEST_PROMPT = 150, 400  # mean and maximum of 10-shot prompts with their answers


def decomposition_seconds(shape: ModelShape, recipe: Recipe) -> float:
    """Time until the first step that a start or an order takes which follows from the weights (`training.install`).

    An SVD with vectors per projection and, by statistics, the eigenvectors of its inputs' second moment.
    """
    flops = 0.0
    if recipe.low_rank_init or recipe.order:
        for projection in projections(shape):
            small, large = sorted((projection.d_in, projection.d_out))
            flops += 22 * small**3 + 10 * large * small**2
            if recipe.statistics_windows:
                flops += 10 * projection.d_in**3 + 4 * projection.d_out * projection.d_in**2
    return flops / DECOMPOSITION_RATE


@dataclass(frozen=True)
class Measured:
    """Seconds per token of a student's training with whole dense paths and without them, as `calibrate` timed them."""

    whole: float
    without: float
    peak_bytes: int

    def seconds(self, *, dense_fraction: float) -> float:
        """Seconds per token at a mean dense fraction."""
        return self.without + dense_fraction * (self.whole - self.without)


@dataclass(frozen=True)
class CellCost:
    """One student from training to its scores.

    Attributes:
        processes: of its training, each on a device of its own; scoring takes one.
        teacher_flops: the teacher's part of training.
        train_seconds: on all its devices together.
        device_bytes: of each device; `host_bytes` counts all processes.
    """

    cell: str
    tables: tuple[str, ...]
    method: str
    teacher: str
    budget: float | None
    processes: int
    tokens: int
    teacher_flops: float
    student_flops: float
    evaluation_flops: float
    train_seconds: float
    evaluate_seconds: float
    measured: bool
    device_bytes: int
    evaluation_bytes: int
    host_bytes: int
    disk_bytes: int
    state_bytes: int

    @property
    def hours(self) -> float:
        return (self.train_seconds + self.evaluate_seconds) / 3600

    @property
    def flops(self) -> float:
        return self.teacher_flops + self.student_flops + self.evaluation_flops


@dataclass(frozen=True)
class JobCost:
    """Another job, on one device.

    Attributes:
        kind: pretrain, cache or evaluate (a teacher), measure or evaluate (an untrained student).
        job: the kind and what it is done to, in words.
    """

    kind: str
    job: str
    tokens: int
    flops: float
    seconds: float
    device_bytes: int
    disk_bytes: int


def calibration_key(recipe: Recipe) -> str:
    """What the time of a training step depends on; students with equal keys are timed once."""
    parts = [recipe.method, recipe.teacher, recipe.rank or 0, recipe.student_layers, recipe.student_ffn or 0]
    parts += [recipe.micro_batch_windows, recipe.batch_windows, recipe.train_embeddings_head_norms]
    return " ".join(map(str, parts))


def vocabulary(graph: Graph) -> tuple[int, str]:
    """The vocabulary size that a plan counts with, and where it comes from."""
    config = graph.config
    if config.teachers in ("shipped", "pretrain"):
        return config.tokenizer.vocab_size, "tokenizer.vocab_size"
    first = config.first_teacher
    said = config.teacher_ladder[first].anatomy.vocab_size
    if said is not None:
        return said, f"config.json of {first}"
    fetched = Path(graph.results) / "teachers" / first / "model" / "config.json"
    if fetched.is_file():
        with suppress(BadInput, KeyError, TypeError, ValueError):  # the stage that reads it reports what is wrong
            return int(read_json(fetched)["vocab_size"]), str(fetched)
    return ASSUMED_VOCABULARY, "assumed, no checkpoint is here yet"


class ScaleCosts:
    """The costs of one scale on one device.

    Args:
        measured: times of training steps from `calibrate`, by `calibration_key`.
    """

    def __init__(self, graph: Graph, device: Device, *, measured: Mapping[str, Measured] | None = None) -> None:
        self.graph, self.config, self.device = graph, graph.config, device
        self.measured = dict(measured or {})
        self.vocab_size, self.vocabulary_source = vocabulary(graph)
        self.kind = "cuda" if device.is_gpu else "cpu"
        self.precision = device.computes_in(self.config.training.precision)

    @cached_property
    def cells(self) -> list[CellCost]:
        return [self._cell(name) for name in self.graph.cells]

    @cached_property
    def jobs(self) -> list[JobCost]:
        graph, jobs = self.graph, []
        for name in graph.teachers:
            if self.config.teachers == "pretrain":
                jobs.append(self._pretraining(name))
            jobs.append(self._evaluation(f"teacher {name}", self.teacher(name)))
        scored = set(graph.references())
        for name, recipe in graph.students.items():
            if f"{graph.results}/students/{name}/perplexity.json" in scored:
                jobs.append(self._evaluation(f"untrained {name}", self.student(recipe)))
        jobs += [self._importance(name) for name in graph.students if graph.calibrated(name)]
        measured = dict.fromkeys(graph.student_of(cell) for cell in graph.cells if graph.needs_statistics(cell))
        jobs += [self._statistics(name) for name in measured]
        return [*jobs, *(self._caching(name) for name in graph.caches())]

    def teacher(self, name: str) -> Network:
        return self._network(self.config.teacher_ladder[name].anatomy)

    def student(self, recipe: Recipe | None) -> Network:
        first = first_anatomy(self.config)
        layers, ffn = self.config.student.layers, None
        if recipe is not None:
            layers, ffn = recipe.student_layers, recipe.student_ffn
        return self._network(first, layers=layers, ffn=ffn)

    def _network(self, anatomy: Anatomy, *, layers: int | None = None, ffn: int | None = None) -> Network:
        shape = shape_of(anatomy, layers=layers, ffn=ffn)
        return Network(shape, self.vocab_size, anatomy.tied, anatomy.beside(ffn=ffn), anatomy.heads)

    def _forward(self, network: Network) -> float:
        return forward_flops(network.shape, vocab_size=self.vocab_size, sequence_length=self.config.sequence_length)

    def _cell(self, name: str) -> CellCost:
        cell, recipe, processes = self.graph.cells[name], self.graph.recipe_of(name), self.config.gpus_per_run
        student = self.student(recipe)
        teacher_flops, student_flops = self._training_flops(recipe)
        measured = self.measured.get(calibration_key(recipe))
        if measured is not None:
            seconds = recipe.tokens * measured.seconds(dense_fraction=scheduled_fraction(recipe))
        else:
            seconds = teacher_flops / self.device.rate(self.precision, gradients=False)
            seconds += student_flops / self.device.rate(self.precision, gradients=True)
        if processes > 1:
            seconds /= processes * EFFICIENCY
        seconds += decomposition_seconds(student.shape, recipe)
        in_context = bool(ICL_TABLES & set(cell.tables))
        networks = [student, student]  # the compressed student at its largest, and the uncompressed one
        variants, adapters = len(cell.variants), lora_macs(student.shape, rank=recipe.rank) if recipe.rank else 0
        scored = variants * 2 * self.config.corpus.validation_tokens + (self._prompt_tokens() if in_context else 0)
        scoring = scored * self._forward(student)
        device_bytes, host = self._training_memory(recipe)
        return CellCost(
            cell=name,
            tables=cell.tables,
            method=recipe.method,
            teacher=recipe.teacher,
            budget=recipe.budget,
            processes=processes,
            tokens=recipe.tokens,
            teacher_flops=teacher_flops,
            student_flops=student_flops,
            evaluation_flops=scoring,
            train_seconds=seconds + START_UP_SECONDS,
            evaluate_seconds=scoring / self.device.rate("float32", gradients=False) + variants * START_UP_SECONDS,
            measured=measured is not None,
            device_bytes=device_bytes,
            evaluation_bytes=self._evaluation_bytes(networks, prompts=in_context),
            host_bytes=host,
            disk_bytes=4 * (student.parameters + adapters) * (1 + variants),
            state_bytes=2 * 12 * memory.trained_numbers(recipe, student),  # a new state is written beside the old one
        )

    def _training_flops(self, recipe: Recipe) -> tuple[float, float]:
        """FLOPs of a training: the teacher's part and the student's."""
        student, teacher = self.student(recipe), self.teacher(recipe.teacher)
        head = 2.0 * teacher.shape.hidden * self.vocab_size
        own = step_flops(
            student.shape,
            method=recipe.method,
            vocab_size=self.vocab_size,
            sequence_length=recipe.sequence_length,
            head_trained=recipe.train_embeddings_head_norms,
            rank=recipe.rank,
            rho=scheduled_fraction(recipe),
            trained=trained_share(recipe),
        )
        return recipe.tokens * (head if self.graph.cached else self._forward(teacher)), recipe.tokens * own

    def _training_memory(self, recipe: Recipe) -> tuple[int, int]:
        """Bytes on each device, and bytes of the host for all processes, including one that starts several others."""
        processes, student, teacher = self.config.gpus_per_run, self.student(recipe), self.teacher(recipe.teacher)
        one = memory.training_bytes(
            of_one_process(recipe, processes=processes),
            student=student,
            teacher=teacher,
            precision=self.precision,
            online=not self.graph.cached,
            device=self.kind,
            processes=processes,
        )
        host = memory.host_bytes([student, teacher], device="cuda") if self.device.is_gpu else one
        return one, processes * host + (memory.PROCESS["cpu"] if processes > 1 else 0)

    def _prompt_tokens(self) -> int:
        evaluation = self.config.evaluation
        return len(PROBES) * evaluation.queries * len(evaluation.demonstration_seeds) * PROMPT_TOKENS

    def _evaluation_bytes(self, networks: list[Network], *, prompts: bool) -> int:
        evaluation, length = self.config.evaluation, self.config.sequence_length
        return memory.evaluation_bytes(
            networks,
            tokens=evaluation.batch_windows * length,
            prompts=evaluation.icl_batch if prompts else 0,
            prompt_tokens=min(evaluation.context or length, LONGEST_PROMPT),
            device=self.kind,
        )

    def _evaluation(self, name: str, network: Network) -> JobCost:
        tokens = self.config.corpus.validation_tokens + self._prompt_tokens()
        flops = tokens * self._forward(network)
        seconds = flops / self.device.rate("float32", gradients=False) + START_UP_SECONDS
        size = self._evaluation_bytes([network], prompts=True)
        return JobCost("evaluate", f"evaluate {name}", tokens, flops, seconds, size, 0)

    def _pretraining(self, name: str) -> JobCost:
        network, tokens = self.teacher(name), sum(self.config.teacher_ladder[name].legs)
        flops = 3 * tokens * self._forward(network)
        seconds = flops / self.device.rate(self.config.pretraining.precision, gradients=True) + START_UP_SECONDS
        batch = self.config.pretraining.micro_batch_windows * self.config.sequence_length
        size = memory.pretraining_bytes(network, tokens=batch, device=self.kind)
        return JobCost("pretrain", f"pretrain teacher {name}", tokens, flops, seconds, size, 2 * network.parameters)

    def _statistics(self, name: str) -> JobCost:
        """Forward and backward passes, every projection's inputs times themselves; for `beyond` a pass without each."""
        network, length = self.student(self.graph.students[name]), self.config.sequence_length
        widths = [module.d_in for module in projections(network.shape)]
        tokens = self.config.lora.statistics_windows * length
        flops = tokens * (3 * self._forward(network) + 2.0 * sum(width**2 for width in widths))
        windows = min(removal_windows(self.graph), self.config.lora.statistics_windows)
        flops += windows * length * (3 * len(widths) + 1) * self._forward(network)
        seconds = flops / self.device.rate("float32", gradients=True) + START_UP_SECONDS
        batch = self.config.training.micro_batch_windows * length
        size = memory.statistics_bytes(network, tokens=batch, device=self.kind)
        stored = 4 * sum(module.d_in**2 + module.macs for module in projections(network.shape))
        return JobCost("measure", f"measure statistics of {name}", tokens, flops, seconds, size, stored)

    def _importance(self, name: str) -> JobCost:
        """A forward pass of the first teacher."""
        network, length = self.teacher(self.config.first_teacher), self.config.sequence_length
        tokens = self.config.student.importance_windows * length
        flops = tokens * self._forward(network)
        seconds = flops / self.device.rate("float32", gradients=False) + START_UP_SECONDS
        batch = self.config.training.micro_batch_windows * length
        size = memory.caching_bytes(network, tokens=batch, precision="float32", device=self.kind)
        return JobCost("measure", f"measure layers for {name}", tokens, flops, seconds, size, 0)

    def _caching(self, name: str) -> JobCost:
        cache, length = self.graph.caches()[name], self.config.sequence_length
        network, windows = self.teacher(cache.teacher), cache.windows
        if cache.packing == "packed":  # a run longer than the training file starts over
            windows = min(windows, self.graph.train_tokens() // length)
        tokens = windows * length
        flops = tokens * (self._forward(network) - 2.0 * network.shape.hidden * self.vocab_size)
        seconds = flops / self.device.rate(self.precision, gradients=False) + START_UP_SECONDS
        batch = self.config.training.micro_batch_windows * length
        size = memory.caching_bytes(network, tokens=batch, precision=self.precision, device=self.kind)
        stored = tokens * network.shape.hidden * memory.width_of(self.precision)  # as the teacher computed them
        return JobCost("cache", f"cache teacher {name}", tokens, flops, seconds, size, stored)

    def of(self, *targets: str) -> "ScaleCosts":
        """The costs of some of Snakemake's targets only: `main`, `all`, `sensitivity` ..."""
        return ScaleCosts(limited(self.graph, targets), self.device, measured=self.measured)

    # --- sums ---

    def seconds(self) -> float:
        """Device time of all jobs, one after another; a training takes the time of all its devices."""
        return self._training_seconds() * self.config.gpus_per_run + self._other_seconds()

    def wall_seconds(self, slots: Slots) -> float:
        """Time of all jobs on devices that are never idle."""
        shortest = slots.wall_seconds(trainings=self._training_seconds(), others=self._other_seconds())
        longest = [cell.train_seconds + cell.evaluate_seconds for cell in self.cells]
        return max([shortest, *longest, *(job.seconds for job in self.jobs)])

    def _training_seconds(self) -> float:
        return sum(cell.train_seconds for cell in self.cells)

    def _other_seconds(self) -> float:
        return sum(cell.evaluate_seconds for cell in self.cells) + sum(job.seconds for job in self.jobs)

    def flops(self) -> float:
        return sum(cell.flops for cell in self.cells) + sum(job.flops for job in self.jobs)

    def largest_device_bytes(self) -> tuple[int, str]:
        """Largest device memory of a job, and which job."""
        trainings = [(cell.device_bytes, f"training {cell.cell}") for cell in self.cells]
        return max([*trainings, *self._on_one_device()], default=(0, "no job"))

    def _on_one_device(self) -> list[tuple[int, str]]:
        scoring = [(cell.evaluation_bytes, f"evaluating {cell.cell}") for cell in self.cells]
        return scoring + [(job.device_bytes, job.job) for job in self.jobs]

    def largest_host_bytes(self) -> tuple[int, str]:
        """Largest host memory of a job, and which job."""
        return max(self.largest_training_host(), self.largest_other_host())

    def largest_training_host(self) -> tuple[int, str]:
        """Largest host memory of a training, and which one."""
        return max([(cell.host_bytes, f"training {cell.cell}") for cell in self.cells], default=(0, "no job"))

    def largest_other_host(self) -> tuple[int, str]:
        """Largest host memory of a job that is not a training, and which job."""
        if not self.device.is_gpu:
            return max(self._on_one_device(), default=(0, "no job"))
        teachers = self.graph.teachers
        return max((memory.host_bytes([self.teacher(name)], device="cuda"), f"teacher {name}") for name in teachers)
