"""Threads, devices and their precision."""

from pathlib import Path

import pytest
import torch

from budgeted_lora.errors import BadInput
from budgeted_lora.models import device
from budgeted_lora.models.device import compute_dtype, on_device
from budgeted_lora.planning import machine


def test_threads_are_put_back_and_devices_checked():
    before = torch.get_num_threads()
    with on_device("cpu", threads=before + 1) as where:
        assert where.type == "cpu"
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(BadInput, match="device is 'gpu'"), on_device("gpu", threads=1):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="device is cuda"), on_device("cuda", threads=1):
            pass


@pytest.mark.parametrize(
    ("flags", "has"),
    [("fpu avx2", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx512_bf16x", False)],
)
def test_a_plan_reads_what_jobs_ask_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, has: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: amx_bf16\n")
    assert machine.cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is has
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags.split(), True))
    assert device.cpu_multiplies_bfloat16() is has
    assert compute_dtype("bfloat16", torch.device("cpu")) == (torch.bfloat16 if has else torch.float32)
    assert compute_dtype("float32", torch.device("cpu")) == torch.float32


def test_both_say_the_same_of_this_machine(tmp_path: Path) -> None:
    assert not machine.cpu_multiplies_bfloat16(tmp_path / "missing")
    if Path("/proc/cpuinfo").exists():
        assert machine.cpu_multiplies_bfloat16() == device.cpu_multiplies_bfloat16()
