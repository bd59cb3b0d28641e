"""Projections in training: a frozen dense path of retention d beside a gated low-rank path (paper, section 3)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, projections


class BudgetedLinear(nn.Module):
    """y = d W x + b + (alpha / r) B (g * (A x)). The controller sets the retention d, a plain number.

    At d = 0 the dense matmul does not run, neither forward nor backward. Without gates this is plain LoRA. A bias
    b is no part of the dense path: it stays whole at every d.

    Args:
        weight: W, [d_out, d_in]; taken over, not copied, and frozen. One made to require a gradient has it while
            d = 1.
        rank: r of the low-rank path.
        alpha: the low-rank path is scaled by alpha / r.
        dropout: probability on the input of the low-rank path, in training only.
        gate_logit: initial logit of the r gates g = sigmoid(logits); None for no gates.
        generator: source of A's values (on the CPU); B starts at zero.
        bias: b, [d_out]; taken over, trained or frozen as it is.

    Raises:
        BadInput: rank exceeds a dimension of W.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        gate_logit: float | None,
        generator: torch.Generator,
        bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        d_out, d_in = weight.shape
        if not 1 <= rank <= min(d_in, d_out):
            raise BadInput(f"LoRA rank is {rank}; expected 1 to {min(d_in, d_out)} for a projection {d_in} -> {d_out}")
        self.d_in, self.d_out, self.rank = d_in, d_out, rank
        self.scale = alpha / rank
        self.dropout = dropout
        self.retention = 1.0
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.register_parameter("bias", bias)
        # Kaiming-uniform with a = sqrt(5), as LoRA implementations have it: uniform within 1 / sqrt(d_in).
        a = torch.empty(rank, d_in).uniform_(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in), generator=generator)
        like = {"device": weight.device, "dtype": weight.dtype}
        self.lora_a = nn.Parameter(a.to(**like))
        self.lora_b = nn.Parameter(torch.zeros(d_out, rank, **like))
        gates = None if gate_logit is None else nn.Parameter(torch.full((rank,), float(gate_logit), **like))
        self.register_parameter("gate_logits", gates)
        self._merged: tuple[float, Tensor] | None = None  # the retention it was made with, and the merged weight

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., d_in] -> [..., d_out]."""
        y = self._product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _product(self, x: Tensor) -> Tensor:
        """The output without the bias."""
        if self.retention == 0.0:
            return self._low_rank(x)
        tokens = x.numel() // self.d_in
        few = tokens * (self.d_in + self.d_out) < self.macs  # merging would cost more MACs than it saves
        apart = self.trains_dense or (self.training and self.dropout)
        if few or apart or torch.is_autocast_enabled(x.device.type):
            dense = self.weight if self.trains_dense else self.weight.detach()
            return torch.add(self._low_rank(x), F.linear(x, dense), alpha=self.retention)
        return _MergedLinear.apply(x, self._merged_weight(), self._strength(), self.lora_a, self.lora_b)

    def _low_rank(self, x: Tensor) -> Tensor:
        """The low-rank path alone. Its strength goes into A, which is smaller than A x."""
        a = self._strength()[:, None] * self.lora_a
        return F.linear(F.linear(F.dropout(x, self.dropout, self.training), a), self.lora_b)

    def _strength(self) -> Tensor:
        """(alpha / r) g, [r]."""
        if self.gate_logits is None:
            return self.lora_a.new_full((self.rank,), self.scale)
        return self.scale * torch.sigmoid(self.gate_logits)

    @torch.no_grad()
    def _merged_weight(self) -> Tensor:
        """d W + (alpha / r) B diag(g) A, [d_out, d_in]; kept for the micro-batches of a step while the model trains."""
        if self._merged is None or self._merged[0] != self.retention:
            merged = self.low_rank_weight().add_(self.weight, alpha=self.retention)
            if not self.training:
                return merged
            self._merged = (self.retention, merged)
        return self._merged[1]

    @torch.no_grad()
    def low_rank_weight(self) -> Tensor:
        """(alpha / r) B diag(g) A, the weight of the low-rank path, [d_out, d_in], without gradient."""
        return (self.lora_b * self._strength()) @ self.lora_a

    def forget_merged(self) -> None:
        """Call this after every change of the weights. Fused optimisers leave no other trace of theirs."""
        self._merged = None

    @property
    def trains_dense(self) -> bool:
        """Whether W has a gradient now."""
        return self.weight.requires_grad and self.retention == 1.0

    @property
    def macs(self) -> int:
        """MACs per token of the dense path."""
        return self.d_in * self.d_out

    def gates(self) -> Tensor | None:
        """g = sigmoid(logits), [r], without gradient; None for plain LoRA."""
        return None if self.gate_logits is None else torch.sigmoid(self.gate_logits.detach())

    def active_ranks(self, *, threshold: float) -> int:
        """Ranks whose gate is above the threshold; all of them for plain LoRA."""
        gates = self.gates()
        return self.rank if gates is None else int((gates > threshold).sum())

    def extra_repr(self) -> str:
        sizes = f"{self.d_in} -> {self.d_out}, rank={self.rank}, gated={self.gate_logits is not None}"
        return f"{sizes}, scale={self.scale:g}, retention={self.retention:g}"


class _MergedLinear(torch.autograd.Function):
    """y = (d W + B diag(s) A) x with one dense product forward and one for the input's gradient.

    Four thin products give the gradients of s, A and B: 2 P + 2 P_l MACs per token where two paths side by side take
    2 P + 3 P_l, for P dense and P_l low-rank MACs. Exact as long as no dropout comes between x and A.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: Tensor, strength: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, merged, strength, a, b)
        return F.linear(x, merged)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        x, merged, strength, a, b = ctx.saved_tensors
        of_x = outer @ merged if ctx.needs_input_grad[0] else None
        x, outer = x.flatten(0, -2), outer.flatten(0, -2)
        reduced = x @ a.T  # [N, r]
        of_reduced = outer @ b  # [N, r], before the strength
        of_strength = (of_reduced * reduced).sum(0) if ctx.needs_input_grad[2] else None
        of_a = strength[:, None] * (of_reduced.T @ x)
        of_b = (outer.T @ reduced) * strength
        return of_x, None, of_strength, of_a, of_b


def model_shape(model: PreTrainedModel) -> ModelShape:
    """The cost model's view of a decoder."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv=config.num_key_value_heads * head_dim,
        ffn=config.intermediate_size,
        attention=config.num_attention_heads * head_dim,
    )


def named_projections(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Name, parent module, attribute and linear layer of each projection, in `named_modules()` order.

    Raises:
        BadInput: a projection is missing, or has other sizes than the configuration says.
    """
    for expected in projections(model_shape(model)):
        parent_name, attribute = expected.name.rsplit(".", 1)
        try:
            parent = model.get_submodule(parent_name)
            linear = parent.get_submodule(attribute)
        except AttributeError:
            raise BadInput(f"the model has no {expected.name}; expected seven projections in every layer") from None
        if not isinstance(linear, nn.Linear):
            raise BadInput(f"{expected.name} is {linear}; expected a linear layer")
        if tuple(linear.weight.shape) != (expected.d_out, expected.d_in):
            raise BadInput(
                f"{expected.name} has weight {list(linear.weight.shape)}; expected {[expected.d_out, expected.d_in]}"
            )
        yield expected.name, parent, attribute, linear


def install(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    gates: bool,
    gate_logit: float = 2.0,
    seed: int,
    train_embeddings_head_norms: bool = False,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, BudgetedLinear]:
    """Puts a low-rank path beside all seven projections of every layer and freezes the dense weights.

    Args:
        gates: whether ranks are gated (Budgeted LoRA) or not (KD LoRA).
        seed: seed of A; the global random state is not touched.
        train_embeddings_head_norms: whether embeddings, head, norms and biases train too.
        ranks: rank of each projection by name, where they differ; the scale alpha / rank stays the same for all.

    Returns:
        The new modules by name, in `named_modules()` order.

    Raises:
        BadInput: a layer lacks a projection, or rank exceeds a dimension.
    """
    linears = list(named_projections(model))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(train_embeddings_head_norms)
    installed = {}
    for name, parent, attribute, linear in linears:
        own = rank if ranks is None else ranks[name]
        module = BudgetedLinear(
            linear.weight,
            rank=own,
            alpha=alpha * own / rank,
            dropout=dropout,
            gate_logit=gate_logit if gates else None,
            generator=generator,
            bias=linear.bias,
        )
        setattr(parent, attribute, module)
        installed[name] = module
    return installed


def set_retentions(modules: Mapping[str, BudgetedLinear], retentions: Sequence[float]) -> None:
    """Gives each module its retention d, in the order of the mapping."""
    for module, d in zip(modules.values(), retentions, strict=True):
        module.retention = float(d)
