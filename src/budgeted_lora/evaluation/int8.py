"""A model with int8 weights in its projections and int8 activations, by the optional package torchao.

Weights have one scale per output channel and are rounded once; activations get one scale per token as the model runs,
so nothing is calibrated and a row of a batch does not change another. Products are whole numbers. Embeddings, norms and
the output layer stay what they were.
"""

import copy
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import speed
from budgeted_lora.method.cost import projections
from budgeted_lora.method.projections import model_shape

VERSIONS = ("torchao", "torch", "transformers")
ARMS = {"dense": "plain", "compressed": "int8"}  # `speed` compares two models under these names


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with int8 projections, of which two factors are two. Raises BadInput where torchao is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise BadInput("package torchao is not installed; expected it for int8: pip install -e '.[int8]'")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made, names = copy.deepcopy(model), linear_layers(model)
    quantize_(made, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda layer, name: name in names)
    return made


def linear_layers(model: PreTrainedModel) -> set[str]:
    """Names of the linear layers that the projections consist of."""
    found = set()
    for projection in projections(model_shape(model)):
        for name, layer in model.get_submodule(projection.name).named_modules(prefix=projection.name):
            found |= {name} if isinstance(layer, nn.Linear) else set()
    return found


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the weights in memory, with scales and zero points: of the projections, and of the whole model."""
    names = {f"{name}.weight" for name in linear_layers(model)}
    sizes = {name: bytes_of(weight) for name, weight in model.named_parameters()}  # tied weights once
    return {"projections": sum(sizes[name] for name in names), "model": sum(sizes.values())}


def bytes_of(weight: torch.Tensor) -> int:
    """Bytes of a weight, or of the tensors that a quantised one consists of."""
    parts = [weight]
    if hasattr(weight, "__tensor_flatten__"):
        parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    return sum(part.numel() * part.element_size() for part in parts)


def timed(
    plain: PreTrainedModel,
    int8: PreTrainedModel,
    *,
    batch: int,
    length: int,
    prompt: int,
    decode_tokens: int,
    repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """Seconds of a prefill [batch, length] and of decoding a token, both models in turn; speedup: plain over int8."""
    models, common = {"dense": plain, "compressed": int8}, {"batch": batch, "repeats": repeats, "device": device}
    prefill = speed.time_prefill(models, length=length, keep=1, **common)
    decode = speed.time_decode(models, prompt=prompt, tokens=decode_tokens, **common)
    return {"prefill": renamed(prefill), "decode": renamed(decode)}


def renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {ARMS.get(name, name): value for name, value in record.items()}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}
