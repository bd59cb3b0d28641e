"""The decoder for scoring against transformers' own classes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation.decoding import greedy_decode
from budgeted_lora.models.compressed import untrained
from budgeted_lora.models.decoder import Decoder, load_decoder, shape_of
from budgeted_lora.models.load import load_model, mistral_config, new_model, save_model

VOCABULARY = 61


def a_model(*, layers: int = 2, kv_heads: int = 2, group: int = 2, head_dim: int = 4, factorized=()) -> PreTrainedModel:
    """A random Mistral model whose parts all matter, with some projections factorised."""
    heads = kv_heads * group
    config = mistral_config(
        layers=layers, hidden=heads * head_dim, ffn=24, heads=heads, kv_heads=kv_heads, vocab_size=VOCABULARY,
        context=64, end_id=0,
    )  # fmt: skip
    model = untrained(new_model(config, seed=0), dict(factorized))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator).add_(parameter.ndim == 1)
    return model.eval()


def ours(model: PreTrainedModel) -> Decoder:
    """The decoder of a transformers model's configuration and weights."""
    about = model.config.to_dict()
    decoder = Decoder(shape_of(about), about.get("factorized") or {})
    decoder.load_state_dict(model.state_dict(), strict=True)
    return decoder.to(model.dtype).eval()


def ids_of(*, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


FACTORS = {
    "model.layers.0.self_attn.k_proj": 2,
    "model.layers.0.mlp.down_proj": 3,
    "model.layers.1.self_attn.o_proj": 1,
}
shapes = st.fixed_dictionaries(
    {"layers": st.integers(2, 3), "kv_heads": st.integers(1, 2), "group": st.integers(1, 3),
     "head_dim": st.sampled_from([2, 4, 6]), "factorized": st.sampled_from([{}, FACTORS])}
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(shapes, st.integers(1, 3), st.integers(1, 12))
def test_states_and_logits_are_those_of_transformers_in_float64(shape, rows, length):
    """But for its norms, which transformers computes in float32 whatever the dtype."""
    model = a_model(**shape).double()
    own, ids = ours(model), ids_of(rows=rows, length=length)
    with torch.no_grad():
        states, logits = model.model(input_ids=ids, use_cache=False).last_hidden_state, model(input_ids=ids).logits
        torch.testing.assert_close(own.model(ids).last_hidden_state, states, rtol=0, atol=1e-5)
        torch.testing.assert_close(own(ids).logits, logits, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(shapes, st.integers(1, 8), st.integers(1, 4))
def test_one_token_at_a_time_gives_the_last_logits_of_the_whole(shape, length, steps):
    own, ids = ours(a_model(**shape).double()), ids_of(rows=2, length=length + steps)
    past, begun = None, 0
    for end in range(length, length + steps + 1):
        out = own(ids[:, begun:end], past_key_values=past, use_cache=True, logits_to_keep=1)
        past, begun = out.past_key_values, end
        torch.testing.assert_close(out.logits[:, 0], own(ids[:, :end]).logits[:, -1], rtol=0, atol=1e-12)


def test_greedy_decoding_chooses_the_tokens_of_transformers():
    model = a_model(factorized=FACTORS)
    prompts = [ids_of(rows=1, length=length, seed=length)[0].tolist() for length in (1, 3, 3, 3, 9, 9)]
    settings_of = {"limits": [4, 2, 5, 1, 6, 6], "stops": torch.arange(VOCABULARY) % 9 == 0, "batch": 2}
    chosen = greedy_decode(ours(model), prompts, **settings_of)
    assert chosen == greedy_decode(model, prompts, **settings_of)
    assert len({len(tokens) for tokens in chosen}) > 1


# --- from a folder


@pytest.mark.parametrize("factorized", [{}, FACTORS], ids=["plain", "compressed"])
def test_a_saved_model_is_read_without_transformers_class(tmp_path: Path, factorized: dict) -> None:
    model = a_model(factorized=factorized)
    save_model(model, tmp_path / "model")
    own, ids = load_decoder(tmp_path / "model"), ids_of(rows=2, length=7)
    assert isinstance(own, Decoder)
    assert not own.training
    assert not any(parameter.requires_grad for parameter in own.parameters())
    with torch.no_grad():
        torch.testing.assert_close(own(ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_shards_half_precision_and_older_keys_of_a_llama(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="8KB")
    about = json.loads((tmp_path / "config.json").read_text())
    about.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(about | {"rope_theta": 500.0, "rope_scaling": None}))
    own, ids = load_decoder(tmp_path), ids_of(rows=1, length=40)
    assert isinstance(own, Decoder)
    assert own.config.theta == 500.0
    with torch.no_grad():
        logits = load_model(tmp_path)(input_ids=ids).logits
        torch.testing.assert_close(own(ids).logits, logits, rtol=1e-4, atol=1e-4)


def test_a_compressed_llama_has_its_own_rotary_base_and_ends(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=[3, 5], initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    model = untrained(new_model(config, seed=0), FACTORS)
    save_model(model, tmp_path)
    own, ids = load_decoder(tmp_path), ids_of(rows=2, length=30)
    assert isinstance(own, Decoder)
    assert own.config.eos_token_id == model.config.eos_token_id == [3, 5]
    with torch.no_grad():
        torch.testing.assert_close(own(ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


OTHERS = {
    "sliding_window": 8,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "hidden_act": "gelu",
    "num_key_value_heads": None,
    "head_dim": 4.0,
    "num_hidden_layers": "2",
    "num_attention_heads": 0,
    "rms_norm_eps": None,
    "rope_scaling": "linear",
}


@pytest.mark.parametrize("key", OTHERS)
def test_what_it_does_not_cover_is_left_to_transformers(key: str) -> None:
    about = a_model().config.to_dict()
    assert shape_of(about) is not None
    rope = {"rope_parameters": None, "rope_theta": 10000.0}
    assert shape_of(about | rope) is not None
    assert shape_of(about | (rope if key == "rope_scaling" else {}) | {key: OTHERS[key]}) is None
    assert shape_of({name: value for name, value in about.items() if name != "num_key_value_heads"}) is None


def test_a_model_with_a_sliding_window_is_scored_by_its_own_class(tmp_path: Path) -> None:
    save_model(a_model(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 4}))
    model, ids = load_decoder(tmp_path / "model"), ids_of(rows=1, length=9)
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, a_model()(input_ids=ids).logits)


def test_a_llama_with_a_size_of_null_is_scored_by_its_own_class(tmp_path: Path) -> None:
    """Which then has as many heads of keys and values as of queries; Mistral's class refuses null."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    for name, model in {"llama": new_model(config, seed=0), "mistral": a_model()}.items():
        save_model(model, tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": None}))
    loaded, ids = load_decoder(tmp_path / "llama"), ids_of(rows=1, length=9)
    assert isinstance(loaded, PreTrainedModel)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, new_model(config, seed=0).eval()(input_ids=ids).logits)
    with pytest.raises(BadInput, match="num_key_value_heads"):
        load_decoder(tmp_path / "mistral")


def test_other_weights_beside_the_models_own_are_not_read(tmp_path: Path) -> None:
    save_model(a_model(), tmp_path)
    save_file({"layers.0.wq": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    load_decoder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"factorized": {"model.layers.0.mlp.up_proj": 2.5}}))
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_decoder(tmp_path)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    save_model(a_model(), tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(path)
    rest = {key: tensor for key, tensor in weights.items() if key != name}
    for wrong in (rest, weights | {"model.layers.2.mlp.up_proj.weight": weights[name]}, rest | {name: torch.zeros(3)}):
        save_file({key: tensor.clone() for key, tensor in wrong.items()}, path, metadata={"format": "pt"})
        with pytest.raises(BadInput) as caught:
            load_decoder(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "mlp.up_proj.weight" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"cut")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BadInput, match="gpt2"):
        load_decoder(tmp_path)
