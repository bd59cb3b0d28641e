"""Exported folders, used in a process where this package cannot be imported, and what is refused."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.exported import IDS, MIXED, put_tokens_around, student, student_folder, used_outside
from fixtures.families import FAMILIES, write_checkpoint
from fixtures.tiny_decoder import tiny
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from budgeted_lora.errors import BadInput
from budgeted_lora.models.compressed import untrained
from budgeted_lora.models.load import load_model, save_model, tied_names
from budgeted_lora.serving import export
from budgeted_lora.serving.export import expanded, export_model
from budgeted_lora.serving.generate import open_tokenizer

EXPORTS = {"factors": {"dtype": "float32"}, "dense": {"dtype": "float32", "dense": True}, "stock": {}}
HALF = {
    f"model.layers.{i}.{name}_proj": 3 for i in range(6) for name in ("self_attn.q", "self_attn.o", "mlp.up")[i % 2 :]
}
TOLERANCE = 1e-4  # of the largest logit, float32: another order of the same sums


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources `mixed` and `plain`, the exports of `EXPORTS`, and `half`, in the default dtype."""
    root = tmp_path_factory.mktemp("exported")
    mixed, plain = student_folder(root / "mixed", student(MIXED)), student_folder(root / "plain", tiny(layers=2))
    for name, options in (EXPORTS | {"half": {}}).items():
        (root / name).mkdir()
        export_model(plain if name == "stock" else mixed, root / name, **options)
    generator = torch.Generator().manual_seed(2)
    for family in FAMILIES:
        source = write_checkpoint(root / "sources" / family, family)
        model = untrained(load_model(source), HALF)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(mean=float(weight.ndim == 1), std=0.3, generator=generator)
        save_model(model, source)
        (root / family).mkdir()
        export_model(source, root / family, dtype="float32")
    return root


@pytest.fixture(scope="module")
def ours(folders: Path) -> dict[str, PreTrainedModel]:
    mixed, plain = load_model(folders / "mixed"), load_model(folders / "plain")
    with torch.no_grad():
        for weight in plain.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    return {"factors": mixed, "dense": mixed, "stock": plain}


@pytest.fixture(scope="module")
def outside(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What a process without this package says of each folder."""
    scratch = tmp_path_factory.mktemp("outside") / "scratch"
    facts = used_outside([folders / name for name in EXPORTS], [folders / name for name in FAMILIES], scratch)
    return {
        name: about | {"logits": load_file(scratch / f"{name}.safetensors")["logits"]} for name, about in facts.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_factors_runs_alone(family: str, folders: Path, outside: dict) -> None:
    facts, model = outside[family], load_model(folders / "sources" / family)
    with torch.no_grad():
        assert torch.equal(facts["logits"], model(IDS).logits)
    assert facts["generated"] == facts["generated_without_cache"]
    assert not any(facts["loading"].values())
    assert facts["class"] == type(model).__name__.replace("Compressed", "Budgeted")
    assert facts["tied"] == bool(tied_names(model))


each = pytest.mark.parametrize("name", EXPORTS)


@each
def test_logits_are_ours(name: str, ours: dict, outside: dict) -> None:
    with torch.no_grad():
        expected = ours[name](IDS).logits
    if name == "dense":
        assert (outside[name]["logits"] - expected).abs().max() < TOLERANCE * expected.abs().max()
    else:
        assert torch.equal(outside[name]["logits"], expected)


@each
def test_nothing_of_ours_is_imported_and_every_weight_is_read(name: str, outside: dict) -> None:
    assert outside[name]["ours"] == []
    assert not any(outside[name]["loading"].values())


def test_classes(outside: dict) -> None:
    assert outside["factors"]["classes"] == ["BudgetedMistralConfig", "BudgetedMistralForCausalLM"]
    assert outside["factors"]["base_class"] == "BudgetedMistralModel"
    for name in ("dense", "stock"):
        assert outside[name]["classes"] == ["MistralConfig", "MistralForCausalLM"]


def test_every_pattern_of_factors_is_a_class_of_its_own(outside: dict) -> None:
    """A server that looks at one layer of a class then knows all of them."""
    assert outside["factors"]["kinds"] == [
        *("MistralAttention_k_q", "MistralMLP_down"),
        *("MistralAttention", "MistralMLP"),
        *("MistralAttention_o", "MistralMLP_gate_up"),
    ]


@each
def test_generation_with_a_cache_is_that_without(name: str, outside: dict) -> None:
    facts = outside[name]
    assert facts["generated"] == facts["generated_without_cache"]
    assert len({tuple(row) for row in facts["generated"]}) == len(IDS)


@each
def test_saved_again_it_is_the_same_folder(name: str, outside: dict, folders: Path) -> None:
    facts = outside[name]
    config = json.loads((folders / name / "config.json").read_text())
    assert facts["again"]
    assert facts["again_auto_map"] == config.get("auto_map")
    assert ("modeling_budgeted.py" in facts["again_files"]) == (name == "factors")


@each
def test_base_model_eager_attention_and_dtype(name: str, outside: dict) -> None:
    facts = outside[name]
    largest = facts["logits"].abs().max().item()
    assert facts["base"]
    assert facts["eager_difference"] < TOLERANCE * largest
    assert facts["dtype"] == ("torch.bfloat16" if name == "stock" else "torch.float32")
    assert facts["moved_dtypes"] == ["torch.bfloat16"]
    assert 0 < facts["moved_difference"] < 0.1 * largest


@each
def test_padding_on_the_left_changes_nothing(name: str, outside: dict) -> None:
    assert outside[name]["padded"] == outside[name]["alone"]


@each
def test_pipeline_writes_what_generate_writes(name: str, outside: dict) -> None:
    assert outside[name]["written"].split() == outside[name]["written_expected"].split() != []


@each
def test_perplexity_of_an_independent_script(name: str, ours: dict, outside: dict) -> None:
    logits = ours[name](IDS[:, :-1]).logits.detach().double().log_softmax(dim=-1)
    expected = math.exp(-logits.gather(-1, IDS[:, 1:, None]).mean())
    assert outside[name]["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_default_is_bfloat16_with_our_own_class_still_reading_it(folders: Path) -> None:
    again, source = load_model(folders / "half", dtype=None), load_model(folders / "mixed")
    assert {weight.dtype for weight in again.parameters()} == {torch.bfloat16}
    state = source.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name].to(torch.bfloat16)) for name, value in again.state_dict().items())


def test_expansion_is_the_product(folders: Path) -> None:
    source = load_model(folders / "mixed")
    weights = expanded(source, family="mistral").state_dict()
    for name in MIXED:
        layer = source.get_submodule(name)
        product = layer.up.weight.double() @ layer.down.weight.double()
        assert torch.allclose(weights[f"{name}.weight"].double(), product, rtol=1e-6, atol=1e-7)


def test_generation_settings_are_kept_as_they_are(tmp_path: Path) -> None:
    source = student_folder(tmp_path / "source", tiny(layers=1))
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 3], "temperature": 0.6}')
    (tmp_path / "out").mkdir()
    export_model(source, tmp_path / "out")
    kept = (tmp_path / "out" / "generation_config.json").read_text()
    assert kept == (source / "generation_config.json").read_text()


def test_the_tokenizer_puts_nothing_around_a_text(tmp_path: Path) -> None:
    """As in training and scoring; one that does not either is copied as it is."""
    source = student_folder(tmp_path / "source", tiny(layers=1))
    (tmp_path / "plain").mkdir()
    export_model(source, tmp_path / "plain")
    assert (tmp_path / "plain" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    put_tokens_around(source)
    assert Tokenizer.from_file(str(source / "tokenizer.json")).encode("w3 w4 w5").ids == [2, 3, 4, 0]
    assert AutoTokenizer.from_pretrained(source)("w3 w4 w5").input_ids == [2, 3, 4, 5, 0]
    (tmp_path / "out").mkdir()
    export_model(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w3 w4 w5").input_ids == [3, 4, 5]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("w2", "w0")
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("w3 w4 w5").ids == [3, 4, 5]
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (False, False)


def llama_style() -> Tokenizer:
    """Spaces become marks by normalisation, one more in front, as in Llama 2: no pre-tokenizer."""
    vocabulary = {"w0": 0, "<unk>": 1} | {
        text: 2 + i for i, text in enumerate(["\u2581", *"abcdefghijklmnopqrstuvwxyz"])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(["w0"])
    return tokenizer


def digit_by_digit() -> Tokenizer:
    """Byte-level, each digit a word of its own, though the vocabulary has longer numbers."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate(["w0", *letters, "20"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("2", "0")]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens(["w0"])
    return tokenizer


@pytest.mark.parametrize("made", [llama_style, digit_by_digit])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_an_exported_folder_tokenises_as_in_training(made: Callable, name: str, tmp_path: Path, capsys) -> None:
    """Those classes rebuild a tokenizer from its vocabulary, with a normaliser and pre-tokenizer of their own."""
    source = student_folder(tmp_path / "source", student(MIXED))
    tokenizer = made()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "eos_token": "w0"}))
    (tmp_path / "out").mkdir()
    export_model(source, tmp_path / "out")
    opened, used = AutoTokenizer.from_pretrained(tmp_path / "out"), open_tokenizer(source)
    for text in ("one", " one", "  two  words", "in 2024", "onew0 two", "w0\ntwo"):
        assert opened(text).input_ids == used(text, add_special_tokens=False).input_ids == tokenizer.encode(text).ids
    assert capsys.readouterr().err == ""


def test_who_opens_another_tokenizer_is_told(tmp_path: Path, capsys, monkeypatch) -> None:
    source = student_folder(tmp_path / "source", student(MIXED))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(export, "retokenised", lambda folder: ["one 2"])
    export_model(source, tmp_path / "out")
    assert "AutoTokenizer gives other ids than tokenizer.json, e.g. for 'one 2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}]
)
def test_the_rotary_base_stands_under_its_older_name_too(rope: dict, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "llama")
    values = json.loads((source / "config.json").read_text())
    values = {key: value for key, value in values.items() if not key.startswith("rope")} | {"rope_parameters": rope}
    (source / "config.json").write_text(json.dumps(values))
    (tmp_path / "out").mkdir()
    export_model(source, tmp_path / "out", dtype="float32")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert written.get("rope_scaling") == (None if rope["rope_type"] == "default" else scaling)
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(again(IDS).logits, load_model(source)(IDS).logits)


def test_a_weight_that_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = tiny(layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    source = student_folder(tmp_path / "source", model)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match=r"layers\.0\.mlp\.up_proj\.weight has values beyond float16; expected --dtype"):
        export_model(source, tmp_path / "out", dtype="float16")
    assert not list((tmp_path / "out").iterdir())


def test_factors_have_no_sizes_of_a_dense_layer(folders: Path) -> None:
    """vLLM takes a module with `in_features` for a linear layer it may merge with its neighbours."""
    code = (folders / "factors" / "modeling_budgeted.py").read_text()
    assert not re.search(r"self\.(in|out)_features", code)
    assert "budgeted_lora" not in code


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; expected bfloat16, float16, float32"),
        ({"dense": True}, "no projection has factors"),
    ],
)
def test_refusals(tmp_path: Path, folders: Path, change: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        export_model(folders / "plain", tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_whole_tokenizer_is_refused(tmp_path: Path, folders: Path) -> None:
    source = student_folder(tmp_path / "source", tiny(layers=1))
    (source / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        export_model(source, tmp_path)
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"source/tokenizer\.json: not a tokenizer"):
        export_model(source, tmp_path)
