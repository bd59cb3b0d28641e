"""Beyond the paper: where low-rank paths start, in which order dense paths go, and how ranks are spread.

The paper starts A at random and B at zero, removes the cheapest dense paths first and gives every projection the same
rank. Here the start is the best rank-r approximation of W itself: y = d (W - B0 A0) x + B (g * (A x)) with B A starting
at B0 A0, so that at d = 1 the first output is W x and what the budget fades out is the residual alone. "Best" is
measured by the weights (SVD) or by the outputs, with the second moment M = E[x x^T] of a projection's inputs x:
||(W - B0 A0) M^(1/2)||_F, whose minimum is the SVD of W M^(1/2) (as in SVD-LLM, arXiv 2403.07378).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from budgeted_lora.method.projections import BudgetedLinear

FLOOR = 1e-6  # of a second moment's largest eigenvalue; directions below it were never seen


def square_root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """M^(1/2) and M^(-1/2) of a second moment [d_in, d_in], float64; eigenvalues are at least FLOOR of the largest."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(FLOOR * values[-1].clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


@dataclass(frozen=True)
class Approximation:
    """The best approximation B0 A0 of a weight by one of rank r, float64.

    Attributes:
        up, down: B0 [d_out, r] and A0 [r, d_in], the singular values split evenly between them.
        energy: squared singular values of W in the same metric, descending, [min(d)].
    """

    up: Tensor
    down: Tensor
    energy: Tensor


def approximate(weight: Tensor, *, rank: int, moment: Tensor | None = None) -> Approximation:
    """The best approximation of rank r of W [d_out, d_in]; in the metric of its inputs by their second moment."""
    weight = weight.double()
    root, inverse = (None, None) if moment is None else square_root(moment)
    left, values, right = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)
    half = values[:rank].sqrt()
    down = half[:, None] * right[:rank]
    return Approximation(left[:, :rank] * half, down if inverse is None else down @ inverse, values.square())


def spectrum(weight: Tensor, moment: Tensor | None = None) -> Tensor:
    """Squared singular values of W, or of W M^(1/2): energy of weights, or of outputs. [min(d)], float64."""
    weight = weight.double()
    return torch.linalg.svdvals(weight if moment is None else weight @ square_root(moment)[0]).square()


@torch.no_grad()
def start_from(module: BudgetedLinear, best: Approximation) -> None:
    """Moves the best part of rank r of a module's W into its low-rank path; the dense path keeps the residual.

    B is divided by the scale and the gates as they are, so that the module's output at d = 1 does not change.
    """
    gates = module.gates()
    strength = module.scale * (torch.ones(module.rank) if gates is None else gates.cpu()).double()
    module.weight.copy_(module.weight.cpu().double() - best.up @ best.down)
    module.lora_a.copy_(best.down)
    module.lora_b.copy_(best.up / strength)


@torch.no_grad()
def merge_into_dense(module: BudgetedLinear) -> None:
    """Moves the low-rank path into W: B becomes zero, and the module's output at d = 1 does not change."""
    module.weight.add_(module.low_rank_weight())
    module.lora_b.zero_()


def removal_scores(
    weights: Mapping[str, Tensor],
    best: Mapping[str, Approximation],
    *,
    order: str,
    gradients: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Estimated harm of removing each dense path, per MAC it saves, when a low-rank path of rank r remains.

    Args:
        weights: W [d_out, d_in] of each projection.
        best: the best approximation of each, of rank r: by the weights for energy, by the outputs for the others.
        order: energy (of W outside its top r singular directions), activation (the same of the outputs), or gradient
            (first-order change of the loss when the residual of the outputs' best approximation goes).
        gradients: of the loss, by W; needed by gradient.
    """
    scores = {}
    for name, weight in weights.items():
        up, down = best[name].up, best[name].down
        if order == "gradient":
            harm = (gradients[name].double() * (weight.double() - up @ down)).sum().abs()
        else:
            harm = best[name].energy[len(down) :].sum()
        scores[name] = harm.item() / weight.numel()
    return scores


def allocate_ranks(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], *, rank: int, step: int
) -> dict[str, int]:
    """Ranks of the same total MACs as `rank` everywhere, each step where it keeps the most energy per MAC.

    A projection's energy counts relative to its own sum, no rank exceeds the break-even rank d_in d_out /
    (d_in + d_out), at which two thin layers cost what the dense one did, and every rank is a multiple of `step`
    (one step at least, unless break-even lies below it).

    Args:
        spectra: squared singular values of each projection, descending.
        shapes: (d_out, d_in) of each.
        rank: the rank whose MACs are spread.
        step: multiple that hardware likes.
    """
    price = {name: sum(shape) for name, shape in shapes.items()}
    most = {name: max(1, (a * b - 1) // (a + b)) for name, (a, b) in shapes.items()}
    ranks = {name: min(step, most[name]) for name in spectra}
    left = rank * sum(price.values()) - sum(price[name] * ranks[name] for name in ranks)
    kept = {name: torch.cumsum(values / values.sum(), 0) for name, values in spectra.items()}

    def gain(name: str) -> float:
        before, after = ranks[name], ranks[name] + step
        return (kept[name][after - 1] - kept[name][before - 1]).item() / (step * price[name])

    open_ = [name for name in ranks if ranks[name] + step <= most[name]]
    while open_ := [name for name in open_ if ranks[name] + step <= most[name] and step * price[name] <= left]:
        best = max(open_, key=gain)
        ranks[best] += step
        left -= step * price[best]
    return ranks
