"""What a training takes of its GPUs, read from a made-up library; without one nothing is recorded."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from fixtures.kills import stop_run
from fixtures.training_world import make_recipe, make_world

from budgeted_lora.method import loop
from budgeted_lora.stages import train_cell as stage
from budgeted_lora.training import progress
from budgeted_lora.training.gpu_meter import GpuMeter


class NVMLError(Exception):
    """What the library raises where it has no answer."""


@dataclass
class Nvml(ModuleType):
    """A made-up library of GPUs that are 50 % busy, hold 3 GB, then 2 GB, and take 10 J between two looks."""

    gpus: tuple[str, ...] = ("GPU-a", "GPU-b")
    lacks: frozenset[str] = frozenset()
    looks: dict[str, int] = field(default_factory=dict)
    NVMLError = NVMLError

    def __post_init__(self) -> None:
        ModuleType.__init__(self, "pynvml")

    def _look(self, name: str, gpu: str = "") -> int:
        if name in self.lacks:
            raise NVMLError(name)
        self.looks[name + gpu] = self.looks.get(name + gpu, 0) + 1
        return self.looks[name + gpu]

    def nvmlInit(self) -> None:  # noqa: N802 (the library's name)
        self._look("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._look("handle")
        if uuid not in self.gpus:
            raise NVMLError(uuid)
        return uuid

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> SimpleNamespace:  # noqa: N802
        self._look("rates", gpu)
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=3_000_000_000 if self._look("memory", gpu) == 1 else 2_000_000_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: str) -> int:  # noqa: N802
        return 10_000 * self._look("energy", gpu)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Nvml]:
    def install(**about: object) -> Nvml:
        library = Nvml(**about)
        monkeypatch.setitem(sys.modules, "pynvml", library)
        return library

    return install


def measured(uuids: list[str]) -> dict[str, object] | None:
    meter = GpuMeter(uuids, every=60.0)
    with meter:
        pass
    meter._sample()
    return meter.reading()


def test_gpus_are_measured_together(nvml: Callable[..., Nvml]) -> None:
    """torch leaves out the first letters of a UUID; 10 J each pass between entering and leaving."""
    nvml()
    reading = measured(["a", "GPU-b"])
    assert reading == {"utilisation": 0.5, "peak_memory_bytes": 3_000_000_000, "joules": pytest.approx(20.0), "gpus": 2}


def test_what_is_used_after_the_run_does_not_count(nvml: Callable[..., Nvml]) -> None:
    nvml()
    meter = GpuMeter(["a"], every=60.0)
    with meter:
        assert meter.state()["joules"] == pytest.approx(10.0)
    assert [meter.reading()["joules"] for _ in range(2)] == [pytest.approx(20.0)] * 2


def test_a_resumed_run_goes_on_from_its_sums(nvml: Callable[..., Nvml]) -> None:
    nvml()
    meter = GpuMeter(["a"], every=60.0)
    meter.resume({"samples": 9, "busy": 9.0, "peak_memory_bytes": 4_000_000_000, "joules": 100.0})
    with meter:
        pass
    reading = meter.reading()
    samples = meter.use.samples
    assert samples > 9
    assert reading["utilisation"] == pytest.approx((9.0 + 0.5 * (samples - 9)) / samples)
    assert (reading["peak_memory_bytes"], reading["joules"]) == (4_000_000_000, pytest.approx(110.0))


def test_a_run_that_was_measured_in_part_has_no_energy(nvml: Callable[..., Nvml]) -> None:
    """Its other part ran without the package, or before there was a meter."""
    nvml()
    meter = GpuMeter(["a"], every=60.0)
    meter.resume(None)
    with meter:
        pass
    assert (meter.reading()["joules"], meter.reading()["utilisation"]) == (None, 0.5)


def test_what_a_gpu_does_not_count_is_null(nvml: Callable[..., Nvml]) -> None:
    """An older GPU counts no energy; a part of one tells no utilisation."""
    nvml(lacks=frozenset({"energy", "rates"}))
    reading = measured(["a"])
    assert (reading["joules"], reading["utilisation"], reading["peak_memory_bytes"]) == (None, None, 3_000_000_000)


@pytest.mark.parametrize("about", [{"lacks": frozenset({"init"})}, {"gpus": ("GPU-other",)}])
def test_without_a_driver_or_the_gpu_there_is_no_reading(nvml: Callable[..., Nvml], about: dict[str, object]) -> None:
    nvml(**about)
    assert measured(["a"]) is None


def test_without_the_package_there_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert measured(["a"]) is None


def test_train_json_says_what_a_gpu_took_and_nothing_of_a_cpu(
    tmp_path: Path, nvml: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that was cut short: the saved state keeps the sums."""
    torch.set_num_threads(1)
    world, library = make_world(tmp_path), nvml()

    def train(out: Path) -> dict[str, object]:
        stage.train_cell(
            recipe=make_recipe("kd_lora"), cell="c", scale="tiny", student=world.student, teacher=world.teacher,
            tokens=world.tokens, out=out, state=out / "state", device="cpu", threads=1, log_every=2,
            checkpoint_every=4,
        )  # fmt: skip
        return json.loads((out / "train.json").read_text())

    assert "gpu" not in train(tmp_path / "cpu")
    assert library.looks == {}

    monkeypatch.setattr(stage, "device_in_use", lambda: {"type": "cuda", "name": "made up", "uuid": "a"})
    stop_run(monkeypatch, loop, "accumulate_gradients", lambda: train(tmp_path / "gpu"), after=6)
    [state] = (tmp_path / "gpu" / "state").iterdir()
    kept = progress.TrainingState(state)._read()[0][progress.GPU]
    assert kept["joules"] == pytest.approx(10.0)
    library.looks.clear()
    record = train(tmp_path / "gpu")["gpu"]
    # 12 steps: saved after steps 8 and 12, then the end; each look finds 10 J more than the one before.
    assert record["joules"] == pytest.approx(kept["joules"] + 30.0)
    assert (record["utilisation"], record["gpus"]) == (0.5, 1)
    weights = [(tmp_path / name / "trained" / "model.safetensors").read_bytes() for name in ("cpu", "gpu")]
    assert weights[0] == weights[1]
