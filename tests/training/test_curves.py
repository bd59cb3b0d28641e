"""Curves for TensorBoard: every logged row as a point, whether or not a run was cut short, and no byte of a result."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from fixtures.kills import stop_run
from fixtures.training_world import make_recipe, make_world

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.method import loop
from budgeted_lora.stages.train_cell import train_cell
from budgeted_lora.workflow import curves

with_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"))


def train(world, out: Path) -> None:
    train_cell(
        recipe=make_recipe("budgeted_lora"), cell="c", scale="tiny", student=world.student, teacher=world.teacher,
        tokens=world.tokens, out=out, state=out / "state", device="cpu", threads=1, log_every=2, checkpoint_every=4,
    )  # fmt: skip


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every point of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]}


@with_tensorboard
def test_curves_are_the_history_and_change_no_byte(world, tmp_path, monkeypatch) -> None:
    train(world, tmp_path / "without")
    monkeypatch.setenv(curves.VARIABLE, str(tmp_path / "curves"))
    stop_run(monkeypatch, loop, "accumulate_gradients", lambda: train(world, tmp_path / "with"), after=6)
    train(world, tmp_path / "with")  # goes on after step 4; the row of step 6 was written before and is again

    for name in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    with (tmp_path / "with" / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    drawn = points(tmp_path / "curves" / "c")
    assert drawn.keys() == rows[0].keys() - {"step"}
    for name, curve in drawn.items():
        assert [step for step, _ in curve] == [int(row["step"]) for row in rows]
        assert [value for _, value in curve] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)


def test_without_the_package_a_run_ends_before_any_work(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv(curves.VARIABLE, str(tmp_path / "curves"))
    with pytest.raises(BadInput, match="tensorboard is not installed"):
        train(world, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_key_reaches_jobs_by_their_environment(tmp_path, monkeypatch) -> None:
    ladder = {"A": {"layers": 6, "hidden": 16, "ffn": 48, "heads": 2, "kv_heads": 1}}
    config = Config(scale="tiny", teacher_ladder=ladder, corpus={"packages": ["numpy"]})
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setenv(curves.VARIABLE, "left over")
    curves.offer_curves(config, "results/tiny")
    assert curves.curves_of("c") is None
    curves.offer_curves(config.model_copy(update={"tensorboard": True}), "results/tiny")
    assert curves.curves_of("c") == Path("results/tiny/tensorboard/c")
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match="pip install tensorboard"):
        curves.offer_curves(config.model_copy(update={"tensorboard": True}), "results/tiny")
