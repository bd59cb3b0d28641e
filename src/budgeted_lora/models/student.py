"""Cuts a student from the first teacher: some layers, with embeddings, final norm and head (method, section 2)."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from budgeted_lora.errors import BadInput
from budgeted_lora.models.load import new_model

PER_LAYER = ("layer_types", "no_rope_layers")  # lists of a configuration with an entry for each layer


def layer_indices(init: str, *, layers: int, depth: int, scores: Sequence[float] | None = None) -> list[int]:
    """The teacher layers that a student of `depth` layers takes.

    Args:
        init: first; last; middle, from (layers - depth) // 2 on; mixed, the first, the last and evenly spaced ones
            between them, rounded half to even; importance, those of the highest scores, earlier ones first among
            equals; or scratch, no layer.
        scores: of every layer, for importance.

    Raises:
        BadInput: the teacher has fewer layers, the rule is unknown, or importance has no score for each layer.
    """
    if not 1 <= depth <= layers:
        raise BadInput(f"student.layers is {depth}, expected 1 to {layers}, the layers of the first teacher")
    start = {"first": 0, "middle": (layers - depth) // 2, "last": layers - depth}
    if init in start:
        return list(range(start[init], start[init] + depth))
    if init == "mixed":
        return [round(i * (layers - 1) / (depth - 1)) for i in range(depth)] if depth > 1 else [0]
    if init == "scratch":
        return []
    if init == "importance":
        if len(scores or ()) != layers:
            raise BadInput(f"init importance has {len(scores or ())} scores, expected one for each of {layers} layers")
        return sorted(sorted(range(layers), key=lambda layer: (-scores[layer], layer))[:depth])
    raise BadInput(f"init is {init!r}, expected first, middle, last, mixed, importance or scratch")


def cut(
    teacher: PreTrainedModel,
    *,
    init: str,
    depth: int,
    ffn: int | None = None,
    seed: int = 0,
    scores: Sequence[float] | None = None,
) -> PreTrainedModel:
    """A float32 student of `depth` layers; with init scratch its random weights depend only on the seed.

    Args:
        ffn: feed-forward neurons to keep per layer, those with the largest product of weight norms; None keeps all.
        scores: see `layer_indices`.

    Raises:
        BadInput: the teacher has fewer layers or neurons.
    """
    if ffn is not None and not 1 <= ffn <= teacher.config.intermediate_size:
        raise BadInput(f"ffn is {ffn}, expected 1 to {teacher.config.intermediate_size}, that of the first teacher")
    chosen = layer_indices(init, layers=teacher.config.num_hidden_layers, depth=depth, scores=scores)
    config = type(teacher.config).from_dict(teacher.config.to_dict())
    config.num_hidden_layers = depth
    for name in PER_LAYER:
        values = getattr(config, name, None)
        if values:
            setattr(config, name, [values[layer] for layer in chosen or range(depth)])
    config.intermediate_size = ffn or config.intermediate_size
    student = new_model(config, seed=seed)
    if not chosen:
        return student
    weights = {name: tensor for name, tensor in teacher.state_dict().items() if ".layers." not in name}
    for position, layer in enumerate(chosen):
        prefix = f"model.layers.{layer}."
        source = {name.removeprefix(prefix): t for name, t in teacher.state_dict().items() if name.startswith(prefix)}
        source = source if ffn is None else narrowed(source, ffn=ffn)
        weights |= {f"model.layers.{position}.{name}": tensor for name, tensor in source.items()}
    student.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()})
    return student


def narrowed(layer: dict[str, torch.Tensor], *, ffn: int) -> dict[str, torch.Tensor]:
    """The weights of a layer with the `ffn` feed-forward neurons of largest product of norms, in their old order."""
    gate, up, down = (layer[f"mlp.{name}_proj.weight"].double() for name in ("gate", "up", "down"))
    size = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    kept = size.topk(ffn).indices.sort().values
    of_neurons = [f"mlp.{name}_proj.{leaf}" for name in ("gate", "up") for leaf in ("weight", "bias")]
    sliced = {name: layer[name][kept] for name in of_neurons if name in layer}
    return layer | sliced | {"mlp.down_proj.weight": layer["mlp.down_proj.weight"][:, kept]}
