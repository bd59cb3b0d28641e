"""`budgeted-lora stage`: what does not fit a stage's signature is one line, status 2, and names the option."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from fixtures.training_world import make_recipe

from budgeted_lora.errors import BadInput
from budgeted_lora.provenance import stage_in_progress
from budgeted_lora.stages.arguments import read_words
from budgeted_lora.workflow.stage_command import stage_arguments, stage_command, stage_names

RECIPE = make_recipe("kd_full").model_dump_json()
TRAIN = [
    "train_cell", f"--recipe={RECIPE}", "--cell=c", "--scale=tiny", "--student=s", "--teacher=t", "--tokens=x.bin",
    "--out=o", "--state=st", "--device=cpu", "--threads=1", "--log-every=2", "--checkpoint-every=4",
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["no_such_stage"], ["no_such_stage", "train_cell"]),
        (["train_cell"], ["--recipe", "missing"]),
        ([*TRAIN, "--speed=9"], ["--speed", "--recipe"]),
        ([*TRAIN, "--out=p"], ["--out", "twice"]),
        ([*TRAIN[:-1], "--checkpoint-every"], ["--checkpoint-every", "value"]),
        ([*TRAIN[:-1], "--checkpoint-every=soon"], ["--checkpoint-every", "soon"]),
        ([*TRAIN, "stray"], ["--checkpoint-every", "stray"]),
        (["train_cell", "stray"], ["stray"]),
        ([*TRAIN, "--options=[1]"], ["--options"]),
        ([*TRAIN, "--options={"], ["--options", "JSON"]),
        ([TRAIN[0], "--recipe={}", *TRAIN[2:]], ["--recipe", "method"]),
        ([*TRAIN, "--together=2"], ["--together"]),
        ([*TRAIN, "--gpus=0"], ["--gpus"]),
        ([*TRAIN, "--gpus=3"], ["--gpus 3", "4 windows"]),
        (["list_cells", "--gpus=2"], ["--gpus"]),
        ([*TRAIN[:9], "--device=tpu", *TRAIN[10:]], ["--device", "tpu"]),
    ],
)
def test_what_does_not_fit_is_one_line(run, words: list[str], parts: list[str]) -> None:
    outcome = run("stage", *words)
    line = outcome.refusal()
    assert all(part in line for part in parts), line


def test_help_says_what_a_stage_takes(run) -> None:
    outcome = run("stage", "train_cell", "--help")
    assert outcome.status == 0
    assert "--recipe" in outcome.out
    assert "[--gpus]" in outcome.out
    assert "folder of the teacher's hidden states" in outcome.out
    assert set(stage_names()) <= set(run("stage", "--help").out.split())


def test_every_rule_and_file_of_a_stage_has_its_name() -> None:
    assert {"train_cell", "compress_cell", "evaluate", "make_table"} <= set(stage_names())
    assert stage_arguments("train_cell")["recipe"]
    assert not stage_arguments("train_cell")["cache"]
    assert "together" not in stage_arguments("train_cell")


def test_a_rule_that_names_other_arguments_is_refused_when_it_is_read() -> None:
    with pytest.raises(BadInput, match="--speed"):
        stage_command("train_cell", params=["speed", "options"])
    with pytest.raises(BadInput, match="--out"):
        stage_command("make_table", input=["published"])


@pytest.mark.parametrize("name", ["a b.json", "it's.json", 'quo"te.json', "$HOME.json", "semi;colon"])
def test_odd_paths_reach_the_stage_whole(name: str) -> None:
    """As Snakemake's `:q` quotes them, through a real shell."""
    text = json.dumps({"path": name})
    command = f"printf '%s\\n' list_cells --out {shlex.quote(name)} --options {shlex.quote(text)}"
    words = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    assert read_words(words) == ("list_cells", {"path": name, "out": name})


def test_outside_a_stage_nothing_is_in_progress() -> None:
    assert stage_in_progress() is None
    assert Path(__file__).stem not in stage_names()
