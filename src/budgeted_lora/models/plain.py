"""A compressed student as a model of plain linear layers.

It stands apart from `models.compressed`, which every stage that loads a model imports: an edit of the method then
reruns no stage that only loads one.
"""

from collections.abc import Mapping

from transformers import PreTrainedModel

from budgeted_lora.method.compress import CompressedModule
from budgeted_lora.models.compressed import untrained


def compressed_model(model: PreTrainedModel, compressed: Mapping[str, CompressedModule]) -> PreTrainedModel:
    """A float32 model of plain linear layers: `model` with its named projections compressed.

    Without a factorised projection (KD Full, KD LoRA, F = 1) it stays of transformers' own class.
    """
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    ranks = {}
    for name, module in compressed.items():
        for leaf in ("weight", "lora_a", "lora_b", "gate_logits"):
            state.pop(f"{name}.{leaf}", None)
        if module.dense is not None:
            state[f"{name}.weight"] = module.dense
            continue
        ranks[name] = len(module.down)
        state[f"{name}.down.weight"], state[f"{name}.up.weight"] = module.down, module.up
        if f"{name}.bias" in state:
            state[f"{name}.up.bias"] = state.pop(f"{name}.bias")
    plain = untrained(model, ranks)
    plain.load_state_dict(state, strict=True)
    return plain.eval()
