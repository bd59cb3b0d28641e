"""The parts of `make soak`: which processes belong to a run, which of them a kill ends, what is compared at the end."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from budgeted_lora.files import write_json, write_text
from tools import soak
from tools.soak import KINDS, Process, Run, victims

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
SNAKEMAKE = Process(10, 1, ("python", "-m", "snakemake", "main"))
SHELL = Process(11, 10, ("/bin/bash", "-c", "budgeted-lora stage train_cell --out a"))
JOB = Process(12, 11, ("python", "-m", "budgeted_lora.commands.app", "stage", "train_cell", "--out", "cells/a"))
ALIVE = [SNAKEMAKE, SHELL, JOB]


def test_a_job_is_named_by_its_stage_and_what_it_makes() -> None:
    assert [process.job for process in ALIVE] == [None, None, "train_cell cells/a"]


@pytest.mark.parametrize(("kind", "ended"), zip(KINDS, [[JOB], [SNAKEMAKE], ALIVE, ALIVE], strict=True))
def test_what_a_kill_ends(kind: str, ended: list[Process]) -> None:
    assert victims(kind, ALIVE, snakemake=10, random=random.Random(0)) == ended


def test_no_worker_to_kill() -> None:
    assert victims("worker", [SNAKEMAKE, SHELL], snakemake=10, random=random.Random(0)) == []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run whose Snakemake is a process that waits for two others, one of them in a group of its own."""
    wait = "import subprocess as s; s.Popen(['sleep', '600'], start_new_session=True); s.run(['sleep', '600'])"
    monkeypatch.setattr(Run, "words", property(lambda self: ["-c", wait]))
    run = Run(tmp_path, "smoke", 1)
    run.start()
    run.wait(lambda: len(run.alive()) == 3 and all(one.words[0] != sys.executable for one in run.alive()[1:]), 60)
    yield run
    soak.kill(process.pid for process in run.alive())
    run.process.wait()


def test_processes_of_a_run_are_found_and_no_others(run: Run) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    assert run.process.pid in {process.pid for process in run.alive()}
    assert not {os.getpid(), bystander.pid} & {process.pid for process in run.alive()}
    bystander.kill()
    bystander.wait()


@pytest.mark.parametrize(("kind", "left"), [("snakemake", 2), ("group", 1), ("power-off", 0)])
def test_kills(run: Run, kind: str, left: int) -> None:
    assert len(run.disturb(kind, random.Random(0))) == 3 - left
    run.process.wait()
    assert len(run.alive()) == left
    assert not run.resumed, "nothing was begun"


def test_a_begun_run_is_resumed(run: Run) -> None:
    write_text(run.folder / "results" / "smoke" / "run.lock", '{"id": "a", "arguments": ["main"]}')
    run.disturb("power-off", random.Random(0))
    assert run.resumed


def test_an_end_that_no_kill_explains_is_a_failure(run: Run) -> None:
    soak.switch_off(run.alive)
    run.process.wait()
    assert "ended with status -9" in run.failure()
    run.expected_to_fail = True
    assert run.failure() is None


def tree(root: Path, *, score: float) -> Path:
    for kind in ("results", "reports"):
        write_json(root / kind / "smoke" / "tables" / "a.json", {"rows": 1})
    record = {"value": score, "provenance": {"seconds": score}}
    write_json(root / "results" / "smoke" / "cells" / "c" / "perplexity.json", record)
    return root


def test_scores_are_compared_and_clocks_are_not(tmp_path: Path) -> None:
    one, same, other = (tree(tmp_path / name, score=score) for name, score in (("a", 1.5), ("b", 1.5), ("c", 1.25)))
    write_json(same / "results/smoke/cells/c/perplexity.json", {"value": 1.5, "provenance": {"seconds": 9}})
    assert soak.differences(one, same, scale="smoke") == []
    [line] = soak.differences(one, other, scale="smoke")
    assert line.startswith("results/smoke/cells/c/perplexity.json: value: 1.5")


def test_what_is_left_over_is_named(tmp_path: Path) -> None:
    results = tree(tmp_path, score=1.0) / "results" / "smoke"
    assert soak.left_over(tmp_path, scale="smoke") == []
    (results / "state" / "c").mkdir(parents=True)
    (results / "cells" / ".c.x.tmp").touch()
    left = ["results/smoke/cells/.c.x.tmp: left over", "results/smoke/state/c: left over"]
    assert soak.left_over(tmp_path, scale="smoke") == left
