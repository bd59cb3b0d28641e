"""Makes an untrained student trainable by its recipe's method: adapters, their start, the order of removal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from budgeted_lora.beyond.low_rank import (
    Approximation,
    allocate_ranks,
    approximate,
    merge_into_dense,
    removal_scores,
    spectrum,
    start_from,
)
from budgeted_lora.beyond.statistics import InputStatistics
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput
from budgeted_lora.method.controller import ends_of
from budgeted_lora.method.projections import BudgetedLinear, install, named_projections
from budgeted_lora.method.schedule import BudgetRule


@dataclass(frozen=True)
class LowRank:
    """What was decided before the first step, for train.json; lists follow `named_modules()` order.

    Attributes:
        order: indices of the projections in the order of removal; None for the paper's, ascending MACs.
        ranks: rank of each projection.
        scores: estimated harm per MAC of removing each dense path, if that made the order.
        kept_energy: share of each weight's squared singular values within its first r.
        kept_output_energy: the same of the outputs, where there are input statistics.
    """

    order: list[int] | None = None
    ranks: list[int] = field(default_factory=list)
    scores: list[float] | None = None
    kept_energy: list[float] = field(default_factory=list)
    kept_output_energy: list[float] | None = None


def install_method(
    model: Any, recipe: Recipe, statistics: InputStatistics | None = None
) -> tuple[dict[str, BudgetedLinear], LowRank]:
    """Installs what trains, and what is known before training.

    Args:
        statistics: of this untrained student; needed where the recipe names `statistics_windows`.

    Returns:
        The budgeted projections by name, none for KD Full; and the decisions.

    Raises:
        BadInput: the recipe needs input statistics and there is none, or they are another student's.
    """
    if recipe.method == "kd_full":
        model.requires_grad_(True)
        return {}, LowRank()
    if recipe.statistics_windows and statistics is None:
        raise BadInput(
            f"{recipe.method}: its start, order or ranks need input statistics; expected --statistics FOLDER"
        )
    weights = {name: linear.weight.detach().cpu() for name, _, _, linear in named_projections(model)}
    if statistics is not None:
        statistics.check(weights)
    ranks = dict.fromkeys(weights, recipe.rank)
    if recipe.rank_step:
        spectra = {name: spectrum(weight, statistics.moments[name]) for name, weight in weights.items()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        ranks = allocate_ranks(spectra, shapes, rank=recipe.rank, step=recipe.rank_step)
    by_outputs = approximations(weights, ranks, statistics.moments) if statistics else {}
    by_weights = approximations(weights, ranks) if recipe.low_rank_init == "svd" or recipe.order == "energy" else {}
    energy = {name: by_weights[name].energy if by_weights else spectrum(weight) for name, weight in weights.items()}
    scores = None
    if recipe.order:
        best = by_weights if recipe.order == "energy" else by_outputs
        gradients = None if statistics is None else statistics.gradients
        scores = list(removal_scores(weights, best, order=recipe.order, gradients=gradients).values())
    gates = {} if recipe.gate_logit is None else {"gate_logit": recipe.gate_logit}
    modules = install(
        model,
        rank=recipe.rank,
        alpha=recipe.alpha,
        dropout=recipe.dropout,
        gates=recipe.method == "budgeted_lora",
        seed=recipe.seed,
        train_embeddings_head_norms=recipe.train_embeddings_head_norms,
        ranks=ranks,
        **gates,
    )
    order = None if scores is None else sorted(range(len(scores)), key=scores.__getitem__)
    let_dense_train(modules, recipe, order)
    for name, module in modules.items():
        if recipe.low_rank_init and not module.weight.requires_grad:
            start_from(module, (by_weights if recipe.low_rank_init == "svd" else by_outputs)[name])
    return modules, LowRank(
        order=order,
        ranks=list(ranks.values()),
        scores=scores,
        kept_energy=kept(energy, ranks),
        kept_output_energy=kept({name: one.energy for name, one in by_outputs.items()}, ranks) if by_outputs else None,
    )


def approximations(
    weights: Mapping[str, torch.Tensor], ranks: Mapping[str, int], moments: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Approximation]:
    """The best approximation of every weight, by the weights themselves or by the outputs.

    They are computed once for the order, the start and what the record says: for 30 layers of 576 that takes a minute.
    """
    return {
        name: approximate(weight, rank=ranks[name], moment=moments and moments[name])
        for name, weight in weights.items()
    }


def let_dense_train(modules: Mapping[str, BudgetedLinear], recipe: Recipe, removal_order: Sequence[int] | None) -> None:
    """Lets all dense paths train, or those that the budget leaves whole, or none, as the recipe says.

    The low-rank path beside one that trains starts at nothing; it starts anew once the dense path fades (`HandOver`).
    """
    if recipe.train_dense is None:
        return
    ends = ends_of(BudgetRule.of(recipe), [module.macs for module in modules.values()], removal_order)
    for module, d in zip(modules.values(), ends, strict=True):
        module.weight.requires_grad_(recipe.train_dense == "all" or d == 1.0)


@dataclass(frozen=True)
class HandOver:
    """Starts low-rank paths from dense paths that have trained until now, when these begin to fade.

    Attributes:
        moments: second moment of each projection's inputs by name, None for the SVD of W itself.
    """

    moments: Mapping[str, torch.Tensor | None]

    @classmethod
    def of(cls, recipe: Recipe, statistics: InputStatistics | None) -> "HandOver | None":
        """That of a recipe whose dense paths all train; None for others."""
        if recipe.train_dense != "all":
            return None
        return cls(statistics.moments if recipe.low_rank_init == "activation_svd" else {})

    def __call__(self, name: str, module: BudgetedLinear) -> None:
        merge_into_dense(module)
        weight = module.weight.detach().cpu()  # as moments are
        start_from(module, approximate(weight, rank=module.rank, moment=self.moments.get(name)))


def kept(spectra: Mapping[str, torch.Tensor], ranks: Mapping[str, int]) -> list[float]:
    """Share of each spectrum within its first r values."""
    return [(values[: ranks[name]].sum() / values.sum()).item() for name, values in spectra.items()]
