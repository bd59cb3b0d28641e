"""What a student costs: multiply-accumulates (MACs) of its projections and FLOPs of a training step.

All counts are exact integers per token unless a docstring says otherwise (paper, appendix E).
"""

from dataclasses import dataclass

from budgeted_lora.config.recipe import Method
from budgeted_lora.errors import BadInput

KINDS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class ModelShape:
    """A decoder as the cost model sees it: number of layers, hidden size, key/value width, feed-forward size.

    `attention`, the width of the queries (heads x head_dim), is the hidden size unless another one is given.
    """

    layers: int
    hidden: int
    kv: int
    ffn: int
    attention: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", self.attention or self.hidden)
        for name, value in vars(self).items():
            if value < 1:
                raise BadInput(f"model shape: {name} is {value}; expected a positive whole number")

    def as_json(self) -> dict[str, int]:
        """The fields by name, without `attention` where it is the hidden size."""
        return {name: value for name, value in vars(self).items() if name != "attention" or value != self.hidden}

    @property
    def narrowest(self) -> int:
        """The smallest dimension of a projection, which no rank exceeds."""
        return min(self.hidden, self.kv, self.ffn, self.attention)


@dataclass(frozen=True)
class Projection:
    """One linear layer of the decoder: its name in the transformers model, input width and output width."""

    name: str
    d_in: int
    d_out: int

    @property
    def macs(self) -> int:
        """MACs for one token, equal to the number of weights."""
        return self.d_in * self.d_out

    @property
    def kind(self) -> str:
        """q, k, v, o, gate, up or down."""
        return self.name.rsplit(".", 1)[1].removesuffix("_proj")

    @property
    def layer(self) -> int:
        """Index of the decoder layer."""
        return int(self.name.split(".")[2])

    def low_rank_macs(self, rank: int) -> int:
        """MACs for one token of a factorisation d_in -> rank -> d_out."""
        return rank * (self.d_in + self.d_out)


def projections(shape: ModelShape) -> list[Projection]:
    """The seven projections of every layer, in `named_modules()` order (section 5 of the method: ties follow it)."""
    hidden, kv, ffn, attention = shape.hidden, shape.kv, shape.ffn, shape.attention
    sizes = {
        "self_attn.q_proj": (hidden, attention),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (attention, hidden),
        "mlp.gate_proj": (hidden, ffn),
        "mlp.up_proj": (hidden, ffn),
        "mlp.down_proj": (ffn, hidden),
    }
    return [
        Projection(f"model.layers.{layer}.{name}", *size)
        for layer in range(shape.layers)
        for name, size in sizes.items()
    ]


def dense_macs(shape: ModelShape) -> int:
    """C_d: MACs per token of all dense projections."""
    return sum(module.macs for module in projections(shape))


def lora_macs(shape: ModelShape, *, rank: int) -> int:
    """C_l: MACs per token of all low-rank paths at one rank."""
    return sum(module.low_rank_macs(rank) for module in projections(shape))


def train_compute(
    shape: ModelShape, *, method: Method, rank: int | None = None, rho: float | None = None, trained: float = 0.0
) -> float:
    """Training compute of the projections relative to KD Full (forward, input gradient, weight gradient = 3 C_d).

    A frozen dense path has no weight gradient, hence 2 C_d; a budgeted one runs for the mean fraction `rho` of it. The
    share `trained` of C_d has one all the same.

    Raises:
        BadInput: a LoRA method without rank, or a budgeted one without rho.
    """
    if method == "kd_full":
        return 1.0
    if rank is None:
        raise BadInput(f"train_compute: {method} needs a rank")
    if method == "kd_lora":
        rho = 1.0
    if rho is None:
        raise BadInput("train_compute: budgeted_lora needs rho, the mean dense fraction of its schedule")
    dense = dense_macs(shape)
    return ((2 * rho + trained) * dense + 3 * lora_macs(shape, rank=rank)) / (3 * dense)


def attention_flops(shape: ModelShape, *, sequence_length: int) -> float:
    """FLOPs per token of causal attention scores and values: half of 4 L attention, in every layer."""
    return shape.layers * 2.0 * shape.attention * sequence_length


def forward_flops(shape: ModelShape, *, vocab_size: int, sequence_length: int) -> float:
    """FLOPs per token of a dense model's forward pass: projections, causal attention, output head."""
    return (
        2.0 * dense_macs(shape)
        + attention_flops(shape, sequence_length=sequence_length)
        + 2.0 * shape.hidden * vocab_size
    )


def step_flops(
    shape: ModelShape,
    *,
    method: Method,
    vocab_size: int,
    sequence_length: int,
    head_trained: bool,
    rank: int | None = None,
    rho: float | None = None,
    trained: float = 0.0,
) -> float:
    """FLOPs per token of a student's training step (forward and backward), without the teacher.

    Args:
        head_trained: whether the output head has a weight gradient; KD Full always trains it.
    """
    dense_step = 6.0 * dense_macs(shape)
    head_passes = 3 if head_trained or method == "kd_full" else 2
    return (
        dense_step * train_compute(shape, method=method, rank=rank, rho=rho, trained=trained)
        + 3.0 * attention_flops(shape, sequence_length=sequence_length)
        + head_passes * 2.0 * shape.hidden * vocab_size
    )


def parameters(shape: ModelShape, *, vocab_size: int, tied: bool = False, beside: int | None = None) -> int:
    """Weights of a dense model: embeddings, head, projections, what each layer has beside them, the final norm.

    Args:
        tied: whether the head is the embedding matrix.
        beside: weights of a layer that are in no matrix of a projection; two norms when None.
    """
    matrices = (1 if tied else 2) * vocab_size * shape.hidden
    own = 2 * shape.hidden if beside is None else beside
    return matrices + dense_macs(shape) + shape.layers * own + shape.hidden


def trainable_parameters(
    shape: ModelShape,
    *,
    method: Method,
    all_weights: int,
    train_embeddings_head_norms: bool,
    rank: int | None = None,
    trained: float = 0.0,
) -> int:
    """Weights that receive a gradient; a budgeted student has one gate logit for each rank of each module.

    Args:
        all_weights: of the dense model, see `parameters`.
        trained: share of the dense paths that train beside low-rank ones.
    """
    if method == "kd_full":
        return all_weights
    if rank is None:
        raise BadInput(f"trainable_parameters: {method} needs a rank")
    adapters = lora_macs(shape, rank=rank)
    gates = rank * len(projections(shape)) if method == "budgeted_lora" else 0
    others = all_weights - dense_macs(shape) if train_embeddings_head_norms else 0
    return adapters + gates + others + round(trained * dense_macs(shape))


def loss_chunk(vocab_size: int, *, device: str, threads: int = 1) -> int:
    """Positions whose logits the distillation loss holds at a time.

    Each chunk reads both heads and reads and writes the gradient of one. On a CPU that costs as much as the products
    of about 13 positions per thread, whatever the sizes (20 GB/s against 110 GFLOP/s), so 256 positions per thread
    keep it near 5 %. More than 2^25 logits per thread bring nothing.

    Args:
        device: cpu or cuda.
    """
    if device == "cuda":
        return max(1, 2**26 // vocab_size)
    return max(16, min(256 * threads, 2**25 * threads // vocab_size))


LONGEST_IN_BLOCKS = 1024  # tokens of a window for whose attention a training on a CPU keeps the probabilities


def probabilities_kept(length: int, *, device: str) -> float:
    """Attention probabilities per token and head that a training keeps for its backward pass (`models.attention`)."""
    return length / 2 if device == "cpu" and length <= LONGEST_IN_BLOCKS else 0.0
