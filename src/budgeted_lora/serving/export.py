"""Writes a student as a folder that needs nothing of this package.

A student without factors is a model of transformers' own class. One with factors carries a modelling file, built on the
family's own classes, which `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs. Re-expanded to
dense weights it is of the family's own class again, at the cost of the dense model.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from budgeted_lora.data.tokenizer import switch_off
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, write_json, write_text
from budgeted_lora.models.checkpoint import copy_generation, copy_tokenizer
from budgeted_lora.models.compressed import PREFIX, FactorizedLinear
from budgeted_lora.models.load import load_model, quietly

CODE = "modeling_budgeted"  # name of the modelling file, without its ending
SAMPLES = (
    "one",
    " one",
    "  one  two ",
    "One 2024 and 1234567",
    "naïve 漢字 🙂",
    "def f(x):\n    return x ** 2  # so\r\n",
)
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
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise BadInput(f"{source}: {name} has values beyond {dtype}; expected --dtype bfloat16 or float32")
    save(model, source, folder)
    exported = Exported(family, ranks, dense, sum(weight.numel() for weight in model.parameters()), dtype)
    if exported.remote_code:
        write_code(folder, exported)
    if differing := retokenised(folder):
        print(
            f"budgeted-lora: {folder}: AutoTokenizer gives other ids than tokenizer.json, e.g. for {differing[0]!r}; "
            "open it with PreTrainedTokenizerFast",
            file=sys.stderr,
        )
    return exported


def save(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Writes configuration, weights, tokenizer and generation settings, which the source may leave to the config."""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    with quietly():
        model.save_pretrained(folder)
    add_older_keys(folder / "config.json")
    copy_generation(source, folder)
    copy_tokenizer(source, folder)
    settle_tokenizer(source, folder)


def add_older_keys(path: Path) -> None:
    """Adds `rope_theta` and `rope_scaling` to a config.json that has `rope_parameters` alone.

    transformers before 5, and tools that read its files, take their default of 10,000 where these are missing. Families
    with parameters for each kind of layer (gemma3) keep to the new key: they need transformers 5.
    """
    values = read_json(path, expected="the configuration just written")
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" not in rope:
        return
    values["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = rope
    write_json(path, values)


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
    therefore switched off in the file, and the settings by which other tools make a post-processor anew. The class is
    the one that takes tokenizer.json as it is: others rebuild it from vocabulary and merges, with another normaliser or
    pre-tokenizer than some teachers have.

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
    write_json(
        settings,
        values | {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False},
    )


def retokenised(folder: Path) -> list[str]:
    """The samples for which `AutoTokenizer` on an exported folder gives other ids than its tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with quietly():
        opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    samples = [*SAMPLES, *(f"one{special} two" for special in opened.all_special_tokens)]
    return [
        text
        for text in samples
        if opened(text, add_special_tokens=False).input_ids != tokenizer.encode(text, add_special_tokens=False).ids
    ]
