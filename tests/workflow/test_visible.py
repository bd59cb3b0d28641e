"""CUDA_VISIBLE_DEVICES as CUDA reads it, on made-up machines: a fake nvidia-smi lists GPUs of one or several kinds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from budgeted_lora.errors import BadInput
from budgeted_lora.workflow.slots import gpu_slots
from budgeted_lora.workflow.visible import visible_devices

ALIKE = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8f3c1111-0000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-8f3c2222-0000)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa3333-0000)
"""
MIXED = """\
GPU 0: NVIDIA T4 (UUID: GPU-8f3c1111-0000)
GPU 1: NVIDIA H100 PCIe (UUID: GPU-8f3c2222-0000)
"""
SPLIT = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8f3c1111-0000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-8f3c2222-0000)
  MIG 1g.10gb     Device  0: (UUID: MIG-aaaa)
  MIG 1g.10gb     Device  1: (UUID: MIG-bbbb)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa3333-0000)
  MIG 7g.80gb     Device  0: (UUID: MIG-GPU-11aa3333-0000/7/0)
"""
A, B, C = "GPU-8f3c1111-0000", "GPU-8f3c2222-0000", "GPU-11aa3333-0000"
OLD = f"MIG-{C}/7/0"
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    def set_up(listing: str, inherited: str | None, order: str | None = None) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}END\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        for name, value in (("CUDA_VISIBLE_DEVICES", inherited), ("CUDA_DEVICE_ORDER", order)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return set_up


@pytest.mark.parametrize(
    ("listing", "inherited", "order", "expected"),
    [
        (ALIKE, None, None, [A, B, C]),
        (ALIKE, "2,0", None, [C, A]),
        (ALIKE, f"GPU-8f3c1,{B.lower().replace('gpu', 'GPU')}", None, [A, B]),
        (ALIKE, "1,-1,0", None, [B]),
        (ALIKE, "1,", None, [B]),
        (ALIKE, "1,,0", None, [B]),
        (ALIKE, "", None, []),
        (ALIKE, "NoDevFiles", None, []),
        (MIXED, "1", "PCI_BUS_ID", [B]),
        (MIXED, "GPU-8f3c2", None, [B]),
        (MIXED, None, None, [A, B]),
        (SPLIT, None, None, [A, "MIG-aaaa", "MIG-bbbb", OLD]),
        (SPLIT, "MIG-bbbb,0", None, ["MIG-bbbb", A]),
        (SPLIT, "2", None, [OLD]),
        (SPLIT, f"{OLD},MIG-aa", None, [OLD, "MIG-aaaa"]),
        ("", "0,GPU-x", None, ["0", "GPU-x"]),
    ],
)
def test_ids_become_full_uuids(
    machine: Machine, listing: str, inherited: str | None, order: str | None, expected: list[str]
) -> None:
    machine(listing, inherited, order)
    assert visible_devices() == expected


@pytest.mark.parametrize(
    ("listing", "inherited", "expected"),
    [
        (ALIKE, "0,0", f"names device {A} twice"),
        (ALIKE, "0,GPU-8f3c1", f"names device {A} twice"),
        (ALIKE, "GPU-8f3c", "'GPU-8f3c' is several devices"),
        (ALIKE, "GPU-", "'GPU-' is no device"),
        (ALIKE, "0,3,1", "there is no device 3; nvidia-smi -L lists 3, from 0"),
        (ALIKE, "0,GPU-dd,1", "'GPU-dd' is no device"),
        (ALIKE, "all", "'all' is no device"),
        (MIXED, "0", "0 could be any of NVIDIA H100 PCIe, NVIDIA T4, since CUDA counts the fastest first"),
        (SPLIT, "1", "'1' is split by MIG; expected one of its instances: MIG-aaaa, MIG-bbbb"),
        (SPLIT, B, "is split by MIG"),
        ("", "0,0", "names device 0 twice"),
    ],
)
def test_what_cuda_would_read_otherwise_is_one_line(
    machine: Machine, listing: str, inherited: str, expected: str
) -> None:
    machine(listing, inherited)
    with pytest.raises(BadInput) as caught:
        visible_devices()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pool_with_a_device_twice_is_refused_instead_of_waiting(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="names device a twice"),
        gpu_slots(2, device="cuda", folder=tmp_path, pool=["a", "a"]),
    ):
        pass


def test_several_gpus_are_whole_ones(machine: Machine, tmp_path: Path) -> None:
    machine(SPLIT, None)
    with (
        pytest.raises(BadInput, match="2 whole GPUs needed, 1 in the pool"),
        gpu_slots(2, device="cuda", folder=tmp_path),
    ):
        pass
    pool = ["MIG-aaaa", A, "MIG-bbbb", B]
    with gpu_slots(2, device="cuda", folder=tmp_path, pool=pool) as held:
        assert held == [A, B]
    with gpu_slots(1, device="cuda", folder=tmp_path, pool=pool) as held:
        assert held == ["MIG-aaaa"]
