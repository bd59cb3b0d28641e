"""What a training takes of its GPUs, by NVIDIA's management library: how busy they are, memory, energy.

Whole GPUs are measured, so what else runs on them counts too. Without a GPU, a driver or the package (nvidia-ml-py, the
extra `gpu`) there is no reading. Samples are taken on a thread of their own and touch neither weights nor generators.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from threading import Event, Lock, Thread
from types import ModuleType
from typing import Any

EVERY = 1.0  # seconds between samples; the driver averages utilisation over less than that
JOULES = 1e-3  # NVML counts millijoules


@dataclass
class GpuUse:
    """Sums over a run and its earlier parts.

    Attributes:
        samples: of one GPU each; `busy` is the sum of the shares of time in which it computed, in [0, 1].
        peak_memory_bytes: largest of one GPU.
        joules: of all GPUs together; None where one of them, or an earlier part of the run, did not count them.
    """

    samples: int = 0
    busy: float = 0.0
    peak_memory_bytes: int = 0
    joules: float | None = 0.0


class GpuMeter:
    """Measures GPUs from the moment it is entered until it is left.

    Args:
        uuids: of the GPUs, as torch gives them.
        every: seconds between samples.
    """

    def __init__(self, uuids: Sequence[str], *, every: float = EVERY) -> None:
        self.use, self.every = GpuUse(), every
        self._nvml = opened() if uuids else None
        handles = [self._ask("nvmlDeviceGetHandleByUUID", full_uuid(uuid)) for uuid in uuids] if self._nvml else []
        self._handles = [] if None in handles else handles
        self._counted: list[float | None] = []
        self._lock, self._ended = Lock(), Event()
        self._thread = Thread(target=self._run, name="gpu meter", daemon=True)

    def __enter__(self) -> "GpuMeter":
        self._counted = self._energies()
        if self._handles:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._count_energy()
        self._ended.set()
        if self._handles:
            self._thread.join()

    def resume(self, saved: dict[str, Any] | None) -> None:
        """Goes on from what `state` said in an earlier part of the run; None means that it was not measured."""
        self.use = GpuUse(**saved) if saved else GpuUse(joules=None)

    def state(self) -> dict[str, Any] | None:
        """The sums until now; None without a reading."""
        if not self._handles:
            return None
        if not self._ended.is_set():
            self._count_energy()
        with self._lock:
            return asdict(self.use)

    def reading(self) -> dict[str, Any] | None:
        """What train.json says: mean utilisation in [0, 1], peak memory in bytes, joules; None without a reading."""
        sums = self.state()
        if sums is None:
            return None
        mean = sums["busy"] / sums["samples"] if sums["samples"] else None
        peak = sums["peak_memory_bytes"] or None
        return {"utilisation": mean, "peak_memory_bytes": peak, "joules": sums["joules"], "gpus": len(self._handles)}

    def _run(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(self.every):
                return

    def _sample(self) -> None:
        for handle in self._handles:
            rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            with self._lock:
                if rates is not None:
                    self.use.samples += 1
                    self.use.busy += rates.gpu / 100
                if memory is not None:
                    self.use.peak_memory_bytes = max(self.use.peak_memory_bytes, memory.used)

    def _count_energy(self) -> None:
        """Adds what was used since the last count."""
        before, self._counted = self._counted, self._energies()
        if self.use.joules is None or None in (*before, *self._counted):
            self.use.joules = None
        else:
            self.use.joules += sum(self._counted) - sum(before)

    def _energies(self) -> list[float | None]:
        """Joules that each GPU has counted since its driver was loaded; None where it counts none."""
        counted = [self._ask("nvmlDeviceGetTotalEnergyConsumption", handle) for handle in self._handles]
        return [None if value is None else value * JOULES for value in counted]

    def _ask(self, name: str, argument: Any) -> Any:
        """An answer of the library; None where the GPU, a part of one, or an old driver has none."""
        function: Callable[[Any], Any] | None = getattr(self._nvml, name, None)
        try:
            return function(argument) if function else None
        except self._nvml.NVMLError:
            return None


def opened() -> ModuleType | None:
    """The library, ready to be asked; None without package or driver."""
    try:
        import pynvml  # of the extra `gpu`
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def full_uuid(uuid: str) -> str:
    """As the driver calls a GPU; torch leaves the first letters out."""
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
