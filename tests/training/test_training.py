"""The training loop and its stage: what trains, what a budget executes, and that a killed run ends the same."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.kills import calls_of, stop_run
from fixtures.states import running
from fixtures.training_world import LENGTH, VOCABULARY, make_recipe, make_world
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput, TrainingDiverged
from budgeted_lora.method import loop
from budgeted_lora.method.projections import set_retentions
from budgeted_lora.models.load import load_model
from budgeted_lora.models.trained import load_trained
from budgeted_lora.stages import train_cell as stage
from budgeted_lora.training.cache import OnlineTeacher
from budgeted_lora.training.state import TrainingState, locked_folder

CPU = torch.device("cpu")
METHODS = ("kd_full", "kd_lora", "budgeted_lora")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"))


def run_cell(world, recipe, out, **changed):
    arguments = {
        "recipe": recipe,
        "cell": "cell",
        "scale": "test",
        "student": world.student,
        "teacher": world.teacher,
        "tokens": world.tokens,
        "cache": None,
        "out": out,
        "state": out / "state",
        "device": "cpu",
        "threads": 1,
        "log_every": 2,
        "checkpoint_every": 4,
    }
    stage.train_cell(**(arguments | changed))
    return load_file(out / "trained" / "model.safetensors")


def read_csv(path):
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gradients(world, recipe, *, windows=4, seed=7):
    """Gradient of one step, from trained-looking adapters so that A and the gates have one."""
    model = load_model(world.student)
    modules, _ = stage.install_method(model, recipe)
    generator = torch.Generator().manual_seed(seed)
    for module in modules.values():
        module.lora_b.data.normal_(generator=generator)
    losses = loop.accumulate_gradients(
        model,
        OnlineTeacher(load_model(world.teacher)),
        Windows(TokenFile.open(world.tokens), LENGTH, recipe.rows),
        np.arange(windows),
        recipe,
        device=CPU,
        precision=torch.float32,
    )
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_the_files_are_there(world, tmp_path, method):
    weights = run_cell(world, make_recipe(method, steps=30, learning_rate=3e-2), tmp_path)
    history = read_csv(tmp_path / "history.csv")
    assert [int(row["step"]) for row in history] == list(range(2, 31, 2))
    assert float(history[-1]["loss"]) < 0.95 * float(history[0]["loss"])
    assert all(float(row["tokens_per_second"]) > 0 for row in history)
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["loss"] == float(history[-1]["loss"])
    assert record["tokens"] == 30 * 4 * LENGTH
    assert record["provenance"]["values"]["method"] == method
    assert set(record["provenance"]["inputs"]) == {
        str(world.student),
        str(world.teacher),
        str(world.tokens.with_suffix(".json")),
    }
    restored = load_trained(student=world.student, trained=tmp_path / "trained")
    assert equal(weights, {name: tensor for name, tensor in restored.model.state_dict().items()})
    assert not any((tmp_path / "state").iterdir())


def test_kd_full_trains_every_weight_and_lora_only_its_own(world, tmp_path):
    before = load_file(world.student / "model.safetensors")
    full = run_cell(world, make_recipe("kd_full"), tmp_path / "full")
    assert all(not torch.equal(before[name], full[name]) for name in before)
    lora = run_cell(world, make_recipe("kd_lora"), tmp_path / "lora")
    assert all(torch.equal(before[name], lora[name]) for name in before)
    assert all(lora[name].any() for name in lora if name.endswith("lora_b"))
    whole = run_cell(world, make_recipe("kd_lora", train_embeddings_head_norms=True), tmp_path / "whole")
    for name in before:
        assert torch.equal(before[name], whole[name]) == name.endswith("_proj.weight")


def test_frozen_weights_have_no_optimizer_state(world):
    recipe = make_recipe("budgeted_lora", gate_lr_multiplier=5.0)
    model = load_model(world.student)
    modules, _ = stage.install_method(model, recipe)
    optimizer = loop.new_optimizer(model, recipe)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == 3 * len(modules) == 3 * 14
    assert {len(p.shape) for p in optimizer.param_groups[1]["params"]} == {1}
    assert optimizer.param_groups[1]["lr_multiplier"] == 5.0
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(optimizer.state) == len(held)


def test_a_budget_of_one_is_kd_lora_with_gates(world, tmp_path):
    """With gates held open (logit 40: g = 1 in float32) the two methods agree bit for bit."""
    lora = run_cell(world, make_recipe("kd_lora"), tmp_path / "lora")
    gated = make_recipe("budgeted_lora", budget=1.0, gate_logit=40.0, gate_lr_multiplier=1e-30)
    budgeted = run_cell(world, gated, tmp_path / "budgeted")
    assert equal(lora, {name: tensor for name, tensor in budgeted.items() if not name.endswith("gate_logits")})
    record = json.loads((tmp_path / "budgeted" / "train.json").read_text())
    assert record["dense_fraction"] == {"scheduled": 1.0, "retained": 1.0, "executed": 1.0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ["packed", "document"])
def test_accumulation_does_not_change_the_gradient(world, method, rows):
    """Documents are padded, so the micro-batches hold unequal numbers of valid positions."""
    recipes = [make_recipe(method, rows=rows, dropout=0.0, micro_batch_windows=size) for size in (4, 2, 1)]
    whole, *parts = [gradients(world, recipe) for recipe in recipes]
    assert len(whole[1]) > 0
    for losses, grads in parts:
        torch.testing.assert_close(losses, whole[0], rtol=1e-5, atol=1e-7)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, whole[1][name], rtol=1e-4, atol=1e-7)


def test_the_step_loss_is_that_of_the_models_logits(world):
    """Against logits of both models in double precision, over non-padding positions, shifted by one."""
    recipe = make_recipe("kd_full", rows="document")
    losses, _ = gradients(world, recipe)
    ids, mask = Windows(TokenFile.open(world.tokens), LENGTH, "document").read(np.arange(4))
    batch = torch.from_numpy(ids)
    with torch.no_grad():
        student, teacher = (load_model(folder)(batch).logits.double() for folder in (world.student, world.teacher))
    total_kl = total_ce = count = 0
    for row in range(4):
        for position in range(LENGTH - 1):
            if mask[row, position + 1]:
                p = torch.softmax(teacher[row, position] / 3.0, -1)
                q = torch.softmax(student[row, position] / 3.0, -1)
                total_kl += (p * (p / q).log()).sum().item()
                total_ce -= torch.log_softmax(student[row, position], -1)[ids[row, position + 1]].item()
                count += 1
    assert count < 4 * (LENGTH - 1)
    assert losses[1].item() == pytest.approx(total_kl / count, rel=1e-5)
    assert losses[2].item() == pytest.approx(total_ce / count, rel=1e-5)
    assert losses[0].item() == pytest.approx(0.8 * 9 * total_kl / count + 0.2 * total_ce / count, rel=1e-5)


def test_executed_macs_are_what_the_kernels_ran(world):
    """FLOPs counted in the kernels fall by 2 x (forward + input gradient) of exactly the modules at d = 0.

    Their merged weights are no longer made either, and two of the thin products come back.
    """
    recipe = make_recipe("budgeted_lora", dropout=0.0, micro_batch_windows=4)
    model = load_model(world.student)
    modules, _ = stage.install_method(model, recipe)
    teacher = OnlineTeacher(load_model(world.teacher))
    windows = Windows(TokenFile.open(world.tokens), LENGTH, recipe.rows)

    def flops():
        for module in modules.values():
            module.forget_merged()
        with FlopCounterMode(display=False) as counter:
            loop.accumulate_gradients(
                model, teacher, windows, np.arange(4), recipe, device=CPU, precision=torch.float32
            )
        return counter.get_total_flops()

    everything = flops()
    off = [name for name in modules if ".layers.1." in name]  # inputs of layer 0 need no gradient, so take the other
    set_retentions(modules, [0.0 if name in off else 1.0 for name in modules])
    gone = [modules[name] for name in off]
    saved = sum(2 * module.macs - module.rank * (module.d_in + module.d_out) for module in gone)
    merging = sum(module.rank * module.macs for module in gone)
    assert everything - flops() == 2 * saved * 4 * LENGTH + 2 * merging


def test_the_run_counts_scheduled_retained_and_executed(world, tmp_path):
    run_cell(world, make_recipe("budgeted_lora", budget=0.0, steps=60), tmp_path, log_every=1)
    record = json.loads((tmp_path / "train.json").read_text())
    retention = read_csv(tmp_path / "retention.csv")
    costs = {
        name: p.macs for name, p in stage.install_method(load_model(world.student), make_recipe("kd_lora"))[0].items()
    }
    dense = sum(costs.values())
    executed = sum(c for row in retention for name, c in costs.items() if float(row[name]) > 0) / dense / 60
    retained = sum(c * float(row[name]) for row in retention for name, c in costs.items()) / dense / 60
    fractions = record["dense_fraction"]
    assert fractions["executed"] == pytest.approx(executed, rel=1e-12)
    assert fractions["retained"] == pytest.approx(retained, rel=1e-12)
    assert fractions["scheduled"] == pytest.approx(0.1 + 0.4 / 2)
    lora = sum(
        4 * (m.d_in + m.d_out)
        for m in stage.install_method(load_model(world.student), make_recipe("kd_lora"))[0].values()
    )
    assert record["train_compute"]["executed"] == pytest.approx((2 * executed * dense + 3 * lora) / (3 * dense))
    assert {float(row[name]) for row in retention[-1:] for name in costs} == {0.0}
    history = read_csv(tmp_path / "history.csv")
    assert float(history[0]["target_fraction"]) == 1.0
    assert float(history[-1]["target_fraction"]) == float(history[-1]["retained_fraction"]) == 0.0


def test_gates_and_active_ranks_move(world, tmp_path):
    """A rank of the history that never changes would mean that gates do not train."""
    recipe = make_recipe("budgeted_lora", gate_lr_multiplier=60.0, gate_logit=0.1, steps=30)
    run_cell(world, recipe, tmp_path)
    ranks = [float(row["active_ranks"]) for row in read_csv(tmp_path / "history.csv")]
    assert ranks[-1] < 4.0
    assert len(set(ranks)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_same_recipe_same_bytes(world, tmp_path, method):
    recipe = make_recipe(method)
    for name in ("one", "two"):
        run_cell(world, recipe, tmp_path / name)
    files = ("trained/model.safetensors", "trained/adapter.json", "retention.csv")
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    other = run_cell(world, recipe.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not equal(other, load_file(tmp_path / "one" / "trained" / "model.safetensors"))


@pytest.mark.parametrize(("method", "stops"), [("kd_full", (6,)), ("kd_lora", (9,)), ("budgeted_lora", (0, 3, 7, 11))])
def test_a_run_cut_at_any_step_ends_with_the_same_bytes(world, tmp_path, monkeypatch, method, stops):
    recipe = make_recipe(method)
    run_cell(world, recipe, tmp_path / "whole")
    for stop in stops:
        out = tmp_path / f"cut{stop}"
        run = partial(run_cell, world, recipe, out)
        stop_run(monkeypatch, loop, "accumulate_gradients", run, after=stop)
        assert not (out / "train.json").exists()
        torch.rand(5)  # another generator state, which the resumed run must not see
        assert calls_of(monkeypatch, loop, "accumulate_gradients", run) == 12 - stop // 4 * 4
        for file in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (stop, file)
        whole, again = read_csv(tmp_path / "whole" / "history.csv"), read_csv(out / "history.csv")
        strip = [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in whole]
        assert [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in again] == strip


def test_a_run_killed_after_its_last_step_keeps_its_structure(world, tmp_path, monkeypatch):
    recipe = make_recipe("budgeted_lora")
    run_cell(world, recipe, tmp_path / "whole")
    out = tmp_path / "cut"

    stop_run(monkeypatch, stage, "save_trained", lambda: run_cell(world, recipe, out), after=0)
    run_cell(world, recipe, out)
    for file in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


TRAIN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fixtures.training_world import make_recipe, World
from budgeted_lora.method import loop
from budgeted_lora.stages import train_cell as stage
real = loop.accumulate_gradients
def slow(*arguments, **keywords):
    time.sleep(float(sys.argv[4]))
    return real(*arguments, **keywords)
loop.accumulate_gradients = slow
world, out = World(Path(sys.argv[2])), Path(sys.argv[3])
stage.train_cell(recipe=make_recipe("budgeted_lora", steps=12), cell="cell", scale="test", student=world.student,
    teacher=world.teacher, tokens=world.tokens, cache=None, out=out, state=out / "state", device="cpu", threads=1,
    log_every=1, checkpoint_every=1)
"""


def start_training(world, out, *, pause):
    arguments = [sys.executable, "-c", TRAIN, str(Path(__file__).parents[1]), str(world.root), str(out), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_sigkill_then_resume_gives_the_same_bytes_and_the_lock_holds(world, tmp_path):
    run_cell(world, make_recipe("budgeted_lora", steps=12), tmp_path / "whole", log_every=1, checkpoint_every=1)
    out = tmp_path / "killed"
    first = start_training(world, out, pause=0.2)
    deadline = time.monotonic() + 300
    while not list(out.glob("state/*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    [folder] = running(out / "state")
    with pytest.raises(BadInput, match=f"process {first.pid} is using this folder"), locked_folder(folder):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert running(out / "state") == []
    assert list(out.glob("state/*/state.safetensors"))
    second = start_training(world, out, pause=0.0)
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    for file in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_another_interval_of_the_history_is_another_run(world, tmp_path, monkeypatch):
    """Else a run that is resumed with it would have a history in two steps."""
    keys = []
    real = stage.locked_folder
    monkeypatch.setattr(stage, "locked_folder", lambda folder: keys.append(folder.name) or real(folder))
    for log_every in (1, 4):
        run_cell(world, make_recipe("kd_lora"), tmp_path / str(log_every), log_every=log_every)
    assert len(set(keys)) == 2


def test_a_diverged_run_names_the_step_and_keeps_its_history(world, tmp_path, monkeypatch):
    real, calls = loop.accumulate_gradients, []

    def sour(*arguments, **keywords):
        calls.append(1)
        losses = real(*arguments, **keywords)
        return losses * math.nan if len(calls) == 7 else losses

    monkeypatch.setattr(loop, "accumulate_gradients", sour)
    with pytest.raises(TrainingDiverged, match="at step 7 of 12"):
        run_cell(world, make_recipe("kd_lora"), tmp_path, log_every=4)
    [folder] = (tmp_path / "state").iterdir()
    rows = read_csv(folder / "history.csv")
    assert [row["step"] for row in rows] == ["4", "8"]
    assert math.isnan(float(rows[-1]["loss"]))
    assert not (tmp_path / "train.json").exists()


def test_a_real_blow_up_is_seen(world, tmp_path):
    with pytest.raises(TrainingDiverged, match="at step"):
        run_cell(world, make_recipe("kd_full", learning_rate=1e30, warmup_fraction=0.0), tmp_path)


def test_a_state_of_another_recipe_is_not_taken_up(world, tmp_path, monkeypatch):
    first = partial(run_cell, world, make_recipe("kd_lora"), tmp_path / "out")
    stop_run(monkeypatch, loop, "accumulate_gradients", first, after=6)
    changed = make_recipe("kd_lora", learning_rate=2e-2)
    assert equal(run_cell(world, changed, tmp_path / "out"), run_cell(world, changed, tmp_path / "fresh"))


def test_learning_rate_warms_up_and_ends_near_zero():
    recipe = make_recipe("kd_full", steps=100, warmup_fraction=0.03, learning_rate=1.0)
    rates = [loop.learning_rate(n, recipe) for n in range(100)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    paper = make_recipe("kd_full", steps=38_910, warmup_fraction=0.03, learning_rate=1.0)
    assert loop.learning_rate(1166, paper) == 1.0 > loop.learning_rate(1165, paper)
    capped = make_recipe("kd_full", steps=1_000_000, warmup_fraction=0.03, learning_rate=1.0)
    assert loop.learning_rate(1999, capped) == 1.0


def test_window_order_reads_the_front_of_the_file():
    recipe = make_recipe("kd_full", steps=5, batch_windows=4)
    order = loop.window_order(recipe, available=1000)
    assert sorted(order) == list(range(20))
    assert list(order) != list(range(20))
    short = loop.window_order(recipe, available=8)
    assert [sorted(short[i : i + 8]) for i in (0, 8)] == [list(range(8))] * 2
    assert list(short[:8]) != list(short[8:16])
    other = loop.window_order(recipe.model_copy(update={"seed": 1}), available=1000)
    assert sorted(other) == sorted(order)
    assert list(other) != list(order)


def test_a_teacher_of_another_vocabulary_is_refused(world, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in world.teacher.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY + 1}))
    with pytest.raises(BadInput, match=f"vocabulary of {VOCABULARY + 1}"):
        run_cell(world, make_recipe("kd_lora"), tmp_path / "out", teacher=other)


def test_cuda_without_a_gpu_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="no usable GPU"):
        run_cell(world, make_recipe("kd_lora"), tmp_path, device="cuda")


def test_state_keeps_moments_and_generators(world, tmp_path):
    recipe = make_recipe("budgeted_lora")

    def fresh():
        model = load_model(world.student)
        stage.install_method(model, recipe)
        return model, loop.new_optimizer(model, recipe)

    model, optimizer = fresh()
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = TrainingState(tmp_path)
    state.save(model, optimizer, values={"step": 1, "x": 0.1 + 0.2})
    expected = torch.rand(3)
    restored, other = fresh()
    assert TrainingState(tmp_path).restore(restored, other) == {"step": 1, "x": 0.1 + 0.2}
    assert torch.equal(torch.rand(3), expected)
    assert equal(model.state_dict(), restored.state_dict())
    for parameter, twin in zip(model.parameters(), restored.parameters(), strict=True):
        one, two = optimizer.state.get(parameter, {}), other.state.get(twin, {})
        assert one.keys() == two.keys()
        assert bool(one) == parameter.requires_grad
        assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)
