"""Decoders of transformers with factorised projections; importing this module registers them with transformers.

import budgeted_lora.models.compressed
model = transformers.AutoModelForCausalLM.from_pretrained(folder)

A folder's config.json has all fields of the family's own configuration, `model_type: budgeted_<family>`, and in
`factorized` the rank of each factorised projection by its name. Such a projection `P` has the weights `P.down.weight`
[rank, d_in] and `P.up.weight` [d_out, rank], and `P.up.bias` where the family's own layer has a bias. All other weights
have the family's names and shapes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from budgeted_lora.config.anatomy import FAMILIES
from budgeted_lora.errors import BadInput
from budgeted_lora.models.factorized import FactorizedLinear

PREFIX = "budgeted_"  # of the model_type


def factorize(model: PreTrainedModel, ranks: Mapping[str, int]) -> None:
    """Replaces linear layers by untrained factorised ones, in place.

    Raises:
        BadInput: `ranks` names something other than a linear layer of the model, or a rank below 1.
    """
    for name, rank in ranks.items():
        parent_name, _, attribute = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            layer = parent.get_submodule(attribute)
        except AttributeError:
            raise BadInput(f"config.json: factorized names {name}, which the model does not have") from None
        if not isinstance(layer, nn.Linear) or rank < 1:
            raise BadInput(f"config.json: factorized gives {name} rank {rank}; expected a linear layer and rank >= 1")
        bias = layer.bias is not None
        setattr(parent, attribute, FactorizedLinear(layer.in_features, layer.out_features, rank=rank, bias=bias))


def compressed_config(base: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """A family's configuration with `factorized`, the rank of each factorised projection by module name."""

    class Compressed(base):
        model_type = PREFIX + base.model_type
        base_model_tp_plan = {}  # noqa: RUF012  (the parent's plan splits dense projections, which may be missing here)

        factorized: dict[str, int] | None = None

        def __post_init__(self, **kwargs: Any) -> None:
            self.factorized = dict(self.factorized or {})
            base.__post_init__(self, **kwargs)

    Compressed.__name__ = Compressed.__qualname__ = f"Compressed{base.__name__}"
    return strict(Compressed)


def compressed_class(base: type[PreTrainedModel], config: type[PretrainedConfig]) -> type[PreTrainedModel]:
    """A family's causal model, factorised as a `compressed_config` says."""

    class Compressed(base):
        config_class = config

        def __init__(self, config: Any) -> None:
            base.__init__(self, config)
            factorize(self, config.factorized)
            self.post_init()

    Compressed.__name__ = Compressed.__qualname__ = f"Compressed{base.__name__}"
    return Compressed


def register(family: str) -> type[PreTrainedModel]:
    """Makes transformers know the compressed form of a family."""
    config = compressed_config(CONFIG_MAPPING[family])
    model = compressed_class(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]], config)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return model


COMPRESSED = {family: register(family) for family in FAMILIES}


def untrained(model: PreTrainedModel, factorized: Mapping[str, int]) -> PreTrainedModel:
    """An untrained float32 model of the same sizes with the named projections factorised at the given ranks."""
    values, kind = model.config.to_dict(), type(model)
    if factorized:
        kind = COMPRESSED[model.config.model_type]
        for key in ("architectures", "transformers_version", "dtype", "model_type"):
            values.pop(key, None)
        values["factorized"] = dict(factorized)
    return kind._from_config(kind.config_class(**values), attn_implementation="sdpa", dtype=torch.float32)
