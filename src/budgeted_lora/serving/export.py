"""Writes a student as a folder that needs nothing of this package.

A student without factors is a model of transformers' own class. One with factors carries a modelling file, built on the
family's own classes, which `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs. Re-expanded to
dense weights it is of the family's own class again, at the cost of the dense model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, GenerationConfig, PreTrainedModel

from budgeted_lora.data.tokenizer import switch_off
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, write_json, write_text
from budgeted_lora.models.checkpoint import copy_generation, copy_tokenizer
from budgeted_lora.models.compressed import PREFIX, FactorizedLinear
from budgeted_lora.models.load import load_model, quietly

CODE = "modeling_budgeted"  # name of the modelling file, without its ending
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds.

    Attributes:
        family: model type of the family, such as llama.
        ranks: rank of each factorised projection by name, as in the student.
        dense: the factors were multiplied out.
        parameters: weights in the folder; tied ones count once.
        dtype: of the weights.
    """

    family: str
    ranks: Mapping[str, int]
    dense: bool
    parameters: int
    dtype: str

    @property
    def remote_code(self) -> bool:
        """Whether the folder carries a modelling file."""
        return bool(self.ranks) and not self.dense


def export_model(source: Path, folder: Path, *, dtype: str = "bfloat16", dense: bool = False) -> Exported:
    """Writes configuration, weights, tokenizer and, for factors, the modelling file of a model into `folder`.

    Args:
        source: folder of a compressed student, or any other that `load_model` reads.
        folder: an existing one.
        dtype: of the weights: bfloat16, float16 or float32.
        dense: multiply the factors out; the map stays the same but for rounding.

    Raises:
        BadInput: an unknown dtype, `dense` without factors, or whatever `load_model` refuses.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {dtype!r}; expected {', '.join(DTYPES)}")
    model = load_model(source)
    ranks = {name: layer.down.out_features for name, layer in factorized_layers(model).items()}
    if dense and not ranks:
        raise BadInput(f"{source}: no projection has factors, so the model is dense already; export it without --dense")
    family = model.config.model_type.removeprefix(PREFIX)
    model = (expanded(model, family=family) if dense else model).to(DTYPES[dtype])
    save(model, source, folder)
    exported = Exported(family, ranks, dense, sum(weight.numel() for weight in model.parameters()), dtype)
    if exported.remote_code:
        write_code(folder, exported)
    return exported


def save(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Writes configuration, weights, tokenizer and generation settings, which the source may leave to the config."""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    with quietly():
        model.save_pretrained(folder)
    copy_generation(source, folder)
    copy_tokenizer(source, folder)
    settle_tokenizer(source, folder)


def factorized_layers(model: nn.Module) -> dict[str, FactorizedLinear]:
    """The projections of a model that are two linear layers, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FactorizedLinear)}


@torch.no_grad()
def expanded(model: PreTrainedModel, *, family: str) -> PreTrainedModel:
    """A float32 model of the family's own class with W = up @ down, multiplied in float64."""
    state = model.state_dict()
    for name in factorized_layers(model):
        up, down = state.pop(f"{name}.up.weight"), state.pop(f"{name}.down.weight")
        state[f"{name}.weight"] = (up.double() @ down.double()).float()
        if f"{name}.up.bias" in state:
            state[f"{name}.bias"] = state.pop(f"{name}.up.bias")
    values = model.config.to_dict()
    ours = ("factorized", "model_type", "architectures", "auto_map")
    config = CONFIG_MAPPING[family].from_dict({key: value for key, value in values.items() if key not in ours})
    stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, dtype=torch.float32)
    stock.load_state_dict(state, strict=True)
    return stock.eval()


def write_code(folder: Path, exported: Exported) -> None:
    """Writes the modelling file, and into config.json what loads it."""
    config_class = CONFIG_MAPPING[exported.family]
    kinds = {
        "config_class": config_class.__name__,
        "model_class": MODEL_MAPPING[config_class].__name__,
        "causal_class": MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__name__,
    }
    template = files("budgeted_lora").joinpath(f"assets/exported/{CODE}.py.txt").read_text(encoding="utf-8")
    write_text(folder / f"{CODE}.py", Template(template).substitute(kinds, model_type=PREFIX + exported.family))
    auto = {"AutoConfig": "config_class", "AutoModel": "model_class", "AutoModelForCausalLM": "causal_class"}
    values = read_json(folder / "config.json", expected="the configuration just written") | {
        "architectures": [f"Budgeted{kinds['causal_class']}"],
        "auto_map": {name: f"{CODE}.Budgeted{kinds[kind]}" for name, kind in auto.items()},
        "model_type": PREFIX + exported.family,
        "factorized": dict(exported.ranks),
    }
    write_json(folder / "config.json", values)


def settle_tokenizer(source: Path, folder: Path) -> None:
    """Puts a tokenizer copied from `source` into the state of training and scoring; names its class if it names none.

    Training and scoring put no token around a text. Saved truncation, padding, dropout and post-processors are
    therefore switched off in the file, and the settings by which other tools make a post-processor anew. Without a
    class `AutoTokenizer` goes by the model type, which transformers does not know for a student with factors.

    Raises:
        BadInput: tokenizer.json is damaged.
    """
    path, settings = source / "tokenizer.json", folder / "tokenizer_config.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises a bare Exception
        raise BadInput(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None
    if switch_off(tokenizer):
        tokenizer.save(str(folder / path.name))
    values = read_json(settings, expected="the tokenizer's settings") if settings.is_file() else {}
    values = {"tokenizer_class": "PreTrainedTokenizerFast"} | values | {"add_bos_token": False, "add_eos_token": False}
    write_json(settings, values)
