"""Dense paths that train: their gradient, the hand-over to low-rank paths, what is counted, and resumed runs."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from fixtures.kills import stop_run
from fixtures.training_world import World, make_recipe, make_world
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from budgeted_lora.beyond.low_rank import approximate, merge_into_dense, start_from
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.sections import Compression
from budgeted_lora.method import loop
from budgeted_lora.method.projections import BudgetedLinear
from budgeted_lora.models.load import load_model
from budgeted_lora.models.trained import load_trained
from budgeted_lora.stages import train_cell as stage
from budgeted_lora.stages.compress_cell import compress_student
from budgeted_lora.training.install import HandOver, install_method

CUT = 3  # steps before a run is stopped


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"))


def recipe_of(train_dense: str | None, **changed: object) -> Recipe:
    rate = {"dense_learning_rate": 1e-3} if train_dense else {}
    return make_recipe("budgeted_lora", low_rank_init="svd", train_dense=train_dense, **rate, **changed)


def projection(d_in: int, d_out: int, rank: int, seed: int) -> BudgetedLinear:
    """One in float64 with a trained-looking low-rank path, whose dense path requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    sizes = {"rank": rank, "alpha": 2.0 * rank, "dropout": 0.0, "gate_logit": 0.3}
    module = BudgetedLinear(weight, **sizes, generator=generator)
    module.lora_b.data.normal_(generator=generator)
    module.weight.requires_grad_()
    return module


SIZES = {"d_in": st.integers(2, 12), "d_out": st.integers(2, 12), "seed": st.integers(0, 9)}


@settings(deadline=None)
@given(**SIZES, retention=st.sampled_from([1.0, 0.5, 0.0]), tokens=st.sampled_from([1, 40]))
def test_a_dense_path_has_a_gradient_until_it_fades(
    d_in: int, d_out: int, seed: int, retention: float, tokens: int
) -> None:
    module = projection(d_in, d_out, 2, seed)
    module.retention = retention
    x = torch.randn(tokens, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    module(x).square().sum().backward()

    weight, a, b = (p.detach().requires_grad_() for p in (module.weight, module.lora_a, module.lora_b))
    expected = retention * F.linear(x, weight) + F.linear(F.linear(x, a) * 2.0 * module.gates(), b)
    expected.square().sum().backward()
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.lora_a.grad, a.grad)
    torch.testing.assert_close(module.lora_b.grad, b.grad)
    if retention == 1.0:
        torch.testing.assert_close(module.weight.grad, weight.grad)
    else:
        assert module.weight.grad is None


@settings(deadline=None)
@given(**SIZES)
def test_a_hand_over_changes_no_output_and_leaves_the_least_behind(d_in: int, d_out: int, seed: int) -> None:
    module = projection(d_in, d_out, 2, seed)
    x = torch.randn(5, d_in, dtype=torch.float64)
    before = module(x).detach()
    whole = (module.weight + (module.lora_b * 2.0 * module.gates()) @ module.lora_a).detach()
    merge_into_dense(module)
    torch.testing.assert_close(module(x), before)
    torch.testing.assert_close(module.weight.detach(), whole)
    start_from(module, approximate(module.weight.detach(), rank=2))
    torch.testing.assert_close(module(x), before)
    best = torch.linalg.svdvals(whole)[2:].square().sum()
    torch.testing.assert_close(module.weight.detach().square().sum(), best)


@pytest.mark.parametrize("train_dense", [None, "kept", "all"])
def test_which_dense_paths_train(world: World, train_dense: str | None) -> None:
    recipe = recipe_of(train_dense, budget=0.4)
    modules, _ = install_method(load_model(world.student), recipe)
    final = loop.new_controller(recipe, modules)
    for n in range(200):
        final.step(n, steps=200)
    kept = [d == 1.0 for d in final.retentions]
    assert 0 < sum(kept) < len(kept)
    expected = {None: [False] * len(kept), "kept": kept, "all": [True] * len(kept)}[train_dense]
    assert [module.weight.requires_grad for module in modules.values()] == expected
    started = [bool(module.lora_b.any()) for module in modules.values()]
    assert started == [not trains for trains in expected]


def test_whole_paths_are_kept_or_gone_and_those_kept_train(world: World, tmp_path: Path) -> None:
    recipe = recipe_of("kept", budget=0.45, whole=True, schedule_start=0.0, schedule_end=0.0, steps=60)
    in_part = loop.new_controller(
        recipe.model_copy(update={"whole": None}), install_method(load_model(world.student), recipe)[0]
    )
    for n in range(200):
        in_part.step(n, steps=200)
    assert any(0.0 < d < 1.0 for d in in_part.retentions), "the budget must leave a path in part for this test"

    run_cell(world, recipe, tmp_path)
    modules, _ = install_method(load_model(world.student), recipe)
    last = [float(cell) for cell in (tmp_path / "retention.csv").read_text().splitlines()[-1].split(",")[1:]]
    assert [module.weight.requires_grad for module in modules.values()] == [d == 1.0 for d in last]
    trained = load_trained(student=world.student, trained=tmp_path / "trained")
    _, records = compress_student(
        trained, variant=Compression(rank_threshold=0.0), drop_threshold=recipe.drop_threshold
    )
    assert {record["decision"] for record in records} == {"keep", "drop"}
    assert all(record["exact"] for record in records)
    kept = sum(record["dense_macs"] for record in records if record["decision"] == "keep")
    assert 0 < kept <= 0.45 * sum(record["dense_macs"] for record in records)


def test_dense_paths_have_a_rate_of_their_own(world: World) -> None:
    recipe = recipe_of("kept", budget=0.4, gate_lr_multiplier=3.0)
    model = load_model(world.student)
    modules, _ = install_method(model, recipe)
    groups = loop.new_optimizer(model, recipe).param_groups
    dense = {id(module.weight) for module in modules.values() if module.weight.requires_grad}
    multipliers = [1.0, 3.0, 1e-3 / recipe.learning_rate]
    assert [group["lr_multiplier"] for group in groups] == pytest.approx(multipliers)
    assert {id(parameter) for parameter in groups[2]["params"]} == dense


def test_a_hand_over_comes_when_a_path_fades_and_forgets_moments(world: World) -> None:
    recipe = recipe_of("all", budget=0.4)
    model = load_model(world.student)
    modules, _ = install_method(model, recipe)
    optimizer = loop.new_optimizer(model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    names = list(modules)
    fading = loop.move_retentions(modules, [0.5, 0.0] + [1.0] * (len(names) - 2))
    assert fading == names[:2]
    loop.start_anew({name: modules[name] for name in fading}, optimizer, HandOver.of(recipe, None))
    first, untouched = modules[names[0]], modules[names[2]]
    assert first.lora_a not in optimizer.state
    assert untouched.lora_a in optimizer.state
    assert loop.move_retentions(modules, [0.1, 0.0] + [1.0] * (len(names) - 2)) == []


def run_cell(world: World, recipe: Recipe, out: Path) -> None:
    stage.train_cell(
        recipe=recipe, cell="cell", scale="test", student=world.student, teacher=world.teacher, tokens=world.tokens,
        out=out, state=out / "state", device="cpu", threads=1, log_every=2, checkpoint_every=1,
    )  # fmt: skip


@pytest.mark.parametrize("train_dense", ["kept", "all"])
def test_a_run_cut_before_or_after_a_hand_over_ends_with_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_dense: str
) -> None:
    recipe = recipe_of(train_dense, budget=0.4)
    run_cell(world, recipe, tmp_path / "whole")
    for stop in (CUT, recipe.steps // 2, recipe.steps - 1):
        out = tmp_path / f"cut{stop}"
        run = partial(run_cell, world, recipe, out)
        stop_run(monkeypatch, loop, "accumulate_gradients", run, after=stop)
        run()
        for file in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (stop, file)


@pytest.mark.parametrize("train_dense", [None, "kept", "all"])
def test_compute_counts_the_gradients_of_dense_weights(world: World, tmp_path: Path, train_dense: str | None) -> None:
    recipe = recipe_of(train_dense, budget=0.4, steps=40)
    run_cell(world, recipe, tmp_path)
    record = json.loads((tmp_path / "train.json").read_text())["train_compute"]
    lines = (tmp_path / "retention.csv").read_text().splitlines()
    modules, _ = install_method(load_model(world.student), recipe)
    costs = [module.macs for module in modules.values()]
    untrained = {name: module.weight.clone() for name, module in modules.items()}
    assert record["scheduled"] == pytest.approx(record["executed"], rel=0.2)

    plain = recipe.model_copy(update={"train_dense": None, "dense_learning_rate": None})
    run_cell(world, plain, tmp_path / "plain")
    usual = json.loads((tmp_path / "plain" / "train.json").read_text())["train_compute"]
    last = [float(cell) for cell in lines[-1].split(",")[1:]]
    kept = sum(cost for cost, d in zip(costs, last, strict=True) if d == 1.0) / sum(costs)
    share = {None: 0.0, "kept": kept / 3}.get(train_dense)
    if share is not None:
        assert record["executed"] - usual["executed"] == pytest.approx(share)
    else:
        assert record["executed"] - usual["executed"] > kept / 3

    trained = load_file(tmp_path / "trained" / "model.safetensors")
    moved = [not torch.equal(trained[f"{name}.weight"], weight) for name, weight in untrained.items()]
    assert moved == [train_dense == "all" or (train_dense == "kept" and d == 1.0) for d in last]
