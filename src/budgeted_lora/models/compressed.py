"""A Mistral decoder with factorised projections; importing this module registers it with transformers.

import budgeted_lora.models.compressed
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
"""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from budgeted_lora.errors import BadInput


class FactorizedLinear(nn.Module):
    """y = up(down(x)): two linear layers without bias, d_in -> rank -> d_out."""

    def __init__(self, d_in: int, d_out: int, *, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, rank, bias=False)
        self.up = nn.Linear(rank, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., d_in] -> [..., d_out]."""
        return self.up(self.down(x))


@strict
class CompressedMistralConfig(MistralConfig):
    """A Mistral configuration with `factorized`, the rank of each factorised projection by module name."""

    model_type = "budgeted_mistral"
    base_model_tp_plan = {}  # noqa: RUF012  (the parent's plan splits dense projections, which may be missing here)

    factorized: dict[str, int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.factorized = dict(self.factorized or {})
        super().__post_init__(**kwargs)


class CompressedMistralForCausalLM(MistralForCausalLM):
    """The decoder of a `CompressedMistralConfig`.

    Raises:
        BadInput: `factorized` names something other than a linear layer of the model, or a rank below 1.
    """

    config_class = CompressedMistralConfig

    def __init__(self, config: CompressedMistralConfig) -> None:
        super().__init__(config)
        for name, rank in config.factorized.items():
            parent_name, _, attribute = name.rpartition(".")
            try:
                parent = self.get_submodule(parent_name)
                layer = parent.get_submodule(attribute)
            except AttributeError:
                raise BadInput(f"config.json: factorized names {name}, which the model does not have") from None
            if not isinstance(layer, nn.Linear) or rank < 1:
                raise BadInput(
                    f"config.json: factorized gives {name} rank {rank}; expected a linear layer and rank >= 1"
                )
            setattr(parent, attribute, FactorizedLinear(layer.in_features, layer.out_features, rank=rank))
        self.post_init()


AutoConfig.register(CompressedMistralConfig.model_type, CompressedMistralConfig, exist_ok=True)
AutoModelForCausalLM.register(CompressedMistralConfig, CompressedMistralForCausalLM, exist_ok=True)


def untrained(model: PreTrainedModel, factorized: Mapping[str, int]) -> PreTrainedModel:
    """An untrained float32 model of the same sizes with the named projections factorised at the given ranks."""
    values = model.config.to_dict()
    if factorized:
        fields = MistralConfig.__dataclass_fields__.keys() - {"architectures", "transformers_version", "dtype"}
        kept = {name: value for name, value in values.items() if name in fields}
        config = CompressedMistralConfig(**({"sliding_window": None} | kept), factorized=dict(factorized))
        kind = CompressedMistralForCausalLM
    else:
        kind, config = type(model), type(model.config)(**values)
    return kind._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
