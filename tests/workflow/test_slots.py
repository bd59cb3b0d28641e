"""Device slots with made-up ids: never shared, freed by death, inherited lists respected."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from budgeted_lora.errors import BadInput
from budgeted_lora.workflow import slots, visible
from budgeted_lora.workflow.visible import Gpu

HOLD = """
import json, os, sys, time
from budgeted_lora.workflow.slots import gpu_slots
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


def holding(*arguments, **keywords):
    """A job that holds its slots until it is killed."""
    process = holder(*arguments, seconds=600, **keywords)
    json.loads(process.stdout.readline())
    return process


def waiting(*arguments, **keywords):
    """A job that waits for its slots, and ends once it has got them."""
    process = holder(*arguments, seconds=0, **keywords)
    assert process.stderr.readline().startswith("waiting for")
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def overlaps(one, other):
    return one["start"] < other["end"] and other["start"] < one["end"]


def shared(runs):
    """Pairs of jobs that held one device at one time."""
    return [
        (one, other)
        for one, other in combinations(runs, 2)
        if set(one["held"]) & set(other["held"]) and overlaps(one, other)
    ]


def test_eight_jobs_on_three_slots_never_share_one(tmp_path):
    runs = [finish(process) for process in [holder(tmp_path) for _ in range(8)]]
    assert all(run["visible"] == ",".join(run["held"]) for run in runs)
    assert shared(runs) == []
    assert {name for run in runs for name in run["held"]} <= {"fake-0", "fake-1", "fake-2"}


def test_jobs_that_take_two_of_three_do_not_deadlock(tmp_path):
    runs = [finish(process) for process in [holder(tmp_path, count=2, seconds=0.1) for _ in range(4)]]
    assert all(len(set(run["held"])) == 2 for run in runs)
    assert not any(overlaps(one, other) for one, other in combinations(runs, 2))


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
    monkeypatch.setattr(visible, "nvidia_smi", lambda: [Gpu("H100", f"GPU-{name}") for name in ("aa", "bb", "cc")])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-b")
    with slots.gpu_slots(2, device="auto", folder=tmp_path) as held:
        assert held == ["GPU-cc", "GPU-bb"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-cc,GPU-bb"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2, GPU-b"


@pytest.mark.parametrize("inherited", ["", "-1", "NoDevFiles"])
def test_an_inherited_empty_list_means_no_gpu(tmp_path, monkeypatch, inherited):
    monkeypatch.setattr(visible, "nvidia_smi", lambda: [Gpu("H100", "GPU-aa")])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    with slots.gpu_slots(1, device="auto", folder=tmp_path) as held:
        assert held == []
    with pytest.raises(BadInput, match="no GPU is visible"), slots.gpu_slots(1, device="cuda", folder=tmp_path):
        pass


def test_without_an_inherited_list_all_devices_are_the_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(visible, "nvidia_smi", lambda: [Gpu("H100", "GPU-aa"), Gpu("H100", "GPU-bb")])
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
        pytest.raises(BadInput, match="3 needed, 2 in the pool"),
        slots.gpu_slots(3, device="cuda", folder=tmp_path, pool=["a", "b"]),
    ):
        pass


def test_an_exception_in_the_body_frees_the_slot(tmp_path):
    with pytest.raises(KeyError), slots.gpu_slots(1, device="cuda", folder=tmp_path, pool=["fake-0"]):
        raise KeyError("body")
    with slots.gpu_slots(1, device="cuda", folder=tmp_path, pool=["fake-0"]) as held:
        assert held == ["fake-0"]


# --- whose turn it is


def test_a_job_that_wants_two_is_not_passed_by_jobs_that_want_one(tmp_path):
    pool = ["fake-0", "fake-1"]
    at_work = [holding(tmp_path, pool=pool) for _ in pool]
    large = waiting(tmp_path, count=2, pool=pool)
    small = [waiting(tmp_path, pool=pool) for _ in range(4)]
    for process in at_work:
        kill(process)
    first, rest = finish(large), [finish(process) for process in small]
    assert sorted(first["held"]) == pool
    assert all(first["start"] < run["start"] for run in rest)
    assert shared([first, *rest]) == []


def test_who_waits_holds_up_nobody_that_can_do_without_its_devices(tmp_path):
    at_work = holding(tmp_path, pool=["fake-0"])
    large = waiting(tmp_path, count=2, pool=["fake-0", "fake-1"])
    assert finish(holder(tmp_path, pool=["fake-1", "fake-2"]))["held"] == ["fake-2"]
    after = waiting(tmp_path, pool=["fake-1"])
    kill(at_work)
    first, last = finish(large), finish(after)
    assert first["start"] < last["start"]


def test_the_next_in_turn_can_be_killed(tmp_path):
    at_work = holding(tmp_path, pool=["fake-0"])
    turn = waiting(tmp_path, pool=["fake-0"])
    after = waiting(tmp_path, pool=["fake-0"])
    kill(turn)
    kill(at_work)
    assert finish(after)["held"] == ["fake-0"]


# --- processes that a job starts


PARENT = '''
import subprocess, sys, time
from pathlib import Path
from budgeted_lora.workflow.slots import gpu_slots
child = """
import os, time
from budgeted_lora.workflow.slots import share_slots
share_slots()
print(os.getpid(), flush=True)
time.sleep(600)
"""
with gpu_slots(2, device="cuda", folder=Path(sys.argv[1]), pool=["fake-0", "fake-1"]):
    subprocess.run([sys.executable, "-c", child])
'''


def test_a_slot_is_not_free_while_a_process_of_a_killed_job_lives(tmp_path):
    job = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(job.stdout.readline())
    try:
        os.kill(job.pid, signal.SIGKILL)
        job.wait(60)
        after = waiting(tmp_path, count=2, pool=["fake-0", "fake-1"])
        assert after.poll() is None
    finally:
        os.kill(child, signal.SIGKILL)
    assert sorted(finish(after)["held"]) == ["fake-0", "fake-1"]
    job.stdout.close()


def test_lock_files_lie_in_one_place_whatever_tmpdir_says(tmp_path, monkeypatch):
    monkeypatch.delenv("BUDGETED_LORA_GPU_LOCKS", raising=False)
    monkeypatch.setenv("TMPDIR", "/somewhere")
    assert slots.lock_folder() == Path(f"/tmp/budgeted-lora-gpu-{os.getuid()}")
    monkeypatch.setenv("BUDGETED_LORA_GPU_LOCKS", str(tmp_path))
    assert slots.lock_folder() == tmp_path


# --- under Snakemake


SNAKEFILE = """
rule all:
    input:
        expand("{job}.json", job=range(4)),


rule work:
    output:
        "{job}.json",
    resources:
        gpu=1,
    params:
        python=config["python"],
        script=config["script"],
    shell:
        "{params.python} {params.script} > {output}"
"""
WORK = """
import json, os, time
from budgeted_lora.workflow.slots import gpu_slots
with gpu_slots(1, device="cuda") as held:
    start = time.monotonic()
    time.sleep(0.3)
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    print(json.dumps({"held": held, "start": start, "end": time.monotonic(), "visible": visible}))
"""


def start_workflow(folder, locks, *words):
    folder.mkdir()
    (folder / "tmp").mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "work.py").write_text(WORK)
    own = {"CUDA_VISIBLE_DEVICES": "fake-0,fake-1,fake-2", "BUDGETED_LORA_GPU_LOCKS": str(locks)}
    own["TMPDIR"] = str(folder / "tmp")
    command = [sys.executable, "-m", "snakemake", "--cores", "4", *words]
    command += ["--config", f"python={sys.executable}", f"script={folder / 'work.py'}"]
    return subprocess.Popen(command, cwd=folder, env=os.environ | own, stderr=subprocess.PIPE, text=True)


def test_two_workflows_share_the_pool_without_a_limit_on_the_command_line(tmp_path):
    """Nothing tells either Snakemake how many GPUs there are: each starts its four jobs at once, on three devices."""
    folders = [tmp_path / "plain", tmp_path / "other"]
    runs = [
        start_workflow(folders[0], tmp_path / "locks"),
        start_workflow(folders[1], tmp_path / "locks", "--resources", "mem_mb=1000"),
    ]
    for run in runs:
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors
    jobs = [json.loads(file.read_text()) for folder in folders for file in folder.glob("*.json")]
    assert len(jobs) == 8
    assert all([job["visible"]] == job["held"] and job["visible"].startswith("fake-") for job in jobs)
    assert shared(jobs) == []
