"""Options of stages that are out of range: one line that names the option, exit status 2, and nothing is written."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.command_line import Outcome
from fixtures.run_stages import commands

from budgeted_lora.workflow.stage_command import flag

Run = Callable[..., Outcome]
COUNTS = {
    "collect_corpus": ["processes"],
    "pretrain_teacher": ["sequence_length", "threads"],
    "measure_statistics": ["windows", "batch_windows", "sequence_length", "rank", "threads"],
    "cache_teacher": ["windows", "batch_windows", "sequence_length", "threads"],
    "train_cell": ["log_every", "checkpoint_every", "threads", "gpus"],
    "compress_cell": ["threads"],
    "evaluate": ["threads"],
    "measure_speed": ["threads"],
}
PLACES = [(stage, name) for stage, names in COUNTS.items() for name in names]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder that holds no file before and after."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def words(stage: str, option: str, value: object) -> list[object]:
    """The command of a stage with another value of one option."""
    listed = list(commands()[stage])
    if option in listed:
        place = listed.index(option)
        del listed[place : place + 2]
    return ["stage", stage, *listed, option, value]


@pytest.mark.parametrize(("stage", "name"), PLACES)
def test_a_count_below_one_is_refused(run: Run, stage: str, name: str) -> None:
    for value in (0, -1, "two"):
        assert run(words(stage, flag(name), value)).refusal().startswith(f"{flag(name)}: ")


def test_a_negative_count_is_refused_where_none_is_a_choice(run: Run) -> None:
    for value in (-1, "two"):
        line = run(words("measure_statistics", flag("removal_windows"), value)).refusal()
        assert line.startswith(f"{flag('removal_windows')}: ")


@pytest.mark.parametrize(
    ("stage", "option", "key", "value"),
    [
        ("calibrate_teachers", "--calibration", "on_miss", "stpo"),
        ("calibrate_teachers", "--calibration", "tolerance", 0),
        ("calibrate_teachers", "--calibration", "tolerance", -0.02),
        ("calibrate_teachers", "--calibration", "miss", "stop"),
        ("measure_speed", "--sizes", "batch", 0),
        ("measure_speed", "--sizes", "repeats", 2),
    ],
)
def test_an_invalid_section_is_refused(run: Run, stage: str, option: str, key: str, value: object) -> None:
    line = run(words(stage, option, json.dumps({key: value}))).refusal()
    assert line.startswith(f"{option}: ")
    assert key in line
