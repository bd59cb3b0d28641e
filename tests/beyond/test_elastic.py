"""One training for every budget: which F a step has, what it does at this F, and what compression makes of it."""

import csv
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.elastic_world import BUDGETS, ElasticWorld, elastic_recipe, make_elastic_world, train_elastic
from fixtures.kills import stop_run
from fixtures.training_world import LENGTH, make_recipe
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional

from budgeted_lora.beyond.elastic import ElasticController, budget_of_step, scheduled_fraction
from budgeted_lora.beyond.statistics import InputStatistics
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.sections import Compression
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.method import loop
from budgeted_lora.method.controller import Controller
from budgeted_lora.method.projections import BudgetedLinear, set_retentions
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.models.load import load_model
from budgeted_lora.models.trained import load_trained
from budgeted_lora.stages.compress_cell import compress_cell
from budgeted_lora.training.cache import OnlineTeacher
from budgeted_lora.training.install import install_method

COSTS = [6, 2, 8, 4]
ORDER = [2, 0, 3, 1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> ElasticWorld:
    torch.set_num_threads(1)
    return make_elastic_world(tmp_path_factory.mktemp("elastic"))


@pytest.fixture(scope="module")
def trained(here: ElasticWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student trained for `BUDGETS` in twelve steps."""
    return train_elastic(here, elastic_recipe(), tmp_path_factory.mktemp("trained"))


# --- which F a step has, and what it leaves


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_ends_take_turns_and_the_steps_between_draw_by_seed_and_number(seed: int, period: int) -> None:
    first, low, second, high = (budget_of_step(4 * period + turn, BUDGETS, seed=seed) for turn in range(4))
    assert (low, high) == (BUDGETS[0], BUDGETS[-1])
    for n, drawn in ((4 * period, first), (4 * period + 2, second)):
        assert drawn == BUDGETS[np.random.default_rng([seed, n]).integers(3)]


def test_draws_are_even_and_differ_by_seed() -> None:
    draws = {seed: [budget_of_step(n, BUDGETS, seed=seed) for n in range(0, 6000, 2)] for seed in (0, 1)}
    assert all(abs(count - 1000) < 100 for seed in draws for count in Counter(draws[seed]).values())
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.0, [0.0, 0.0, 0.0, 0.0]),
        (0.9, [1.0, 1.0, 0.75, 1.0]),  # 2 of 20 go, of the first in the order, which has 8
        (0.59, [1.0 - 0.2 / 6, 1.0, 0.0, 1.0]),
        (0.31, [0.0, 1.0, 0.0, 1.0]),  # 0.2 of the second's 6 would stay, which is below the threshold
    ],
)
def test_a_step_leaves_what_a_long_run_ends_with(budget: float, expected: list[float]) -> None:
    how = {"drop_threshold": 0.06, "removal_order": ORDER}
    controller = ElasticController(COSTS, (budget, 0.95), seed=0, **how)
    controller.step(1, steps=4)
    assert controller.retentions == pytest.approx(expected, abs=1e-9)
    assert controller.target == budget
    assert controller.retained_fraction == pytest.approx(np.dot(COSTS, expected) / sum(COSTS))
    rule = BudgetRule(budget=budget, start=0.1, end=0.3, drop_threshold=0.06)
    fixed = Controller(COSTS, rule, removal_order=ORDER)
    for n in range(2000):
        fixed.step(n, steps=2000)
    assert controller.retentions == pytest.approx(fixed.retentions, abs=1e-9)


@pytest.mark.parametrize("budgets", [(), (0.4,), (0.4, 0.4), (0.4, 1.0), (-0.1, 0.4)])
def test_budgets_that_are_none_or_one_are_refused(budgets: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="expected at least two different ones in"):
        ElasticController(COSTS, budgets, drop_threshold=0.05, seed=0)


def test_the_scheduled_share_is_that_of_long_training() -> None:
    drawn = [budget_of_step(n, BUDGETS, seed=3) for n in range(40_000)]
    assert scheduled_fraction(elastic_recipe()) == pytest.approx(np.mean(drawn), abs=3e-3)
    assert scheduled_fraction(make_recipe("kd_lora")) == 1.0
    fixed = make_recipe("budgeted_lora")
    assert scheduled_fraction(fixed) == BudgetRule.of(fixed).mean_fraction


# --- what a step does


def gradients_by_hand(
    here: ElasticWorld, recipe: Recipe, modules: dict[str, BudgetedLinear], *, budget: float, order: list[int]
) -> dict[str, torch.Tensor]:
    """Gradients of the low-rank paths at an F, float64, by autograd through d W + (alpha/r) B diag(g) A alone."""
    excess, left = (1.0 - budget) * sum(module.macs for module in modules.values()), dict.fromkeys(modules, 1.0)
    for index in order:
        name = list(modules)[index]
        cut = min(excess, modules[name].macs)
        left[name], excess = 1.0 - cut / modules[name].macs, excess - cut
    left = {name: 0.0 if d < recipe.drop_threshold else d for name, d in left.items()}
    student, teacher = load_model(here.world.student).double(), load_model(here.world.teacher).double()
    parts, weights = {}, {}
    for name, module in modules.items():
        own = {part: getattr(module, part).detach().double().requires_grad_() for part in ("lora_a", "lora_b")}
        own["gate_logits"] = module.gate_logits.detach().double().requires_grad_()
        strength = recipe.alpha / recipe.rank * torch.sigmoid(own["gate_logits"])
        weights[f"{name}.weight"] = (
            left[name] * module.weight.double() + own["lora_b"] @ torch.diag(strength) @ own["lora_a"]
        )
        parts |= {f"{name}.{part}": tensor for part, tensor in own.items()}
    ids, _ = Windows(TokenFile.open(here.world.tokens), LENGTH, "packed").read(np.arange(4))
    ids = torch.from_numpy(ids)
    logits = torch.func.functional_call(student, weights, kwargs={"input_ids": ids, "use_cache": False}).logits[:, :-1]
    with torch.no_grad():
        wanted = teacher(input_ids=ids, use_cache=False).logits[:, :-1]
    t, a = recipe.temperature, recipe.kd_weight
    soft = functional.log_softmax(logits / t, -1).flatten(0, 1)
    kl = functional.kl_div(soft, functional.log_softmax(wanted / t, -1).flatten(0, 1), log_target=True, reduction="sum")
    ce = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    ((a * t * t * kl + (1 - a) * ce) / ids[:, 1:].numel()).backward()
    return {name: tensor.grad for name, tensor in parts.items()}


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_the_gradient_of_a_step_is_that_of_a_fixed_budget_in_float64(here: ElasticWorld, n: int) -> None:
    recipe = elastic_recipe(seed=5)
    model = load_model(here.world.student)
    modules, low_rank = install_method(model, recipe, InputStatistics.open(here.statistics))
    controller = ElasticController.of(recipe, [module.macs for module in modules.values()], low_rank.order)
    set_retentions(modules, controller.step(n, steps=recipe.steps))
    loop.accumulate_gradients(
        model,
        OnlineTeacher(load_model(here.world.teacher)),
        Windows(TokenFile.open(here.world.tokens), LENGTH, recipe.rows),
        np.arange(4),
        recipe,
        device=CPU,
        precision=torch.float32,
    )
    budget = budget_of_step(n, BUDGETS, seed=5)
    expected = gradients_by_hand(here, recipe, modules, budget=budget, order=low_rank.order)
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad.double()
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-9)


def test_a_run_writes_the_budget_and_the_paths_of_each_step(trained: Path) -> None:
    budgets = [budget_of_step(n, BUDGETS, seed=0) for n in range(12)]
    assert [float(row["target_fraction"]) for row in rows_of(trained / "history.csv")] == budgets
    retentions = [{k: float(v) for k, v in row.items() if k != "step"} for row in rows_of(trained / "retention.csv")]
    for budget, row in zip(budgets, retentions, strict=True):
        assert sum(0.0 < d < 1.0 for d in row.values()) <= 1
        assert (set(row.values()) == {0.0}) == (budget == 0.0)
    record = read_json(trained / "train.json")
    costs = dict(zip(retentions[0], macs_of(trained), strict=True))
    executed = [sum(costs[name] for name, d in row.items() if d) / sum(costs.values()) for row in retentions]
    assert record["dense_fraction"]["executed"] == pytest.approx(np.mean(executed))
    assert record["dense_fraction"]["scheduled"] == pytest.approx(scheduled_fraction(elastic_recipe()))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def macs_of(trained: Path) -> list[int]:
    """MACs of every projection, in the order of adapter.json."""
    weights = load_file(trained / "trained/model.safetensors")
    return [weights[f"{name}.weight"].numel() for name in read_json(trained / "trained/adapter.json")["modules"]]


@pytest.mark.parametrize("stop", [0, 3, 6, 11])
def test_a_run_cut_at_any_step_ends_with_the_same_bytes(
    here: ElasticWorld, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    run = partial(train_elastic, here, elastic_recipe(), tmp_path)
    stop_run(monkeypatch, loop, "accumulate_gradients", run, after=stop)
    torch.rand(5)  # another generator state, which the resumed run must not see
    run()
    for file in ("trained/model.safetensors", "trained/adapter.json", "retention.csv"):
        assert (tmp_path / file).read_bytes() == (trained / file).read_bytes(), file
    assert read_json(tmp_path / "train.json")["dense_fraction"] == read_json(trained / "train.json")["dense_fraction"]


# --- the trained student at each F


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(1, 61, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("budget", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_student_cut_to_an_f_is_the_trained_one_at_this_f(
    here: ElasticWorld, trained: Path, tmp_path: Path, budget: float
) -> None:
    """Also at an F that no step had. An SVD of full rank approximates nothing, and a threshold of 0 cuts no rank."""
    variant = Compression(budget=budget, r_max=10_000, rank_threshold=0.0)
    world = here.world
    compress_cell(
        recipe=elastic_recipe(), cell="cell", scale="tiny", student=world.student, trained=trained / "trained",
        tokens=world.tokens, tokenizer=world.tokenizer, variant=variant, out=tmp_path,
    )  # fmt: skip
    before = load_trained(student=world.student, trained=trained / "trained", budget=budget)
    record = read_json(tmp_path / "compression.json")
    assert [module["d"] for module in record["modules"]] == [module.retention for module in before.modules.values()]
    kept = sum(module.macs * module.retention for module in before.modules.values())
    assert kept == pytest.approx(budget * sum(module.macs for module in before.modules.values()), abs=40)
    assert record["parity"]["exact"]
    torch.testing.assert_close(logits(load_model(tmp_path / "model")), logits(before.model), rtol=1e-3, atol=1e-3)
    assert record["provenance"]["values"]["settings"]["budget"] == budget
    assert f"F = {budget:g}, cut from one training for every budget" in (tmp_path / "model/README.md").read_text()


def test_budgets_go_with_elastic_students_alone(here: ElasticWorld, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="trained for every budget; compress it at one, by a sweep with budget"):
        load_trained(student=here.world.student, trained=trained / "trained")
    adapter = json.loads((trained / "trained/adapter.json").read_text())
    assert {entry["d"] for entry in adapter["modules"].values()} == {None}
    own = elastic_recipe(budget=0.4, elastic_budgets=None, schedule_start=0.0, schedule_end=0.0, smoothing=0.0)
    fixed = train_elastic(here, own, tmp_path)
    with pytest.raises(BadInput, match="trained for one budget; expected an elastic student"):
        load_trained(student=here.world.student, trained=fixed / "trained", budget=0.4)


def test_a_recipe_has_one_budget_or_several() -> None:
    with pytest.raises(ValueError, match=r"budget 0\.4 beside elastic_budgets"):
        elastic_recipe(budget=0.4)
    with pytest.raises(ValueError, match="budgeted_lora needs budget"):
        elastic_recipe(elastic_budgets=None)
    with pytest.raises(ValueError, match="kd_lora takes no budget"):
        make_recipe("kd_lora", elastic_budgets=BUDGETS)
    with pytest.raises(BadInput, match="budget: elastic has no schedule"):
        BudgetRule.of(elastic_recipe())
