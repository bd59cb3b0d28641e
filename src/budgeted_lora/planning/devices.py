"""Devices by name: what their data sheets promise, and which share of it we assume a run to reach.

The shares are assumptions, not measurements: eager PyTorch at widths of 768 to 1536 with float32 master weights. A
teacher's forward pass is large matrix products and little else; a student's step adds unfused norms, rotations, the
loss, and low-rank products that wait for memory. `budgeted-lora plan --calibrate` replaces them by a measurement.
"""

import math
import os
from dataclasses import dataclass, replace

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator, or the cores of one job.

    Attributes:
        bfloat16, float32: dense peak in FLOP/s; bfloat16 is None where there are no such units.
        forward, step: assumed share of the peak in a forward pass without gradients, and in a student's step.
        plain: assumed share of the float32 peak of a GPU, whose plain cores are more easily kept busy.
        memory_bytes: of the card; None for a CPU, whose memory is the host's.
        source: where the peaks come from.
    """

    name: str
    bfloat16: float | None
    float32: float
    forward: float
    step: float
    memory_bytes: int | None
    source: str
    plain: float | None = None

    @property
    def is_gpu(self) -> bool:
        return self.memory_bytes is not None

    def computes_in(self, precision: str) -> str:
        """What a job asked for `precision` computes in here, as `training.setup.compute_dtype` decides it."""
        return "bfloat16" if precision == "bfloat16" and self.bfloat16 else "float32"

    def rate(self, precision: str, *, gradients: bool) -> float:
        """FLOP/s assumed of a forward pass, or of a training step (`gradients`)."""
        share = self.step if gradients else self.forward
        if self.bfloat16 and self.computes_in(precision) == "bfloat16":
            return self.bfloat16 * share
        return self.float32 * (self.plain or share)


def _gpu(name: str, bfloat16: float, float32: float, step: float, gib: int, source: str) -> Device:
    return Device(name, bfloat16, float32, 0.40, step, gib * GIB, source, 0.50)


GPUS = {
    device.name: device
    for device in (
        _gpu("a100-80gb", 312e12, 19.5e12, 0.22, 80, "NVIDIA A100 data sheet (SXM), without sparsity"),
        _gpu("a100-40gb", 312e12, 19.5e12, 0.22, 40, "NVIDIA A100 data sheet (SXM), without sparsity"),
        _gpu("h100", 989e12, 67e12, 0.14, 80, "NVIDIA H100 data sheet (SXM), without sparsity"),
        _gpu("h200", 989e12, 67e12, 0.14, 141, "NVIDIA H200 data sheet (SXM), without sparsity"),
        _gpu("rtx4090", 165e12, 82.6e12, 0.22, 24, "NVIDIA Ada architecture paper, float32 accumulation"),
        _gpu("rtx3090", 71e12, 35.6e12, 0.30, 24, "NVIDIA GA102 architecture paper, float32 accumulation"),
    )
}
CORE_FLOPS = 100e9  # two 8-wide float32 multiply-adds a cycle at about 3 GHz


def cpu(threads: int) -> Device:
    """The CPU threads that one job of a scale takes."""
    peak = threads * CORE_FLOPS
    source = f"{threads} thread{'s' if threads > 1 else ''} of 100 GFLOP/s each, a common core of today"
    return Device("cpu", None, peak, 0.35, 0.25, None, source)


def matching(name: str) -> Device:
    """The table's entry for a GPU by the name its driver gives, e.g. "NVIDIA A100-SXM4-80GB"; the paper's if none is.

    The entry carries the driver's name, so that a plan says what it was made for.
    """
    words = name.upper().replace(" ", "").replace("-", "")
    size = "A10040GB" if "40GB" in words else "A10080GB"
    known = {"A100": size, "H100": "H100", "H200": "H200", "RTX4090": "RTX4090", "RTX3090": "RTX3090"}
    entry = next((value for key, value in known.items() if key in words), "A10080GB")
    found = next(device for key, device in GPUS.items() if key.upper().replace("-", "") == entry)
    return replace(found, name=name)


def named_device(name: str | None, config: Config, *, utilisation: float | None = None) -> Device:
    """The device a plan is made for.

    Args:
        name: a key of `GPUS`, `cpu`, or None: the paper's own GPU for a scale that needs one, else this CPU.
        utilisation: share of the peak in place of both assumed ones.

    Raises:
        BadInput: there is no device of that name.
    """
    name = name or ("a100-80gb" if config.device == "cuda" else "cpu")
    if name == "cpu":
        found = cpu(min(config.threads.training, os.cpu_count() or 1))
    elif name in GPUS:
        found = GPUS[name]
    else:
        raise BadInput(f"--device {name!r}: expected one of {', '.join([*GPUS, 'cpu'])}")
    return found if utilisation is None else replace(found, forward=utilisation, step=utilisation, plain=utilisation)


EFFICIENCY = 0.9  # assumed, of GPUs that train one student together: gradients are summed, dropout is drawn for all


@dataclass(frozen=True)
class Slots:
    """Devices of a machine: a training takes `a_run` of them, any other job takes one."""

    count: int
    a_run: int = 1

    @property
    def trainings(self) -> int:
        """Trainings that run at once at most; one where there are too few devices, which then does not start."""
        return max(1, self.count // self.a_run)

    def wall_seconds(self, *, trainings: float, others: float) -> float:
        """The time below which no order of jobs gets: of trainings by themselves, and of all jobs on all devices.

        Args:
            trainings, others: seconds of all jobs of that kind, one after another.
        """
        return max(trainings / self.trainings, (trainings * self.a_run + others) / self.count)

    def memory(self, *, training: int, other: int, jobs: int | None = None) -> int:
        """Most memory of the machine that jobs beside each other hold, of bytes that one of each kind takes.

        Args:
            jobs: how many run at most; as many as there are devices for when None.
        """
        jobs = self.count if jobs is None else jobs
        mixes = [(n, min(jobs - n, self.count - n * self.a_run)) for n in range(min(self.trainings, jobs) + 1)]
        return max(n * training + max(0, rest) * other for n, rest in mixes)

    def jobs_within(self, have: int, *, training: int, other: int) -> int:
        """Jobs beside each other that always fit into `have` bytes, whichever they are; 0 if one does not."""
        fitting = (n for n in range(self.count, 0, -1) if self.memory(training=training, other=other, jobs=n) <= have)
        return next(fitting, 0)


def of_one_rank(recipe: Recipe, *, ranks: int) -> Recipe:
    """What one of `ranks` processes does of every step, in micro-batches as `training.distributed` cuts them."""
    if ranks == 1:
        return recipe
    windows = recipe.batch_windows // ranks
    micro = math.gcd(recipe.micro_batch_windows, windows)
    return recipe.model_copy(update={"batch_windows": windows, "micro_batch_windows": micro})
