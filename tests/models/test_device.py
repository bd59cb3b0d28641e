"""Threads, devices and their precision."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.errors import BadInput
from budgeted_lora.models import device
from budgeted_lora.models.device import WIDE, compute_dtype, multiply_wide, on_device
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


@pytest.fixture
def own_products() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def test_a_wide_model_multiplies_in_onednn_only_where_that_keeps_float32(
    monkeypatch: pytest.MonkeyPatch, own_products: None
) -> None:
    cpu = torch.device("cpu")
    multiply_wide(WIDE - 1, cpu)
    assert torch.get_float32_matmul_precision() == "highest"
    for keeps, chosen in ((True, "medium"), (False, "highest")):
        monkeypatch.setattr(device, "_keeps_float32", lambda keeps=keeps: keeps)
        multiply_wide(WIDE, cpu)
        assert torch.get_float32_matmul_precision() == chosen
    torch.set_float32_matmul_precision("high")
    multiply_wide(WIDE, torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "high"


def test_a_choice_of_products_ends_with_its_block(own_products: None) -> None:
    with on_device("cpu", threads=1):
        torch.set_float32_matmul_precision("medium")
    assert torch.get_float32_matmul_precision() == "highest"


def test_rounded_products_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device._keeps_float32()  # torch's default
    exact = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: exact(a.bfloat16(), b.bfloat16()).float())
    assert not device._keeps_float32()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 300),
    inner=st.sampled_from([16, 256, 384]),
    columns=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_products_of_wide_models_are_those_of_float64(rows: int, inner: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(n, inner, generator=random) for n in (rows, columns))
    multiply_wide(WIDE, torch.device("cpu"))
    try:
        found = torch.nn.functional.linear(one, other)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found.double(), one.double() @ other.double().T, rtol=0, atol=1e-6 * inner)
