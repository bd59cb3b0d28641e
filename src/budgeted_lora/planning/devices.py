"""Devices by name: the peak rates of their data sheets, and the share of the peak that we assume a run reaches.

The shares are assumptions, not measurements, for eager PyTorch at widths of 768 to 1536 with float32 master weights. A
teacher's forward pass consists of large matrix products; a student's step adds unfused norms, rotations, the loss, and
low-rank products that wait for memory. `budgeted-lora plan --calibrate` measures instead.
"""

import math
from dataclasses import dataclass, replace

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.planning.machine import cpu_multiplies_bfloat16, usable_cores

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator, or the cores of one job.

    Attributes:
        bfloat16, float32: dense peak in FLOP/s; bfloat16 is None for a device without such products.
        forward, step: assumed share of the peak in a forward pass without gradients, and in a student's step.
        plain: assumed share of a GPU's float32 peak, whose plain cores are easier to keep busy.
        memory_bytes: of the card; None for a CPU, which uses the host's.
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
        """The precision that a job computes in here; `models.device.compute_dtype` decides likewise."""
        return "bfloat16" if precision == "bfloat16" and self.bfloat16 else "float32"

    def rate(self, precision: str, *, gradients: bool) -> float:
        """Assumed FLOP/s of a forward pass, or of a training step (`gradients`)."""
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
CORE_FLOPS = 100e9  # two 8-wide float32 multiply-adds per cycle at about 3 GHz


def cpu(threads: int) -> Device:
    """The CPU threads of one job as a device; one that multiplies in bfloat16 does so twice as fast."""
    peak = threads * CORE_FLOPS
    source = f"{threads} thread{'s' if threads > 1 else ''} of 100 GFLOP/s each, a common core"
    return Device("cpu", 2 * peak if cpu_multiplies_bfloat16() else None, peak, 0.35, 0.25, None, source)


def matching(name: str) -> Device:
    """The table's entry for a GPU by its driver's name, e.g. "NVIDIA A100-SXM4-80GB"; the paper's GPU if unknown.

    The entry is returned under the driver's name, so that a plan says what it was made for.
    """
    words = name.lower().replace(" ", "").replace("-", "")
    a100 = "a100-40gb" if "a100" in words and "40gb" in words else "a100-80gb"
    entry = next((key for key in ("h100", "h200", "rtx4090", "rtx3090") if key in words), a100)
    return replace(GPUS[entry], name=name)


def named_device(name: str | None, config: Config, *, utilisation: float | None = None) -> Device:
    """The device a plan is made for.

    Args:
        name: a key of `GPUS`, or `cpu`; when None, the paper's GPU for a scale that needs a GPU, else this CPU.
        utilisation: share of the peak that replaces all assumed ones.

    Raises:
        BadInput: the name is unknown.
    """
    name = name or ("a100-80gb" if config.device == "cuda" else "cpu")
    if name == "cpu":
        device = cpu(min(config.threads.training, usable_cores()))
    elif name in GPUS:
        device = GPUS[name]
    else:
        raise BadInput(f"--device {name!r}: expected one of {', '.join([*GPUS, 'cpu'])}")
    if utilisation is None:
        return device
    return replace(device, forward=utilisation, step=utilisation, plain=utilisation)


EFFICIENCY = 0.9  # assumed, of GPUs that train one student together: they sum gradients and draw dropout for all


@dataclass(frozen=True)
class Slots:
    """Devices of a machine: a training takes `per_run` of them, any other job takes one."""

    count: int
    per_run: int = 1

    @property
    def trainings(self) -> int:
        """Largest number of trainings at once; 1 even if there are too few devices for one, which then cannot start."""
        return max(1, self.count // self.per_run)

    def wall_seconds(self, *, trainings: float, others: float) -> float:
        """A lower bound on the time of jobs of so many seconds: the trainings alone, or all jobs spread evenly."""
        return max(trainings / self.trainings, (trainings * self.per_run + others) / self.count)

    def memory(self, *, training: int, other: int, jobs: int | None = None) -> int:
        """Most bytes that jobs side by side hold together.

        Args:
            training, other: bytes of one job of that kind.
            jobs: how many jobs run at most; as many as there are devices for when None.
        """
        jobs = self.count if jobs is None else jobs
        mixes = [(n, min(jobs - n, self.count - n * self.per_run)) for n in range(min(self.trainings, jobs) + 1)]
        return max(n * training + max(0, rest) * other for n, rest in mixes)

    def jobs_within(self, have: int, *, training: int, other: int) -> int:
        """How many jobs side by side always fit into `have` bytes, whichever they are; 0 if not even one does."""
        fitting = (n for n in range(self.count, 0, -1) if self.memory(training=training, other=other, jobs=n) <= have)
        return next(fitting, 0)


def of_one_process(recipe: Recipe, *, processes: int) -> Recipe:
    """The part of each step that one of the processes computes; `training.distributed` cuts it likewise."""
    if processes == 1:
        return recipe
    windows = recipe.batch_windows // processes
    micro = math.gcd(recipe.micro_batch_windows, windows)
    return recipe.model_copy(update={"batch_windows": windows, "micro_batch_windows": micro})
