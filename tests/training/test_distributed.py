"""Several processes that train one student: the history of one process, bytes that repeat, and an end to all at once.

Starting torch costs seconds a rank, so one torchrun trains every recipe, and the run that is killed is killed twice.
"""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.states import running
from fixtures.training_world import LENGTH, World, make_recipe, make_world
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput, ProcessFailed, TrainingDiverged
from budgeted_lora.method.loop import Processes, StatesDiffer
from budgeted_lora.models.load import load_model
from budgeted_lora.stages import launch as launching
from budgeted_lora.stages import train_cell as stage
from budgeted_lora.stages.cache_teacher import cache_teacher
from budgeted_lora.training.distributed import ProcessGroup
from budgeted_lora.workflow import slots

FIXTURES = Path(__file__).parents[1] / "fixtures"
SECONDS = 900
STEPS = 96
DEVICES = ["fake-0", "fake-1"]
# Recipes by name; the second says how one process must cut its steps to draw the same dropout masks.
RECIPES: dict[str, tuple[Recipe, dict[str, int]]] = {
    "kd_full": (make_recipe("kd_full", rows="document", weight_decay=0.1), {}),
    "kd_lora": (make_recipe("kd_lora", micro_batch_windows=4), {"micro_batch_windows": 2}),
    "everything": (make_recipe("kd_lora", train_embeddings_head_norms=True, micro_batch_windows=1), {}),
    "budgeted_lora": (make_recipe("budgeted_lora", steps=STEPS, budget=0.2, gate_lr_multiplier=20.0), {}),
}
CACHED = {"kd_lora"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    made = make_world(tmp_path_factory.mktemp("world"))
    cache_teacher(
        teacher=made.teacher, tokens=made.tokens, windows=10**6, sequence_length=LENGTH, rows="packed",
        batch_windows=8, precision="float32", scale="tiny", out=made.root / "cache", state=made.root / "state",
        device="cpu", threads=1,
    )  # fmt: skip
    return made


def arguments(world: World, name: str, out: Path) -> dict[str, object]:
    """Those of `train_cell`."""
    return {
        "recipe": RECIPES[name][0], "cell": "c", "scale": "tiny", "student": world.student, "teacher": world.teacher,
        "tokens": world.tokens, "cache": world.root / "cache" if name in CACHED else None, "out": out,
        "state": out / "state", "device": "cpu", "threads": 1, "log_every": 2, "checkpoint_every": 4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def together(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe trained by two ranks that torchrun started; one folder each."""
    folder = tmp_path_factory.mktemp("together")
    jobs = [arguments(world, name, folder / name) for name in RECIPES]
    for job in jobs:
        job["recipe"] = job["recipe"].model_dump(mode="json")
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(FIXTURES / "train_together.py"), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A recipe trained by this process, as one process must cut its steps."""

    def go(name: str) -> Path:
        out, (recipe, cut) = tmp_path_factory.mktemp("alone"), RECIPES[name]
        stage.train_cell(**(arguments(world, name, out) | {"recipe": recipe.model_copy(update=cut)}))
        return out

    return go


def read_csv(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as stream:
        rows = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(stream)]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


# --- as one process


@pytest.mark.parametrize("name", RECIPES)
def test_two_ranks_have_the_history_of_one_process(together: Path, alone: Callable[[str], Path], name: str) -> None:
    one, two = alone(name), together / name
    for file in ("history.csv", "retention.csv"):
        expected, found = read_csv(one / file), read_csv(two / file)
        assert len(found) == len(expected) == RECIPES[name][0].steps // 2
        for row, same in zip(expected, found, strict=True):
            assert same == pytest.approx(row, rel=2e-4, abs=1e-6)
    weights, others = (load_file(folder / "trained" / "model.safetensors") for folder in (one, two))
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=1e-3, atol=1e-4)
    records = [json.loads((folder / "train.json").read_text()) for folder in (one, two)]
    assert [record["ranks"] for record in records] == [1, 2] == [len(record["devices"]) for record in records]
    assert "gpus_per_run" not in records[0]["provenance"]["values"]
    assert records[1]["provenance"]["values"]["gpus_per_run"] == 2
    for key in ("tokens", "steps", "dense_fraction", "train_compute", "trained_parameters"):
        assert records[0][key] == records[1][key]
    assert not any((two / "state").iterdir())


def test_the_budget_was_taken_on_the_way(together: Path) -> None:
    """Else nothing above says that ranks agree while dense paths go."""
    columns = [name for name in read_csv(together / "budgeted_lora" / "retention.csv")[0] if name != "step"]
    rows = [[row[name] for name in columns] for row in read_csv(together / "budgeted_lora" / "retention.csv")]
    gone = [sum(value == 0.0 for value in row) for row in rows]
    assert gone[0] == 0
    assert len(set(gone)) > 3


def test_dropout_of_others_is_drawn(world: World) -> None:
    recipe = make_recipe("budgeted_lora", dropout=0.3)
    model = load_model(world.student)
    stage.install_method(model, recipe)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model.train()(torch.zeros(2, LENGTH, dtype=torch.int64))
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    ProcessGroup(count=2).skip(model, windows=2, length=LENGTH, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)


def processes_of(number: int, count: int) -> Processes:
    return ProcessGroup(number=number, count=count) if count > 1 else Processes()


@settings(deadline=None)
@given(count=st.integers(1, 8), share=st.integers(1, 24), micro=st.integers(1, 32))
def test_every_window_of_a_step_is_one_processs(count: int, share: int, micro: int) -> None:
    windows = count * share
    seen: list[int] = []
    for rank in range(count):
        parts = list(processes_of(rank, count).micro_batches(windows, micro_batch_windows=micro))
        mine = [number for part, own in parts if own for number in range(windows)[part]]
        assert len(mine) == share
        assert all(len(range(windows)[part]) <= micro for part, _ in parts)
        if count > 1:  # a rank draws for others what they draw
            assert {len(range(windows)[part]) for part, _ in parts} == {math.gcd(micro, share)}
        assert [number for part, _ in parts for number in range(windows)[part]] == list(range(windows))
        seen += mine
    assert seen == list(range(windows))


def test_windows_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(BadInput, match="3 GPUs cannot share the 4 windows of a step"):
        list(ProcessGroup(count=3).micro_batches(4, micro_batch_windows=2))


def test_states_of_different_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessGroup, "gather", lambda self, step: [step, step + 4])
    with pytest.raises(StatesDiffer, match=r"saved states of steps \[4, 8\]"):
        ProcessGroup(count=2).attach(torch.nn.Linear(1, 1), step=4)


# --- killed


def command(world: World, out: Path, *, gpus: int = 2) -> list[str]:
    job = arguments(world, "budgeted_lora", out / "cell") | {"state": out / "state", "device": "auto", "gpus": gpus}
    recipe = job.pop("recipe")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in job.items() if value is not None]
    program = "from budgeted_lora.commands.app import main; main()"
    return [sys.executable, "-c", program, "stage", "train_cell", f"--recipe={recipe.model_dump_json()}", *words]


def start(world: World, out: Path) -> subprocess.Popen[str]:
    own = {"CUDA_VISIBLE_DEVICES": ",".join(DEVICES), slots.FOLDER: str(out / "locks")}
    return subprocess.Popen(command(world, out), env=os.environ | own, stderr=subprocess.PIPE, text=True)


def saved(out: Path) -> int:
    """Steps in the saved state."""
    for file in out.glob("state/*/state.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            return json.loads(tensors.metadata()["values"])["step"]
    return 0


def wait_for(done: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end, f"no {what} within {SECONDS} s"
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    """Process ids, in the order in which the processes were started."""
    listing = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(word) for word in listing.split()]


def alive(process: int) -> bool:
    """Whether a process is more than an entry that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def free(out: Path) -> bool:
    """Whether both slots could be had."""
    handles = [slots._try_lock(out / "locks" / f"{name}.lock") for name in DEVICES]
    for handle in handles:
        if handle is not None:
            os.close(handle)
    return None not in handles


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_a_run_killed_twice_leaves_nothing_behind_and_ends_with_the_same_bytes(
    world: World, together: Path, tmp_path: Path
) -> None:
    job = start(world, tmp_path)
    wait_for(lambda: saved(tmp_path) >= 4, "saved state")
    found = children(job.pid)
    assert len(found) == 2
    assert not free(tmp_path)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate(timeout=SECONDS)
    wait_for(lambda: not any(map(alive, found)), "end of the orphans")
    assert free(tmp_path)
    assert running(tmp_path / "state") == []
    reached = saved(tmp_path)
    assert 4 <= reached < STEPS

    job = start(world, tmp_path)
    wait_for(lambda: saved(tmp_path) > reached, "state saved by the second run")
    found = children(job.pid)
    os.kill(found[1], signal.SIGKILL)
    _, errors = job.communicate(timeout=SECONDS)
    assert job.returncode == 1
    said = [line for line in re.split(r"[\r\n]+", errors) if line and not line.startswith(("train:", "waiting"))]
    assert len(said) == 1, errors
    assert said[0].startswith(
        f"budgeted-lora: training process 1 of 2 (process id {found[1]}) was killed by SIGKILL; the others were"
    )
    assert not any(map(alive, found))
    assert free(tmp_path)
    assert reached < saved(tmp_path) < STEPS
    assert not (tmp_path / "cell" / "train.json").exists()

    job = start(world, tmp_path)
    _, errors = job.communicate(timeout=SECONDS)
    assert job.returncode == 0, errors
    for file in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
        expected = together / "budgeted_lora" / file
        assert (tmp_path / "cell" / file).read_bytes() == expected.read_bytes(), file
    assert read_csv(tmp_path / "cell" / "history.csv") == read_csv(together / "budgeted_lora" / "history.csv")
    assert list((tmp_path / "state").glob("[!.]*")) == []


def test_more_gpus_than_divide_a_step_are_refused_at_once(world: World, tmp_path: Path) -> None:
    done = subprocess.run(command(world, tmp_path, gpus=3), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "budgeted-lora: --gpus 3 cannot share the 4 windows of a step; expected a divisor\n"


# --- what a failed rank says


GONE = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
TERMINATED, KILLED = -signal.SIGTERM, -signal.SIGKILL


@pytest.mark.parametrize(
    ("errors", "statuses", "expected"),
    [
        ({0: GONE}, {0: 1, 1: KILLED}, ProcessFailed("training process 1 of 2 (process id 11) was killed by SIGKILL")),
        (
            {},
            {1: -signal.SIGABRT, 0: TERMINATED},
            ProcessFailed("training process 1 of 2 (process id 11) was killed by SIGABRT"),
        ),
        (
            {0: GONE},
            {0: 1, 1: TERMINATED},
            ProcessFailed("training process 1 of 2 (process id 11) was killed by SIGTERM"),
        ),
        ({}, {0: 3, 1: TERMINATED}, ProcessFailed("training process 0 of 2 (process id 10) ended with status 3")),
        ({1: BadInput("x: expected y")}, {1: 1, 0: TERMINATED}, BadInput("x: expected y")),
        ({0: GONE, 1: BadInput("x: expected y")}, {0: 1, 1: 1}, BadInput("x: expected y")),
        ({0: TrainingDiverged("loss nan")}, {0: 1, 1: TERMINATED}, TrainingDiverged("loss nan")),
        ({0: OSError(28, "No space left on device", "f")}, {0: 1}, OSError(28, "No space left on device", "f")),
        ({0: GONE, 1: KeyError("a")}, {0: 1, 1: 1}, ProcessFailed("training process 1 of 2: KeyError: 'a'")),
    ],
    ids=["killed", "aborted", "terminated", "status", "input", "input of another", "diverged", "disk", "bug"],
)
def test_the_first_cause_is_what_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    errors: dict[int, Exception],
    statuses: dict[int, int],
    expected: Exception,
) -> None:
    for rank, error in errors.items():
        launching._report(tmp_path / f"{rank}.json", error)
    found = launching._failure(2, tmp_path, {rank: (status, 10 + rank) for rank, status in statuses.items()})
    assert type(found) is type(expected)
    assert str(found).startswith(str(expected))
    assert capsys.readouterr().err.startswith("\n") == (0 not in errors)  # what is told starts a line of its own
    if isinstance(expected, OSError):
        assert (found.errno, found.filename) == (expected.errno, expected.filename)
