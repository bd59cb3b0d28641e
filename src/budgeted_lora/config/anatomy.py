"""What a checkpoint's config.json says of its network: family, sizes, biases, norms, tied embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budgeted_lora.errors import BadInput

ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True)
class Family:
    """What the config.json of a family need not say, as transformers' class of it assumes.

    Attributes:
        head_dim: where config.json has none; hidden / heads if this is None too.
        tied: whether the output layer is the embedding matrix, where config.json does not say.
        biased: projections with a bias.
        may_bias: the keys `attention_bias` and `mlp_bias` that the family obeys.
        head_norms: whether queries and keys are normalised, each by head_dim weights a layer.
        layer_norms: norms of the hidden size in each layer.
    """

    head_dim: int | None = None
    tied: bool = False
    biased: tuple[str, ...] = ()
    may_bias: tuple[str, ...] = ()
    head_norms: bool = False
    layer_norms: int = 2


FAMILIES = {
    "gemma": Family(head_dim=256, tied=True, may_bias=("attention_bias",)),
    "gemma3_text": Family(head_dim=256, tied=True, may_bias=("attention_bias",), head_norms=True, layer_norms=4),
    "llama": Family(may_bias=("attention_bias", "mlp_bias")),
    "mistral": Family(),
    "qwen2": Family(biased=("q", "k", "v")),
    "qwen3": Family(head_dim=128, may_bias=("attention_bias",), head_norms=True),
    "smollm3": Family(tied=True, may_bias=("attention_bias", "mlp_bias")),
}
FUSED = {
    "bloom": "query_key_value",
    "falcon": "query_key_value",
    "glm": "gate_up_proj",
    "glm4": "gate_up_proj",
    "gpt2": "c_attn",
    "gpt_bigcode": "c_attn",
    "gpt_neox": "query_key_value",
    "mpt": "Wqkv",
    "phi3": "qkv_proj and gate_up_proj",
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}  # our keys of a teacher, and those of config.json


@dataclass(frozen=True)
class Anatomy:
    """A decoder whose layers have seven projections: its sizes and what else it has weights for.

    Attributes:
        vocab_size: rows of the embedding matrix; None where no checkpoint says it.
        tied: whether the output layer is the embedding matrix.
        biased: projections with a bias, of q, k, v, o, gate, up and down.
        positions: tokens that it was made to read at once; None where no checkpoint says it.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int | None = None
    tied: bool = False
    biased: tuple[str, ...] = ()
    head_norms: bool = False
    layer_norms: int = 2
    positions: int | None = None

    @property
    def attention(self) -> int:
        """Width of the queries, and of what the output projection reads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def entry(self) -> dict[str, int]:
        """The sizes as an entry of `teacher_ladder` says them; head_dim only where hidden and heads do not give it."""
        sizes = {ours: getattr(self, ours) for ours in SIZES}
        return sizes | ({"head_dim": self.head_dim} if self.attention != self.hidden else {})

    def sizes(self, *, ffn: int | None = None) -> dict[str, tuple[int, int]]:
        """Input and output width of each projection, by q, k, v, o, gate, up, down; `ffn` replaces its own."""
        hidden, wide = self.hidden, ffn or self.ffn
        inner = {"q": (hidden, self.attention), "k": (hidden, self.kv), "v": (hidden, self.kv)}
        inner |= {"o": (self.attention, hidden), "gate": (hidden, wide), "up": (hidden, wide), "down": (wide, hidden)}
        return inner

    def beside(self, *, ffn: int | None = None) -> int:
        """Weights of a layer beside its seven matrices: biases and norms; `ffn` replaces its own."""
        sizes = self.sizes(ffn=ffn)
        biases = sum(sizes[kind][1] for kind in self.biased)
        return biases + self.layer_norms * self.hidden + 2 * self.head_dim * self.head_norms

    @property
    def parameters(self) -> int:
        """All weights of the model; tied embeddings count once. Needs a checkpoint's vocabulary."""
        matrices = sum(d_in * d_out for d_in, d_out in self.sizes().values())
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.hidden
        return embeddings + self.layers * (matrices + self.beside()) + self.hidden


def read_anatomy(about: Mapping[str, Any], *, where: object) -> Anatomy:
    """What the content of a config.json says.

    Args:
        where: the file or checkpoint, for messages.

    Raises:
        BadInput: the model is of no known family, its weights are quantised, or a size is missing.
    """
    refuse_unknown(about, where=where)
    family = FAMILIES[about["model_type"]]
    given = dict(about)
    if given.get("num_key_value_heads") is None and about["model_type"] == "llama":  # older configurations lack it
        given["num_key_value_heads"] = given.get("num_attention_heads")
    sizes = {ours: _positive(given, theirs, where=where) for ours, theirs in SIZES.items()}
    if about.get("head_dim") is None and family.head_dim is None:
        if sizes["hidden"] % sizes["heads"]:
            raise BadInput(
                f"{where}: without head_dim, {sizes['heads']} heads must divide hidden_size {sizes['hidden']}"
            )
        head_dim = sizes["hidden"] // sizes["heads"]
    else:
        head_dim = family.head_dim if about.get("head_dim") is None else _positive(about, "head_dim", where=where)
    options = {"attention_bias": ATTENTION, "mlp_bias": MLP}
    chosen = {kind for key in family.may_bias if about.get(key) for kind in options[key]} | set(family.biased)
    return Anatomy(
        **sizes,
        head_dim=head_dim,
        vocab_size=_positive(about, "vocab_size", where=where),
        tied=family.tied if about.get("tie_word_embeddings") is None else bool(about["tie_word_embeddings"]),
        biased=tuple(kind for kind in ATTENTION + MLP if kind in chosen),
        head_norms=family.head_norms,
        layer_norms=family.layer_norms,
        positions=known if isinstance(known := about.get("max_position_embeddings"), int) else None,
    )


def sizes_given(entry: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a teacher's entry gives, by our keys; it may hold others, and values that are not yet checked.

    With all five sizes head_dim is given too: hidden / heads unless the entry says another. What an entry means then
    never depends on whether its checkpoint is here.
    """
    given = {size: entry[size] for size in (*SIZES, "head_dim") if entry.get(size) is not None}
    whole = all(type(size) is int and size > 0 for size in given.values())
    if given.keys() == SIZES.keys() and whole:
        given["head_dim"] = given["hidden"] // given["heads"]
    return given


def refuse_other_sizes(anatomy: Anatomy, given: Mapping[str, int], *, where: object, name: str) -> None:
    """Compares the sizes that a teacher's entry gives with those of its checkpoint.

    Args:
        given: by our keys.
        name: of the teacher in `teacher_ladder`.

    Raises:
        BadInput: names the first one that differs.
    """
    for ours, value in given.items():
        actual = getattr(anatomy, ours)
        if actual != value:
            raise BadInput(f"{where}: {SIZES.get(ours, ours)} is {actual}, but teacher_ladder.{name} says {value}")


def refuse_short_context(anatomy: Anatomy, context: int | None, *, where: object) -> None:
    """Compares the positions that a checkpoint knows with what it will read at once.

    Args:
        context: tokens of a training window, or of the longest prompt; None where that is not known.

    Raises:
        BadInput: it knows fewer; beyond them its predictions are worth nothing.
    """
    known = anatomy.positions
    if context is not None and known is not None and known < context:
        raise BadInput(
            f"{where}: max_position_embeddings is {known}, but {context} tokens are read at once; expected "
            f"sequence_length and evaluation.context of at most {known}, or a checkpoint with a longer context"
        )


def _positive(about: Mapping[str, Any], key: str, *, where: object) -> int:
    value = about.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{where}: {key} is {value!r}, expected a whole number above 0")
    return value


def refuse_unknown(about: Mapping[str, Any], *, where: object) -> None:
    """Refuses what cannot be cut, trained or compressed.

    Raises:
        BadInput: another family, fused projections, experts, capped logits, or quantised weights; says which.
    """
    kind = about.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise BadInput(f"{where}: model_type is {kind!r}{_reason(about)}, expected one of {', '.join(FAMILIES)}")
    quantised = about.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, Mapping) else "unnamed"
        raise BadInput(f"{where}: its weights are quantised ({method}), expected float32, float16 or bfloat16 weights")
    capped = next((key for key in CAPS if about.get(key) is not None), None)
    if capped:
        raise BadInput(f"{where}: {capped} is {about[capped]}, expected none: the loss does not cap logits")
    if about.get("use_bidirectional_attention"):
        raise BadInput(f"{where}: use_bidirectional_attention is on, expected a causal language model")


def _reason(about: Mapping[str, Any]) -> str:
    """Why a model of another family cannot be used, where that is known."""
    kind = about.get("model_type")
    if any(about.get(key) for key in EXPERTS):
        return ", a mixture of experts"
    if isinstance(kind, str) and kind in FUSED:
        return f", whose projections are fused ({FUSED[kind]})"
    if "text_config" in about:
        return ", which reads more than text"
    if any(about.get(key) is not None for key in CAPS):
        return ", which caps its logits"
    return ""
