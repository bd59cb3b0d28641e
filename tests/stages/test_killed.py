"""Workers killed with SIGKILL at random points: the same command goes on and ends with the same bytes."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from fixtures.command_line import Words, as_text, cache_words, compress_words, pretrain_words, train_words
from fixtures.kills import calls_of, stop_run
from fixtures.training_world import LENGTH, World, make_recipe, make_world
from safetensors import safe_open

from budgeted_lora.config.sections import Pretraining, Teacher
from budgeted_lora.files import canonical_json, sha256_file
from budgeted_lora.method import loop
from budgeted_lora.stages import cache_teacher as cache_stage
from budgeted_lora.stages import pretrain_teacher as teacher_stage
from budgeted_lora.stages import train_cell as stage
from budgeted_lora.stages.pretrain_teacher import pretrain_teacher
from budgeted_lora.training import cache as caching
from budgeted_lora.training import pretrain as pretraining

SERVER = Path(__file__).parents[1] / "fixtures" / "fork_server.py"
STEPS, TEACHER_STEPS, SECONDS = 96, 300, 600
WINDOWS = 1200


@dataclass
class Server:
    """Starts commands and ends them."""

    process: subprocess.Popen
    started: set[int] = field(default_factory=set)

    def ask(self, **request: object) -> int:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, words: Words, log: Path) -> int:
        process = self.ask(start=as_text(words), log=str(log))
        self.started.add(process)
        return process

    def wait(self, process: int) -> int:
        status = self.ask(wait=process)
        self.started.discard(process)
        return status

    def run(self, words: Words, log: Path) -> None:
        assert self.wait(self.start(words, log)) == 0, log.read_text()[-2000:]

    def kill(self, process: int) -> None:
        """SIGKILL, which must come before the process has ended of itself."""
        os.kill(process, signal.SIGKILL)  # until it is waited for, its number is not given away
        assert self.wait(process) == -signal.SIGKILL, "it ended before it was killed; give it more to do"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    command = [sys.executable, str(SERVER)]
    own = os.environ | {"TQDM_MININTERVAL": "0"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
    made = Server(process)
    yield made
    for left in made.started:
        os.kill(left, signal.SIGKILL)
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"), documents=1500)


# --- the commands


def training(world: World, out: Path, method: str) -> Words:
    return train_words(world, out, make_recipe(method, steps=STEPS, micro_batch_windows=4))


def making_a_teacher(world: World, out: Path, matrix_rate: float | None) -> Words:
    return pretrain_words(world, out, steps=TEACHER_STEPS, matrix_rate=matrix_rate)


def caching_a_teacher(world: World, out: Path) -> Words:
    return cache_words(world, out, windows=WINDOWS)


def compressing(world: World, trained: Path, out: Path) -> Words:
    return compress_words(world, trained, out, make_recipe("budgeted_lora", steps=STEPS))


# --- how far a run is


def saved(out: Path, key: str) -> int:
    """Steps in the state of a run: a number, or the length of a list."""
    for file in out.glob("state/*/state.safetensors"):
        try:
            with safe_open(file, framework="pt") as tensors:
                value = json.loads(tensors.metadata()["values"])[key]
        except (OSError, RuntimeError):  # opened while another took its place
            return 0
        return value if isinstance(value, int) else len(value)
    return 0


def cached(out: Path) -> int:
    """Windows that a cache in the making holds, and half ones."""
    return sum(file.stat().st_size for file in out.glob("state/*/hidden.bin")) // (LENGTH * 16 * 4)


def kill_at(server: Server, words: Words, out: Path, far: Callable[[], int], *, at: int, extra: float) -> int:
    """Starts a command, kills it `extra` seconds after it has come to `at`, and says how far it had come."""
    process = server.start(words, out / "log")
    end = time.monotonic() + SECONDS
    while far() < at and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(extra)
    server.kill(process)
    return far()


def went_on_from(log: Path, total: int) -> list[int]:
    """Where each run of a log began, as its progress bar says."""
    bars = re.findall(rf"\| (\d+)/{total} \[00:00<\?", log.read_text())
    return [int(step) for step in bars]


def strip_speed(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(stream)]


# --- killed, and killed again


@pytest.fixture(scope="module")
def whole(server: Server, world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a run that was never killed, by its command; each is made once."""
    made: dict[str, Path] = {}

    def go(name: str, command: Callable[..., Words], *values: object) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole")
            server.run(command(world, *values[:-1], made[name], *values[-1:]), made[name] / "log")
        return made[name]

    return go


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", ["kd_full", "kd_lora", "budgeted_lora"])
def test_training(
    server: Server, world: World, whole: Callable[..., Path], tmp_path: Path, method: str, seed: int
) -> None:
    expected, words, chance = whole(method, training, method), training(world, tmp_path, method), random.Random(seed)
    reached = 0
    for _ in range(2):
        at = chance.randrange(reached + 1, reached + STEPS // 3)
        now = kill_at(server, words, tmp_path, lambda: saved(tmp_path, "step"), at=at, extra=chance.uniform(0, 0.02))
        assert at <= now < STEPS
        reached = now
        assert not (tmp_path / "cell" / "train.json").exists()
    server.run(words, tmp_path / "log")
    began = went_on_from(tmp_path / "log", STEPS)
    assert began[0] == 0
    assert began[-1] == reached > 0
    for name in ("trained/model.safetensors", "trained/adapter.json", "trained.sha256", "retention.csv"):
        assert (tmp_path / "cell" / name).read_bytes() == (expected / "cell" / name).read_bytes(), name
    assert strip_speed(tmp_path / "cell" / "history.csv") == strip_speed(expected / "cell" / "history.csv")
    assert not any((tmp_path / "state").iterdir())


@pytest.mark.parametrize("matrix_rate", [None, 2e-2], ids=["adamw", "muon"])
def test_pretraining(
    server: Server, world: World, whole: Callable[..., Path], tmp_path: Path, matrix_rate: float | None
) -> None:
    expected = whole(f"teacher {matrix_rate}", making_a_teacher, matrix_rate)
    words, chance = making_a_teacher(world, tmp_path, matrix_rate), random.Random(str(matrix_rate))
    reached = 0
    for at in (100, 200):  # it saves every hundredth step
        reached = kill_at(
            server, words, tmp_path, lambda: saved(tmp_path, "losses"), at=at, extra=chance.uniform(0, 0.2)
        )
        assert at <= reached < TEACHER_STEPS
        assert not (tmp_path / "teacher.json").exists()
    server.run(words, tmp_path / "log")
    assert went_on_from(tmp_path / "log", TEACHER_STEPS)[-1] == reached
    for name in ("model/model.safetensors", "model.sha256", "history.csv"):
        assert (tmp_path / name).read_bytes() == (expected / name).read_bytes(), name
    assert not any((tmp_path / "state").iterdir())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_caching(server: Server, world: World, whole: Callable[..., Path], tmp_path: Path, seed: int) -> None:
    expected, words = whole("cache", caching_a_teacher), caching_a_teacher(world, tmp_path)
    chance, reached = random.Random(seed), 0
    for _ in range(2):
        at = chance.randrange(reached + 1, reached + WINDOWS // 3)
        reached = kill_at(server, words, tmp_path, lambda: cached(tmp_path), at=at, extra=chance.uniform(0, 0.01))
        assert at <= reached < WINDOWS
        assert not (tmp_path / "cache").exists()
    server.run(words, tmp_path / "log")
    assert went_on_from(tmp_path / "log", WINDOWS // 2 - reached // 2)[-1] == 0
    for name in ("hidden.bin", "cache.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (expected / "cache" / name).read_bytes(), name
    assert not any((tmp_path / "state").iterdir())


def test_compression_starts_over(server: Server, world: World, whole: Callable[..., Path], tmp_path: Path) -> None:
    trained = whole("budgeted_lora", training, "budgeted_lora") / "cell" / "trained"
    begun = time.monotonic()
    expected = whole("compressed", lambda *a: compressing(a[0], trained, a[1])) / "compressed"
    seconds, chance = time.monotonic() - begun, random.Random(0)
    words, killed = compressing(world, trained, tmp_path), 0
    for _ in range(8):
        process = server.start(words, tmp_path / "log")
        time.sleep(chance.uniform(0.1, 0.9) * seconds)
        os.kill(process, signal.SIGKILL)
        killed += server.wait(process) == -signal.SIGKILL
        model = tmp_path / "compressed" / "model"
        assert not model.exists() or sha256_file(model) == sha256_file(expected / "model")  # whole or not at all
    assert killed >= 4
    server.run(words, tmp_path / "log")
    assert sha256_file(tmp_path / "compressed" / "model") == sha256_file(expected / "model")
    assert (tmp_path / "compressed" / "model.sha256").read_bytes() == (expected / "model.sha256").read_bytes()


def test_the_installed_command_too(world: World, whole: Callable[..., Path], tmp_path: Path) -> None:
    """Once without the server that saves the start: `budgeted-lora` as the rules call it."""
    program = str(Path(sys.executable).with_name("budgeted-lora"))
    words = [
        canonical_json(word) if isinstance(word, dict) else str(word) for word in training(world, tmp_path, "kd_lora")
    ]
    expected = whole("kd_lora", training, "kd_lora") / "cell" / "trained"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([program, *words], stdout=log, stderr=log)
        end = time.monotonic() + SECONDS
        while not saved(tmp_path, "step") and time.monotonic() < end:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert saved(tmp_path, "step") > 0
        assert subprocess.run([program, *words], stdout=log, stderr=log, check=False).returncode == 0
    assert sha256_file(tmp_path / "cell" / "trained") == sha256_file(expected)


# --- a state of something else is not gone on from


@pytest.fixture
def other_world(tmp_path: Path) -> World:
    (tmp_path / "other").mkdir()
    return make_world(tmp_path / "other", documents=61)


CHANGES = ["nothing", "recipe", "tokens", "code", "threads", "torch"]


def changed_code(patch: pytest.MonkeyPatch, change: str, *modules: object) -> None:
    for module in modules:
        if change == "code":
            patch.setattr(module, "code_digest", lambda stage: "0" * 64)
    if change == "torch":
        patch.setattr(torch, "__version__", type(torch.__version__)("2.99.0"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_teachers_state(
    world: World, other_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    arguments = {
        "name": "A", "spec": Teacher(layers=2, hidden=16, ffn=48, heads=2, kv_heads=1, tokens=5 * 2 * LENGTH),
        "pretraining": Pretraining(batch_windows=2, micro_batch_windows=2), "sequence_length": LENGTH, "rows": "packed",
        "tokens": world.tokens, "tokenizer": world.root / "tokenizer", "out": tmp_path / "model",
        "record": tmp_path / "teacher.json", "history": tmp_path / "history.csv", "state": tmp_path / "state",
        "scale": "tiny", "threads": 1, "device": "cpu",
    }  # fmt: skip
    monkeypatch.setattr(
        pretraining.pretrain, "__kwdefaults__", pretraining.pretrain.__kwdefaults__ | {"checkpoint_every": 2}
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    stop_run(monkeypatch, pretraining, "next_token_loss", lambda: pretrain_teacher(**arguments), after=4)
    arguments |= {
        "recipe": {"pretraining": arguments["pretraining"].model_copy(update={"weight_decay": 0.2})},
        "tokens": {"tokens": other_world.tokens},
        "threads": {"threads": 2},
    }.get(change, {})
    changed_code(monkeypatch, change, teacher_stage)
    steps = calls_of(monkeypatch, pretraining, "next_token_loss", lambda: pretrain_teacher(**arguments))
    assert steps == (1 if change == "nothing" else 5)


@pytest.mark.parametrize("change", [*CHANGES, "teacher"])
def test_a_cells_state(
    world: World, other_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    arguments = {
        "recipe": make_recipe("budgeted_lora"), "cell": "c", "scale": "tiny", "student": world.student,
        "teacher": world.teacher, "tokens": world.tokens, "cache": None, "out": tmp_path / "cell",
        "state": tmp_path / "state", "device": "cpu", "threads": 1, "log_every": 2, "checkpoint_every": 4,
    }  # fmt: skip
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    stop_run(monkeypatch, loop, "accumulate_gradients", lambda: stage.train_cell(**arguments), after=10)
    arguments |= {
        "recipe": {"recipe": make_recipe("budgeted_lora", seed=1)},
        "tokens": {"tokens": other_world.tokens},
        "threads": {"threads": 2},
        "teacher": {"teacher": world.student},
    }.get(change, {})
    changed_code(monkeypatch, change, stage)
    steps = calls_of(monkeypatch, loop, "accumulate_gradients", lambda: stage.train_cell(**arguments))
    assert steps == (4 if change == "nothing" else 12)


@pytest.mark.parametrize("change", [*CHANGES, "teacher"])
def test_a_caches_state(
    world: World, other_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def make(teacher: Path = world.teacher, tokens: Path = world.tokens, **values: object) -> None:
        common = {"windows": 12, "sequence_length": LENGTH, "rows": "packed", "batch_windows": 2}
        cache_stage.cache_teacher(
            teacher=teacher, tokens=tokens, **(common | values), precision="float32", scale="tiny",
            out=tmp_path / "cache", state=tmp_path / "state", device="cpu", threads=1,
        )  # fmt: skip

    stop_run(monkeypatch, caching, "final_hidden", make, after=4)
    changes = {
        "recipe": {"batch_windows": 3},
        "tokens": {"tokens": other_world.tokens},
        "teacher": {"teacher": world.student},
    }.get(change, {})
    changed_code(monkeypatch, change, cache_stage)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    passes = calls_of(monkeypatch, caching, "final_hidden", lambda: make(**changes))
    assert passes == {"nothing": 2, "recipe": 4}.get(change, 6)
