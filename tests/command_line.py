"""The command line as tests use it: commands of the stages over a `training_world`, and how one ended."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from training_world import LENGTH, World

from budgeted_lora import cli
from budgeted_lora.files import canonical_json
from budgeted_lora.recipe import Recipe

TINY = ["--scale", "tiny", "--threads", "1"]
ON_CPU = [*TINY, "--device", "cpu"]
Words = list[object]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    def refusal(self, *, status: int = 2) -> str:
        """The line that says why it stopped; bad input says nothing else, before another one progress may stand."""
        assert (self.status, self.out) == (status, ""), self
        assert "Traceback" not in self.err
        assert "Exception ignored" not in self.err
        assert self.err.count("budgeted-lora: ") == 1, self.err
        *before, last = self.err.splitlines()
        assert not before or status != 2, self.err
        assert last.startswith("budgeted-lora: ")
        return last.removeprefix("budgeted-lora: ")


def as_text(words: Words) -> list[str]:
    """Words of a command line; mappings become JSON."""
    return [canonical_json(word) if isinstance(word, dict) else str(word) for word in words]


def status_of(words: Words) -> int:
    """Runs a command in this process and says its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["budgeted-lora", *as_text(words)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


def train_words(world: World, out: Path, recipe: Recipe, *, cache: Path | None = None) -> Words:
    return [
        "stage", "train", "--values", recipe.model_dump(mode="json"), "--cell", "c", "--student", world.student,
        "--teacher", world.teacher, "--tokens", world.tokens, "--out", out / "cell", "--state", out / "state",
        "--log-every", 2, "--checkpoint-every", 4, *ON_CPU, *(["--cache", cache] if cache else []),
    ]  # fmt: skip


def pretrain_words(world: World, out: Path, *, steps: int, matrix_rate: float | None = None) -> Words:
    spec = {"layers": 2, "hidden": 16, "ffn": 48, "heads": 2, "kv_heads": 1, "tokens": steps * 2 * LENGTH}
    recipe = {"batch_windows": 2, "micro_batch_windows": 2, "matrix_learning_rate": matrix_rate, "compile": False}
    return [
        "stage", "pretrain-teacher", "--name", "A", "--spec", spec, "--values", recipe, "--sequence-length", LENGTH,
        "--rows", "packed", "--tokens", world.tokens, "--tokenizer", world.tokenizer, "--out", out / "model",
        "--record", out / "teacher.json", "--history", out / "history.csv", "--state", out / "state", *ON_CPU,
    ]  # fmt: skip


def cache_words(world: World, out: Path, *, windows: int, batch_windows: int = 2) -> Words:
    return [
        "stage", "cache-teacher", "--teacher", world.teacher, "--tokens", world.tokens, "--windows", windows,
        "--sequence-length", LENGTH, "--rows", "packed", "--batch-windows", batch_windows, "--precision", "float32",
        "--out", out / "cache", "--state", out / "state", *ON_CPU,
    ]  # fmt: skip


def compress_words(world: World, trained: Path, out: Path, recipe: Recipe) -> Words:
    return [
        "stage", "compress", "--values", recipe.model_dump(mode="json"), "--settings", {"r_max": 4}, "--cell", "c",
        "--student", world.student, "--trained", trained, "--tokens", world.tokens, "--tokenizer", world.tokenizer,
        "--out", out / "compressed", *TINY,
    ]  # fmt: skip
