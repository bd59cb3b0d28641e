"""What a config.json says, against the published figures of real checkpoints and against transformers' own classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from fixtures.families import FAMILIES, random_model, raw_config

from budgeted_lora.config.anatomy import Anatomy, read_anatomy, refuse_other_sizes, sizes_given
from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.method import cost
from budgeted_lora.method.projections import model_shape
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import steps_needed, structure
from budgeted_lora.workflow.graph import load_graph
from budgeted_lora.workflow.recipes import shape_of

# From the config.json of each checkpoint, and how many parameters its card or its safetensors header says.
PUBLISHED: dict[str, tuple[tuple[Any, ...], dict[str, Any], int]] = {
    # model_type, layers, hidden, ffn, heads, kv_heads, vocabulary
    "SmolLM2-135M": (("llama", 30, 576, 1536, 9, 3, 49_152), {"tie_word_embeddings": True}, 134_515_008),
    "Llama-3.2-1B": (
        ("llama", 16, 2048, 8192, 32, 8, 128_256), {"tie_word_embeddings": True, "head_dim": 64}, 1_235_814_400
    ),
    "Qwen2.5-0.5B": (("qwen2", 24, 896, 4864, 14, 2, 151_936), {"tie_word_embeddings": True}, 494_032_768),
    "Qwen3-0.6B": (
        ("qwen3", 28, 1024, 3072, 16, 8, 151_936), {"tie_word_embeddings": True, "head_dim": 128}, 596_049_920
    ),
    "TinyLlama-1.1B": (("llama", 22, 2048, 5632, 32, 4, 32_000), {"tie_word_embeddings": False}, 1_100_048_384),
    "Mistral-7B-v0.1": (("mistral", 32, 4096, 14_336, 32, 8, 32_000), {}, 7_241_732_096),
    "SmolLM3-3B": (("smollm3", 36, 2048, 11_008, 16, 4, 128_256), {}, 3_075_098_624),
    "gemma-3-270m": (("gemma3_text", 18, 640, 2048, 4, 1, 262_144), {"head_dim": 256}, 268_098_176),
}  # fmt: skip
KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
# MACs of one layer's q and o, k and v, gate and up and down, by hand.
LAYER = {
    "SmolLM2-135M": 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536,
    "Qwen2.5-0.5B": 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864,
    "Qwen3-0.6B": 2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072,
    "gemma-3-270m": 2 * 640 * 1024 + 2 * 640 * 256 + 3 * 640 * 2048,
}


def published(name: str) -> Anatomy:
    values, more, _ = PUBLISHED[name]
    return read_anatomy(dict(zip(KEYS, values, strict=True)) | more, where=name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_real_checkpoints(name: str) -> None:
    anatomy, total = published(name), PUBLISHED[name][2]
    assert anatomy.parameters == total
    shape, about = shape_of(anatomy), {"tied": anatomy.tied, "beside": anatomy.beside()}
    assert cost.parameters(shape, vocab_size=anatomy.vocab_size, **about) == total
    if name in LAYER:
        assert cost.dense_macs(shape) == anatomy.layers * LAYER[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_structures_of_real_checkpoints(name: str) -> None:
    """F = 0 leaves the low-rank paths alone, F = 1 every dense path, and F = 0.4 retains 0.4 of the dense MACs."""
    shape = shape_of(published(name), layers=6)
    rules = {budget: BudgetRule(budget=budget, start=0.1, end=0.3) for budget in (0.0, 0.4, 1.0)}
    plans = {budget: structure(shape, rule, rank=64, svd_threshold=0.5, r_max=64) for budget, rule in rules.items()}
    nothing, some, everything = (plan.totals for plan in plans.values())
    widths = {(module.projection.d_in, module.projection.d_out) for module in plans[0.0].modules}
    assert widths == set(published(name).sizes().values())
    assert (nothing.kept, nothing.dropped) == (0, 42)
    assert nothing.macs == 64 * sum(sum(size) for size in published(name).sizes().values()) * 6
    assert (everything.kept, everything.macs) == (42, cost.dense_macs(shape))
    retained = sum(module.d * module.projection.macs for module in plans[0.4].modules)
    assert retained == pytest.approx(0.4 * cost.dense_macs(shape), rel=1e-6)
    assert some.kept + some.svd + some.dropped == 42
    assert 1 < steps_needed(shape, BudgetRule(budget=0.0, start=0.1, end=0.3)) < 200


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_as_transformers_builds_it(family: str) -> None:
    model, anatomy = random_model(family), read_anatomy(raw_config(family), where=family)
    assert anatomy.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(anatomy) == model_shape(model)
    assert anatomy.vocab_size == model.config.vocab_size
    narrow = random_model(family, intermediate_size=40)
    layer = sum(parameter.numel() for parameter in narrow.model.layers[0].parameters())
    assert anatomy.beside(ffn=40) + sum(a * b for a, b in anatomy.sizes(ffn=40).values()) == layer


REFUSED = {
    "GPT-2": ({"model_type": "gpt2"}, "model_type is 'gpt2', whose projections are fused (c_attn), expected one of"),
    "experts": ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral', a mixture of experts, expected one of"),
    "pictures": ({"model_type": "gemma3", "text_config": {}}, "'gemma3', which reads more than text, expected one of"),
    "capped": (
        {"model_type": "gemma2", "final_logit_softcapping": 30.0}, "'gemma2', which caps its logits, expected one of"
    ),
    "unknown": ({"model_type": "mine"}, "model_type is 'mine', expected one of gemma, gemma3_text, llama, mistral"),
    "none": ({"model_type": None}, "model_type is None, expected one of"),
    "quantised": (
        {"quantization_config": {"quant_method": "awq"}},
        "its weights are quantised (awq), expected float32, float16 or bfloat16 weights",
    ),
    "a size that is no number": ({"hidden_size": "32"}, "hidden_size is '32', expected a whole number above 0"),
    "no vocabulary": ({"vocab_size": None}, "vocab_size is None, expected a whole number above 0"),
    "heads that do not fit": ({"num_attention_heads": 5}, "without head_dim, 5 heads must divide hidden_size 32"),
    "caps in a known family": (
        {"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, expected none"
    ),
    "no causal model": (
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        "use_bidirectional_attention is on, expected a causal language model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name: str) -> None:
    changes, expected = REFUSED[name]
    with pytest.raises(BadInput) as caught:
        read_anatomy(raw_config("mistral") | changes, where="folder")
    assert str(caught.value).startswith("folder: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# --- in a scale

LONG = {"max_position_embeddings": 1024}  # as many tokens as a window has


def scale_file(folder: Path, *, about: dict[str, Any] | None, **entry: object) -> Path:
    """A scale with one local teacher, whose folder holds a config.json."""
    (folder / "here").mkdir()
    if about is not None:
        (folder / "here" / "config.json").write_text(json.dumps(about | LONG))
    values = {
        "scale": "tiny", "corpus": {"packages": ["numpy"]}, "student": {"layers": 6}, "teachers": "folder",
        "teacher_ladder": {"A": {"folder": str(folder / "here")} | entry}, "lora": {"rank": 4, "alpha": 8},
        "training": {"tokens": 262_144 * 400}, "tables": {"mine": [{"method": "budgeted_lora", "budget": 0.0}]},
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def loaded(path: Path) -> Config:
    return load_config(path)


def test_sizes_come_from_the_checkpoint(tmp_path: Path) -> None:
    path = scale_file(tmp_path, about=raw_config("qwen3"))
    teacher = loaded(path).teacher_ladder["A"]
    assert teacher.shape == {"layers": 6, "hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2}
    assert (teacher.head_dim, teacher.anatomy.attention, teacher.anatomy.tied) == (12, 48, True)
    [plan] = load_graph(path).planned.values()
    assert plan.shape == cost.ModelShape(layers=6, hidden=32, kv=24, ffn=48, attention=48)


def test_a_size_that_is_given_too_changes_no_id(tmp_path: Path) -> None:
    path = scale_file(tmp_path, about=raw_config("mistral"))
    [cell] = load_graph(path).cells
    values = yaml.safe_load(path.read_text())
    values["teacher_ladder"]["A"] |= {"layers": 6, "hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2}
    path.write_text(yaml.safe_dump(values))
    assert list(load_graph(path).cells) == [cell]
    assert "head_dim" not in load_graph(path).config.teacher_ladder["A"].model_dump()


@pytest.mark.parametrize(
    ("about", "entry", "expected"),
    [
        (raw_config("llama"), {"hidden": 64}, "hidden_size is 32, but teacher_ladder.A says 64"),
        (raw_config("qwen3"), {"head_dim": 8}, "head_dim is 12, but teacher_ladder.A says 8"),
        (raw_config("llama", num_hidden_layers=5), {}, "student.layers 6 exceeds the 5 layers of the first teacher"),
        (raw_config("llama", model_type="phi3"), {}, "whose projections are fused (qkv_proj and gate_up_proj)"),
        (None, {}, "expected a checkpoint: it has no config.json"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_job(
    tmp_path: Path, about: dict[str, Any] | None, entry: dict[str, int], expected: str
) -> None:
    path = scale_file(tmp_path, about=about, **entry)
    with pytest.raises(BadInput) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_scale(folder: Path, **entry: object) -> Path:
    path = scale_file(folder, about=None)
    values = yaml.safe_load(path.read_text())
    values |= {"teachers": "hub", "teacher_ladder": {"A": {"hub": "owner/name", "revision": COMMIT} | entry}}
    path.write_text(yaml.safe_dump(values))
    return path


def test_sizes_of_a_checkpoint_on_the_hub_come_from_its_config_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw_config("qwen2") | LONG))
    asked = []

    def download(**about: str) -> str:
        asked.append(about)
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    teacher = load_config(hub_scale(tmp_path)).teacher_ladder["A"]
    assert teacher.anatomy.biased == ("q", "k", "v")
    assert asked == [{"repo_id": "owner/name", "filename": "config.json", "revision": COMMIT}]


def test_the_hub_is_not_asked_where_sizes_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: pytest.fail("asked the Hub"))
    sizes = {"layers": 6, "hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2}
    assert load_config(hub_scale(tmp_path, **sizes)).teacher_ladder["A"].shape == sizes


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_an_empty_head_dim_beside_given_sizes_means_the_same_with_and_without_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    sizes = {"layers": 6, "hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2}
    path = hub_scale(tmp_path, **sizes) if kind == "hub" else scale_file(tmp_path, about=None, **sizes)
    about = tmp_path / "here" / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: str(about) if about.is_file() else None)
    before = load_graph(path)
    about.write_text(json.dumps(raw_config(family) | LONG))  # qwen3 has heads of 12
    with pytest.raises(BadInput, match=r"head_dim is 12, but teacher_ladder\.A says 8") as caught:
        refuse_other_sizes(
            read_anatomy(raw_config("qwen3"), where="later"),
            before.config.teacher_ladder["A"].given_sizes, where="later", name="A",
        )  # fmt: skip
    if family == "qwen3":
        with pytest.raises(BadInput, match=str(caught.value).removeprefix("later: ")):
            load_graph(path)
    else:
        assert list(load_graph(path).cells) == list(before.cells)


@pytest.mark.parametrize("heads", [0, "4", True, None, 4.0], ids=repr)
def test_sizes_that_are_not_yet_checked_say_no_head_dim(heads: object) -> None:
    entry = {"layers": 6, "hidden": 32, "ffn": 48, "heads": heads, "kv_heads": 2, "hub": "owner/name"}
    assert "head_dim" not in sizes_given(entry)
    assert sizes_given(entry | {"heads": 4, "head_dim": 12})["head_dim"] == 12


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, "config.json of owner/name at 0123456789abcdef0123456789abcdef01234567 cannot be read (no route to host)"),
        (
            {"revision": None},
            "teacher_ladder.A.revision must be a commit's 40 hex digits, since its sizes are read there",
        ),
    ],
)
def test_a_hub_that_cannot_say_sizes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], expected: str
) -> None:
    def fail(**_: str) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(BadInput) as caught:
        load_config(hub_scale(tmp_path, **entry))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_papers_decoder_stands_for_teachers_without_a_checkpoint(tmp_path: Path) -> None:
    sizes = {"layers": 6, "hidden": 32, "ffn": 48, "heads": 4, "kv_heads": 2}
    teacher = loaded(scale_file(tmp_path, about=None, **sizes)).teacher_ladder["A"]
    assert teacher.anatomy == Anatomy(**sizes, head_dim=8)
    assert replace(teacher.anatomy, vocab_size=100).parameters > 0
