"""How much memory a job needs, in bytes: weights, gradients, moments, what the backward pass keeps, a chunk of logits.

What a layer keeps was counted from what autograd saves for the real modules (tests/planning/test_costs.py compares the
two); the rest was counted from the code. Estimates are too large by `SLACK` rather than too small.
"""

from dataclasses import dataclass

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.method.cost import (
    ModelShape,
    dense_macs,
    loss_chunk,
    parameters,
    probabilities_kept,
    projections,
    trainable_parameters,
)

SLACK = 1.15  # temporaries, fragments of the allocator
CUDA_CONTEXT = 700 * 2**20  # a process's own share of GPU memory
PROCESS = {"cpu": 700 * 2**20, "cuda": 2 * 2**30}  # host memory of Python with torch and transformers, per device
COLLECTIVES = 400 * 2**20  # assumed: what NCCL holds on each of several GPUs that train together
# Bytes per logit of a chunk of the loss: the student's logits and half the teacher's (6.1 measured on a CPU); on a GPU,
# where it is an assumption, also their float32 copies and what is between.
CHUNK_BYTES = {"cpu": 7, "cuda": 24}


@dataclass(frozen=True)
class Kept:
    """Bytes per token and layer that the backward pass keeps, as a multiple of each size of the layer."""

    hidden: float
    kv: float
    ffn: float
    rank: float

    def bytes(self, shape: ModelShape, *, rank: int) -> float:
        """Bytes for one token in all layers."""
        one = (
            self.hidden * max(shape.hidden, shape.attention)
            + self.kv * shape.kv
            + self.ffn * shape.ffn
            + self.rank * rank
        )
        return shape.layers * one


# By precision, and by what the projections hold: nothing, low-rank paths, or low-rank paths behind dropout.
KEPT = {
    ("bfloat16", "dense"): Kept(30.4, 4, 8, 0),
    ("bfloat16", "lora"): Kept(22.4, 4, 8, 28),
    ("bfloat16", "dropout"): Kept(46.4, 4, 10, 28),
    ("float32", "dense"): Kept(32.4, 8, 16, 0),
    ("float32", "lora"): Kept(24.4, 8, 16, 0),  # merged weights; a dropped dense path would keep 28 per rank
    ("float32", "dropout"): Kept(64.4, 8, 20, 56),
}


@dataclass(frozen=True)
class Network:
    """A model as the memory estimates see it."""

    shape: ModelShape
    vocab_size: int
    tied: bool = False  # whether the head is the embedding matrix
    beside: int | None = None  # weights of a layer in no projection's matrix; two norms when None
    heads: int = 1

    @property
    def parameters(self) -> int:
        return parameters(self.shape, vocab_size=self.vocab_size, tied=self.tied, beside=self.beside)

    def forward_bytes(self, tokens: int, *, width: int) -> float:
        """Most bytes that one layer's forward pass holds without gradients, at `width` bytes per number."""
        shape = self.shape
        return tokens * (
            width * (2 * shape.hidden + 3 * max(shape.ffn, shape.attention + 2 * shape.kv)) + 8 * shape.hidden
        )


def width_of(precision: str) -> int:
    """Bytes per number."""
    return 2 if precision == "bfloat16" else 4


def trained_numbers(recipe: Recipe, student: Network) -> int:
    """Weights of a student that receive a gradient."""
    return trainable_parameters(
        student.shape,
        method=recipe.method,
        all_weights=student.parameters,
        train_embeddings_head_norms=recipe.train_embeddings_head_norms,
        rank=recipe.rank,
        trained={None: 0.0, "kept": recipe.budget, "all": 1.0}[recipe.train_dense],
    )


def training_bytes(
    recipe: Recipe, *, student: Network, teacher: Network, precision: str, online: bool, device: str, processes: int = 1
) -> int:
    """Memory of one process of a training job, on its GPU if it has one.

    Args:
        recipe: the part of it that this process computes (`devices.of_one_process`).
        precision: of the computation; the student's weights are float32 in any case.
        online: whether the teacher runs with the student; if not, only its output layer is held.
        device: cpu or cuda.
        processes: that train together; each holds all weights, and its gradients twice in order to sum them.
    """
    width, tokens = width_of(precision), recipe.micro_batch_windows * recipe.sequence_length
    trained = trained_numbers(recipe, student)
    adapters = 0 if recipe.method == "kd_full" else trained
    weights = 4 * (student.parameters + adapters) + 12 * trained  # gradient and two moments
    kind = "dense" if recipe.method == "kd_full" else "dropout" if recipe.dropout else "lora"
    merged = 4 * dense_macs(student.shape) if kind == "lora" and precision == "float32" else 0
    casts = 2 * (student.parameters + adapters) if precision == "bfloat16" else 0
    attended = 4 * student.shape.layers * student.heads * probabilities_kept(recipe.sequence_length, device=device)
    activations = tokens * (KEPT[precision, kind].bytes(student.shape, rank=recipe.rank or 0) + attended)
    positions = min(tokens, loss_chunk(student.vocab_size, device=device))
    chunk = CHUNK_BYTES[device] * positions * student.vocab_size
    head = teacher.vocab_size * teacher.shape.hidden
    beside = width * (teacher.parameters if online else head) + tokens * teacher.shape.hidden * width * 2
    peak = max(activations + chunk, teacher.forward_bytes(tokens, width=width) if online else 0.0)
    summed = 4 * trained if processes > 1 else 0
    own = _with_slack(weights + merged + casts + beside + peak + summed, device)
    return own + (COLLECTIVES if processes > 1 and device == "cuda" else 0)


def evaluation_bytes(networks: list[Network], *, tokens: int, prompts: int, prompt_tokens: int, device: str) -> int:
    """Memory of an evaluation job, float32: windows of the perplexity, then the key/value cache of the prompts.

    Args:
        networks: held at the same time; the one that answers prompts comes first.
        tokens: in one forward pass.
        prompts, prompt_tokens: prompts decoded together and the length of the longest; 0 prompts for none.
    """
    first = networks[0]
    weights = 4 * sum(network.parameters for network in networks)
    windows = max(network.forward_bytes(tokens, width=4) for network in networks) + 3 * 4 * 2**23
    cache = 2 * first.shape.layers * 4 * first.shape.kv * prompts * prompt_tokens
    return _with_slack(weights + max(windows, cache + first.forward_bytes(prompts * prompt_tokens, width=4)), device)


def caching_bytes(teacher: Network, *, tokens: int, precision: str, device: str) -> int:
    """Memory of a job that caches a teacher's hidden states."""
    width = width_of(precision)
    return _with_slack(width * teacher.parameters + teacher.forward_bytes(tokens, width=width), device)


def pretraining_bytes(teacher: Network, *, tokens: int, device: str) -> int:
    """Memory of a job that makes a teacher, as in float32; all logits of a micro-batch at once."""
    activations = tokens * KEPT["float32", "dense"].bytes(teacher.shape, rank=0)
    return _with_slack(16 * teacher.parameters + activations + 3 * 4 * tokens * teacher.vocab_size, device)


def statistics_bytes(student: Network, *, tokens: int, device: str) -> int:
    """Memory of a job that measures a student's statistics: float32, gradients of all weights, all logits at once.

    Second moments are summed in float64 in the host's memory.
    """
    widths = [module.d_in for module in projections(student.shape)]
    activations = tokens * KEPT["float32", "dense"].bytes(student.shape, rank=0)
    moments = 8 * (sum(width**2 for width in widths) if device == "cpu" else 2 * max(widths) ** 2)
    inputs = 8 * tokens * max(widths)
    logits = 3 * 4 * tokens * student.vocab_size
    return _with_slack(8 * student.parameters + activations + moments + inputs + logits, device)


def host_bytes(networks: list[Network], *, device: str) -> int:
    """Host memory of a job on a GPU: weights pass through it in float32, with a second copy while saving."""
    return int(SLACK * (PROCESS[device] + 2 * 4 * max(network.parameters for network in networks)))


def _with_slack(count: float, device: str) -> int:
    return int(SLACK * count + (CUDA_CONTEXT if device == "cuda" else PROCESS["cpu"]))
