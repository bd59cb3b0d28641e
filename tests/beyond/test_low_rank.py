"""Starts from the SVD, orders of removal and allocated ranks: against float64 references and their invariants."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.training_world import World, make_recipe, make_world
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from budgeted_lora.beyond.low_rank import allocate_ranks, approximate, removal_scores, spectrum, square_root, start_from
from budgeted_lora.beyond.removals import cross_entropy, removal_losses
from budgeted_lora.beyond.statistics import STATISTICS, InputStatistics
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_digest
from budgeted_lora.method.projections import BudgetedLinear, named_projections
from budgeted_lora.models.load import load_model
from budgeted_lora.stages.measure_statistics import measure_statistics
from budgeted_lora.training.install import install_method


@dataclass(frozen=True)
class Measured:
    """A tiny student's world, the folder of its statistics, and their record."""

    world: World
    folder: Path
    record: dict[str, Any]


def weight_of(d_out: int, d_in: int, seed: int) -> torch.Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment_of(d_in: int, seed: int) -> torch.Tensor:
    """A second moment with directions of very different strength."""
    x = weight_of(3 * d_in, d_in, seed) * torch.logspace(0, -2, d_in, dtype=torch.float64)
    return x.T @ x / len(x)


def module_of(weight: torch.Tensor, *, rank: int, gate_logit: float | None = 2.0) -> BudgetedLinear:
    return BudgetedLinear(
        weight.clone(), rank=rank, alpha=2.0 * rank, dropout=0.0, gate_logit=gate_logit, generator=torch.Generator()
    )


SIZES = {"d_out": st.integers(3, 9), "d_in": st.integers(3, 9), "seed": st.integers(0, 999)}


@settings(max_examples=40, deadline=None)
@given(**SIZES, data=st.data())
def test_factors_are_the_best_of_their_rank(d_out: int, d_in: int, seed: int, data: st.DataObject) -> None:
    """The error in either metric is the tail of the spectrum, which no matrix of that rank beats (Eckart-Young)."""
    weight, rank = weight_of(d_out, d_in, seed), data.draw(st.integers(1, min(d_out, d_in)))
    for moment in (None, moment_of(d_in, seed + 1)):
        best = approximate(weight, rank=rank, moment=moment)
        root = torch.eye(d_in, dtype=torch.float64) if moment is None else square_root(moment)[0]
        error = ((weight - best.up @ best.down) @ root).square().sum()
        torch.testing.assert_close(error, spectrum(weight, moment)[rank:].sum(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(best.energy, spectrum(weight, moment))
        other = weight_of(d_out, rank, seed + 2) @ weight_of(rank, d_in, seed + 3)
        assert ((weight - other) @ root).square().sum() >= error - 1e-9


def test_the_activation_metric_is_the_error_of_the_outputs() -> None:
    x = weight_of(500, 6, 0) * torch.tensor([3.0, 1.0, 0.5, 0.1, 2.0, 0.2], dtype=torch.float64)
    weight, moment = weight_of(8, 6, 1), x.T @ x / 500
    errors = {}
    for name, metric in (("weights", None), ("outputs", moment)):
        best = approximate(weight, rank=3, moment=metric)
        errors[name] = (x @ (weight - best.up @ best.down).T).square().sum(-1).mean()
    torch.testing.assert_close(errors["outputs"], spectrum(weight, moment)[3:].sum(), rtol=1e-6, atol=1e-9)
    assert errors["outputs"] < errors["weights"]


@settings(max_examples=30, deadline=None)
@given(**SIZES, gated=st.booleans(), data=st.data())
def test_a_start_changes_no_output(d_out: int, d_in: int, seed: int, gated: bool, data: st.DataObject) -> None:
    """At d = 1 the first output is W x; at d = 0 it is that of the best approximation."""
    weight, rank = weight_of(d_out, d_in, seed), data.draw(st.integers(1, min(d_out, d_in)))
    moment = data.draw(st.sampled_from([None, moment_of(d_in, seed + 1)]))
    module, x = module_of(weight, rank=rank, gate_logit=1.5 if gated else None), weight_of(4, d_in, seed + 2)
    start_from(module, approximate(weight, rank=rank, moment=moment))
    torch.testing.assert_close(module(x), x @ weight.T, rtol=1e-9, atol=1e-9)
    best = approximate(weight, rank=rank, moment=moment)
    module.retention = 0.0
    torch.testing.assert_close(module(x), x @ (best.up @ best.down).T, rtol=1e-9, atol=1e-9)
    assert not module.weight.requires_grad
    assert module.lora_a.requires_grad


def test_scores_count_what_a_low_rank_path_cannot_take_over_per_mac() -> None:
    low = weight_of(6, 2, 0) @ weight_of(2, 6, 1)
    weights = {"low": low, "full": weight_of(6, 6, 2), "wide": torch.cat([weight_of(6, 6, 2)] * 2)}
    moments = {name: torch.eye(6, dtype=torch.float64) for name in weights}
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    best = approximate(weights["full"], rank=2)
    gradients["full"] = weights["full"] - best.up @ best.down
    by_weights = {name: approximate(weight, rank=2) for name, weight in weights.items()}
    by_outputs = {name: approximate(weight, rank=2, moment=moments[name]) for name, weight in weights.items()}
    energy = removal_scores(weights, by_weights, order="energy")
    assert energy["low"] == pytest.approx(0.0, abs=1e-12)
    assert energy["full"] == pytest.approx(spectrum(weights["full"])[2:].sum().item() / 36)
    assert energy["wide"] == pytest.approx(energy["full"])  # twice the energy, twice the MACs
    outputs = removal_scores(weights, by_outputs, order="activation")
    assert outputs == pytest.approx(energy, abs=1e-9)
    gradient = removal_scores(weights, by_outputs, order="gradient", gradients=gradients)
    assert gradient["low"] == gradient["wide"] == 0.0
    assert gradient["full"] == pytest.approx(energy["full"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40)), min_size=1, max_size=6),
    st.integers(2, 6),
    st.integers(0, 9),
)
def test_allocated_ranks_cost_no_more(shapes: list[tuple[int, int]], rank: int, seed: int) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    spectra = {name: spectrum(weight_of(*shape, seed + i)) for i, (name, shape) in enumerate(named.items())}
    ranks = allocate_ranks(spectra, named, rank=rank, step=2)
    price = {name: sum(shape) for name, shape in named.items()}
    spent = sum(price[name] * ranks[name] for name in ranks)
    assert spent <= rank * sum(price.values())
    for name, (a, b) in named.items():
        assert ranks[name] % 2 == 0
        assert ranks[name] * (a + b) < a * b
    closed = [name for name, (a, b) in named.items() if (ranks[name] + 2) * (a + b) >= a * b]
    left = rank * sum(price.values()) - spent
    assert all(left < 2 * price[name] for name in named if name not in closed)


def test_ranks_go_where_they_keep_most() -> None:
    steep, flat = torch.tensor([100.0] + [0.01] * 29), torch.ones(30)
    ranks = allocate_ranks({"steep": steep, "flat": flat}, {"steep": (30, 30), "flat": (30, 30)}, rank=6, step=2)
    assert ranks == {"steep": 2, "flat": 10}


def test_the_energy_that_is_noted_is_that_of_the_weights_before_any_start(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    noted = []
    for start in (None, "svd"):
        model = load_model(world.student, dtype=torch.float32)
        weights = [p.double() for n, p in model.named_parameters() if n.split(".")[-2].endswith("_proj")]
        _, about = install_method(model, make_recipe("budgeted_lora", low_rank_init=start))
        noted.append(about.kept_energy)
    assert noted[0] == pytest.approx(noted[1], rel=1e-12)
    rank = make_recipe("budgeted_lora").rank
    squares = [torch.linalg.svdvals(weight).square() for weight in weights]
    assert sorted(noted[1]) == pytest.approx(sorted((one[:rank].sum() / one.sum()).item() for one in squares))


# --- what the stage measures


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Statistics of the tiny student on six of its training windows, in batches of two."""
    root = tmp_path_factory.mktemp("statistics")
    world = make_world(root)
    measure_statistics(
        student=world.student, tokens=world.tokens, windows=6, batch_windows=2, sequence_length=16, rows="packed",
        rank=2, removal_windows=4, out=root / "statistics", record=root / "statistics.json", scale="tiny",
        device="cpu", threads=1,
    )  # fmt: skip
    write_digest(root / "statistics")
    return Measured(world, root / "statistics", json.loads((root / "statistics.json").read_text()))


def text_of(world: World, windows: int) -> torch.Tensor:
    file = TokenFile.open(world.tokens)
    ids, valid = Windows(file, 16, "packed").read(np.arange(windows))
    assert valid.all()
    return torch.from_numpy(ids)


def test_statistics_are_those_of_one_float64_pass(measured: Measured) -> None:
    """E[x x^T] and dL/dW of all windows at once, whatever the batches."""
    model, ids = load_model(measured.world.student, dtype=torch.float32).double(), text_of(measured.world, 6)
    name, inputs = "model.layers.1.mlp.down_proj", []
    linear = model.get_submodule(name)
    linear.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().flatten(0, 1)))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    found = InputStatistics.open(measured.folder)
    moment = inputs[0].T @ inputs[0] / ids.numel()
    torch.testing.assert_close(found.moments[name].double(), moment, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.gradients[name].double(), linear.weight.grad / ids.numel(), rtol=1e-3, atol=1e-6)
    assert measured.record["tokens"] == ids.numel()


def test_the_loss_of_each_removal_is_that_of_the_model_without_it(measured: Measured) -> None:
    model, ids = load_model(measured.world.student, dtype=torch.float32).double(), text_of(measured.world, 4)
    statistics = InputStatistics.open(measured.folder)

    def loss() -> float:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

    whole, removals = loss(), {entry["name"]: entry for entry in measured.record["removals"]}
    assert measured.record["removal_windows"] == 4
    assert set(removals) == set(statistics.moments)
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"):
        weight = model.get_submodule(name).weight
        before = weight.detach().clone()
        best = approximate(before, rank=2, moment=statistics.moments[name])
        left, values, right = torch.linalg.svd(before)
        cut = (left[:, :2] * values[:2]) @ right[:2]
        for start, instead in (("zero", 0.0 * before), ("svd", cut), ("activation_svd", best.up @ best.down)):
            weight.data.copy_(instead)
            assert removals[name][start] == pytest.approx(loss() - whole, rel=1e-3, abs=1e-5), (name, start)
        weight.data.copy_(before)


def test_removals_leave_the_model_as_it_was(measured: Measured) -> None:
    model, ids = load_model(measured.world.student, dtype=torch.float32), text_of(measured.world, 2)
    linears = {name: linear for name, _, _, linear in named_projections(model)}
    before, batches = model.state_dict(), [(ids, torch.ones_like(ids, dtype=torch.bool))]
    before = {name: tensor.clone() for name, tensor in before.items()}
    whole = cross_entropy(model, batches)
    removal_losses(model, linears, InputStatistics.open(measured.folder).moments, batches, rank=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert cross_entropy(model, batches) == whole


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / STATISTICS)
    change(tensors)
    save_file(tensors, folder / STATISTICS)
    return folder


NAME = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[f"{NAME}.moment"].fill_(float("nan")), f"{NAME}.moment has values that are not finite"),
        (lambda t: t.update({"mean": torch.ones(2)}), "tensor mean; expected names that end in .moment or .gradient"),
        (lambda t: t.pop(f"{NAME}.gradient"), f"gradient of {NAME} is missing; expected"),
        (lambda t: t.update({f"{NAME}.moment": torch.eye(3)}), f"moment of {NAME} is \\[3, 3\\]; expected"),
    ],
    ids=["not finite", "unknown", "missing", "another shape"],
)
def test_statistics_that_are_not_this_students_are_refused(
    measured: Measured, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    folder = spoil(Path(shutil.copytree(measured.folder, tmp_path / "statistics")), change)
    write_digest(folder)
    model = load_model(measured.world.student, dtype=torch.float32)
    with pytest.raises(BadInput, match=said):
        install_method(
            model, make_recipe("budgeted_lora", order="activation", statistics_windows=6), InputStatistics.open(folder)
        )
