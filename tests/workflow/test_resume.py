"""Snakemake killed with its jobs left behind: no second run, no second writer, and `resume` ends what was begun."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.tiny_checkout import STEPS, target, tiny_checkout

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.workflow.runs import VARIABLE, begin_run, join_run, living, orphaned, remove_leftovers, resume_run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600


def wait_until(there: Callable[[], object], what: str, *, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not there():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)


Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts Python on something, in a process group whose every member is killed in the end, and nothing else.

    A process that is waited for last keeps the group's number from being given to another.
    """
    keeper = subprocess.Popen(["sleep", "86400"], process_group=0)
    begun: list[subprocess.Popen] = []
    own = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def go(*words: object, folder: Path = tmp_path, **changed: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=folder, env=own | changed, process_group=keeper.pid,
        )  # fmt: skip
        begun.append(process)
        return process

    yield go
    os.killpg(keeper.pid, signal.SIGKILL)
    keeper.wait()
    for process in begun:
        process.wait()
        process.stdout.close()


# --- the locks alone


RUN = """
import subprocess, sys, time
from budgeted_lora.workflow.runs import begin_run
begin_run("results")
child = subprocess.Popen(["sleep", "600"])
print("begun", child.pid, flush=True)
time.sleep(600)
"""
JOB = """
import subprocess, sys, time
from budgeted_lora.workflow.runs import begin_run
begin_run("results")
job = "import time; from budgeted_lora.workflow.runs import join_run; join_run('train c'); print('joined', flush=True)"
subprocess.Popen([sys.executable, "-c", job + "; time.sleep(600)"])
time.sleep(600)
"""


def said(process: subprocess.Popen, what: str) -> str:
    line = process.stdout.readline()
    assert what in line, line + process.stdout.read()
    return line


def test_one_run_at_a_time_and_the_next_when_it_is_killed(start: Start, tmp_path: Path) -> None:
    first = start("-c", RUN, "main", "--cores", "2")
    said(first, "begun")
    second = start("-c", RUN)
    assert second.wait(PATIENCE) == 2
    folder = tmp_path / "results"
    assert second.stdout.read() == (
        f"budgeted-lora: {folder}: process {first.pid} is running this workflow; wait for it, or end it\n"
    )
    with pytest.raises(BadInput, match=f"process {first.pid} is running this workflow"):
        resume_run(folder, wait=True)
    assert read_json(folder / "run.lock")["arguments"] == ["main", "--cores", "2"]
    first.kill()  # its child lives on, and must not hold the lock
    first.wait()
    third = start("-c", RUN)
    said(third, "begun")


def test_a_job_that_is_left_holds_up_the_next_run(start: Start, tmp_path: Path) -> None:
    run = start("-c", JOB)
    said(run, "joined")
    run.kill()
    run.wait()
    refused = start("-c", RUN)
    assert refused.wait(PATIENCE) == 2
    line = refused.stdout.read()
    assert re.fullmatch(
        rf"budgeted-lora: {tmp_path}/results: jobs of a killed run still work "
        r"\(process \d+ train c\); wait for them \(make resume does\), or end them\n",
        line,
    )
    with pytest.raises(BadInput, match="still work"):
        resume_run(tmp_path / "results", wait=False)
    os.kill(int(re.search(r"process (\d+)", line)[1]), signal.SIGKILL)
    said(start("-c", RUN), "begun")


def test_a_job_knows_whether_its_run_is_alive(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not orphaned()  # by hand
    join_run("train c")
    run = start("-c", RUN)
    said(run, "begun")
    folder = tmp_path / "results"
    monkeypatch.setenv(VARIABLE, f"{read_json(folder / 'run.lock')['id']} {folder}")
    assert not orphaned()
    run.kill()
    run.wait()
    assert orphaned()
    with pytest.raises(BadInput, match="the run that started this job has ended"):
        join_run("train c")
    said(start("-c", RUN), "begun")
    assert orphaned()  # a later run is not its own


def test_only_processes_of_this_machine_are_looked_for() -> None:
    here, own = socket.gethostname(), os.getpid()
    lines = [f"{own} {here}-2 train c", f"{own} {here} train d", "half a li"]
    assert living(lines) == [(own, here, "train d")]
    assert living(lines, elsewhere=True) == [(own, f"{here}-2", "train c"), (own, here, "train d")]


def test_results_that_cannot_be_written_are_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    run = start("-c", RUN)
    assert run.wait(PATIENCE) == 1
    assert run.stdout.read() == f"budgeted-lora: File exists: {tmp_path}/results\n"


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run was started here"):
        resume_run(tmp_path, wait=True)
    (tmp_path / "run.lock").write_text('{"id": "half a rec')
    with pytest.raises(BadInput, match="does not say what was run"):
        resume_run(tmp_path, wait=True)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    kept = [tmp_path / "cells" / "c" / name for name in ("train.json", ".hidden", "note.tmp")]
    left = tmp_path / "cells" / "c" / ".trained.x7.tmp"
    left.mkdir(parents=True)
    for path in [*kept, left / "model.safetensors", tmp_path / ".manifest.json.a1.tmp"]:
        path.write_text("")
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_begin_run_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    begin_run(tmp_path / "results" / "new")
    assert os.environ[VARIABLE].endswith(f" {tmp_path}/results/new")


def test_make_resume_is_that_command() -> None:
    command = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "resume", "SCALE=smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == ".venv/bin/budgeted-lora resume --scale smoke"


# --- Snakemake itself


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return tiny_checkout(tmp_path / "checkout", teachers="A")


def test_snakemake_killed_twice(start: Start, checkout: Path) -> None:
    results = checkout / "results" / "tiny"
    source = {"PYTHONPATH": str(checkout / "src")}
    arguments = [target("A"), "--cores", "1", "--config", "scale=tiny"]

    def snakemake(*words: str) -> subprocess.Popen:
        return start("-m", "snakemake", *words, *arguments, folder=checkout, **source)

    def resume(*words: str) -> subprocess.Popen:
        command = "import sys; from budgeted_lora.commands.app import main; sys.argv[0] = 'budgeted-lora'; main()"
        return start("-c", command, "resume", "--scale", "tiny", *words, folder=checkout, **source)

    def at_work(state: Path) -> int:
        """Stops the job of a state where it is, and says which process that is."""
        job = int((state / "lock").read_text())
        os.kill(job, signal.SIGSTOP)
        return job

    def states() -> list[Path]:
        return [file.parent for file in results.glob("state/*/state.safetensors")]

    # one is running, its job stopped after the first state
    first = snakemake()
    wait_until(lambda: states() or first.poll() is not None, "the first state")
    assert first.poll() is None, first.stdout.read()
    [state] = states()
    job = at_work(state)
    before = (state / "state.safetensors").read_bytes()

    # beside it: a plan may be made, but nothing else is begun
    assert snakemake("--dry-run").wait(PATIENCE) == 0
    second = snakemake()
    assert second.wait(PATIENCE) == 1
    assert "Directory cannot be locked" in second.stdout.read()
    refused = resume()
    assert refused.wait(PATIENCE) == 2
    assert f"process {first.pid} is running this workflow" in refused.stdout.read()

    # killed; its job is left
    first.kill()
    first.wait()
    forced = snakemake("--nolock")
    assert forced.wait(PATIENCE) == 2
    left = f"jobs of a killed run still work (process {job} pretrain_teacher results/tiny/teachers/A"
    assert left in forced.stdout.read()
    refused = resume("--no-wait")
    assert refused.wait(PATIENCE) == 2
    [line] = refused.stdout.read().splitlines()
    assert left in line
    resumed = resume()
    assert left in said(resumed, "waiting for them")
    assert (state / "state.safetensors").read_bytes() == before
    assert int((state / "lock").read_text()) == job

    # the job dies, the resumed run goes on from its state, and is killed as well
    os.kill(job, signal.SIGKILL)
    wait_until(
        lambda: (state / "state.safetensors").read_bytes() != before or resumed.poll() is not None, "the second state"
    )
    assert resumed.poll() is None, resumed.stdout.read()
    job = at_work(state)
    resumed.kill()  # by now it is Snakemake itself
    resumed.wait()
    os.kill(job, signal.SIGCONT)

    # its job works on to the end; what it made is not made again
    again = resume()
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, output
    assert f"snakemake {' '.join(arguments)}" in output
    assert (checkout / target("A")).is_file()
    log = (results / "logs" / "pretrain_teacher" / "A.log").read_text()
    began = re.findall(rf"\| (\d+)/{STEPS} \[00:00<\?", log)
    assert began[0] == str(STEPS)
    assert not any((results / "state").iterdir())
    assert not list(results.rglob(".*.tmp"))
