"""Device slots with made-up ids: never shared, freed by death, inherited lists respected."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from budgeted_lora import slots
from budgeted_lora.errors import BadInput

HOLD = """
import json, os, sys, time
from budgeted_lora.slots import gpu_slots
folder, count, seconds, pool = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
from pathlib import Path
with gpu_slots(count, device="cuda", folder=Path(folder), pool=pool) as held:
    start = time.monotonic()
    assert "torch" not in sys.modules
    print(json.dumps({"held": held, "visible": os.environ["CUDA_VISIBLE_DEVICES"], "start": start}), flush=True)
    time.sleep(seconds)
    print(json.dumps({"end": time.monotonic()}), flush=True)
"""


def holder(folder, *, count=1, seconds=0.2, pool=("fake-0", "fake-1", "fake-2")):
    arguments = [sys.executable, "-c", HOLD, str(folder), str(count), str(seconds), json.dumps(list(pool))]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    first, last = (json.loads(line) for line in out.splitlines())
    return {**first, **last}


def overlaps(one, other):
    return one["start"] < other["end"] and other["start"] < one["end"]


def test_eight_jobs_on_three_slots_never_share_one(tmp_path):
    runs = [finish(process) for process in [holder(tmp_path) for _ in range(8)]]
    for index, one in enumerate(runs):
        assert one["visible"] == ",".join(one["held"])
        for other in runs[index + 1 :]:
            assert not (set(one["held"]) & set(other["held"]) and overlaps(one, other))
    assert {name for run in runs for name in run["held"]} <= {"fake-0", "fake-1", "fake-2"}


def test_jobs_that_take_two_of_three_do_not_deadlock(tmp_path):
    runs = [finish(process) for process in [holder(tmp_path, count=2, seconds=0.1) for _ in range(4)]]
    assert all(len(set(run["held"])) == 2 for run in runs)
    assert not any(overlaps(one, other) for i, one in enumerate(runs) for other in runs[i + 1 :])


def test_a_killed_holder_frees_its_slot(tmp_path):
    first = holder(tmp_path, seconds=600, pool=["fake-0"])
    json.loads(first.stdout.readline())
    second = holder(tmp_path, seconds=0, pool=["fake-0"])
    assert "waiting for 1 of 1 GPU slots" in second.stderr.readline()
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    killed = time.monotonic()
    first.communicate(timeout=30)
    run = finish(second)
    assert run["held"] == ["fake-0"]
    assert run["start"] >= killed - 0.1


def test_an_inherited_list_is_the_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "_nvidia_smi", lambda: [["GPU-aa"], ["GPU-bb"], ["GPU-cc"]])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-dd")
    with slots.gpu_slots(2, device="auto", folder=tmp_path) as held:
        assert held == ["GPU-cc", "GPU-dd"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-cc,GPU-dd"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2, GPU-dd"


@pytest.mark.parametrize("inherited", ["", "-1", "NoDevFiles"])
def test_an_inherited_empty_list_means_no_gpu(tmp_path, monkeypatch, inherited):
    monkeypatch.setattr(slots, "_nvidia_smi", lambda: [["GPU-aa"]])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    with slots.gpu_slots(1, device="auto", folder=tmp_path) as held:
        assert held == []
    with pytest.raises(BadInput, match="no GPU is visible"), slots.gpu_slots(1, device="cuda", folder=tmp_path):
        pass


def test_without_an_inherited_list_all_devices_are_the_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "_nvidia_smi", lambda: [["GPU-aa"], ["GPU-bb"]])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with (
        slots.gpu_slots(1, device="auto", folder=tmp_path) as one,
        slots.gpu_slots(1, device="auto", folder=tmp_path, pool=["GPU-aa", "GPU-bb"]) as other,
    ):
        assert (one, other) == (["GPU-aa"], ["GPU-bb"])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_cpu_hides_the_devices_and_takes_no_lock(tmp_path):
    with slots.gpu_slots(1, device="cpu", folder=tmp_path, pool=["fake-0"]) as held:
        assert held == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not any(tmp_path.iterdir())


def test_more_slots_than_devices_is_refused(tmp_path):
    with (
        pytest.raises(BadInput, match="3 asked for, 2 in the pool"),
        slots.gpu_slots(3, device="cuda", folder=tmp_path, pool=["a", "b"]),
    ):
        pass


def test_an_exception_in_the_body_frees_the_slot(tmp_path):
    with pytest.raises(KeyError), slots.gpu_slots(1, device="cuda", folder=tmp_path, pool=["fake-0"]):
        raise KeyError("body")
    with slots.gpu_slots(1, device="cuda", folder=tmp_path, pool=["fake-0"]) as held:
        assert held == ["fake-0"]


def test_listing_knows_split_devices():
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-11)\n"
        "GPU 1: NVIDIA H100 (UUID: GPU-22)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-a)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-b)\n"
    )
    assert slots._parse_listing(listing) == [["GPU-11"], ["MIG-a", "MIG-b"]]
