import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from budgeted_lora.data.token_bytes import TokenBytes
from budgeted_lora.data.tokens import TokenFile, Windows, write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import perplexity as module
from budgeted_lora.evaluation.perplexity import bits_per_byte, perplexity, scored_bytes, summarise

VOCABULARY, LENGTH = 61, 16


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small matrices on shared cores: a second thread mostly waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=1,
        vocab_size=VOCABULARY, sliding_window=None, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, so that a wrong target shows
    return model


@pytest.fixture(scope="module")
def token_file(tmp_path_factory) -> TokenFile:
    generator = np.random.default_rng(0)
    documents = [generator.integers(1, VOCABULARY, size=size).tolist() for size in (5, 40, 3, 90, 16, 0, 15, 30)]
    path = tmp_path_factory.mktemp("tokens") / "validation.bin"
    write_tokens(path, iter(documents), vocab_size=VOCABULARY, eos_id=0)
    return TokenFile.open(path)


def reference(model: MistralForCausalLM, windows: list[list[int]]) -> tuple[float, list[float]]:
    """Perplexity token by token in float64, each window alone and unpadded."""
    exact = copy.deepcopy(model).double()
    sums, count = [], 0
    for window in windows:
        with torch.no_grad():
            log_probabilities = torch.log_softmax(exact(torch.tensor([window])).logits[0], dim=-1)
        sums.append(-sum(float(log_probabilities[i, token]) for i, token in enumerate(window[1:])))
        count += len(window) - 1
    return math.exp(sum(sums) / count), sums


def run(model, token_file, *, packing="packed", tokens=None, batch_windows=4):
    windows = Windows(token_file, LENGTH, packing)
    return perplexity(model, windows, token_limit=tokens, batch_windows=batch_windows)


def test_packed_windows_match_a_float64_reference(model, token_file):
    flat = token_file.tokens.tolist()
    windows = [flat[i : i + LENGTH] for i in range(0, len(flat) - LENGTH + 1, LENGTH)]
    value, sums = reference(model, windows)
    result = run(model, token_file)
    assert result.value == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(result.window_nll, sums, rtol=1e-5)
    assert result.token_count == len(windows) * (LENGTH - 1)


def test_document_rows_score_no_padding(model, token_file):
    offsets = token_file.offsets.tolist()
    documents = [token_file.tokens[a:b].tolist()[:LENGTH] for a, b in itertools.pairwise(offsets)]
    scored = [document for document in documents if len(document) > 1]
    value, sums = reference(model, scored)
    result = run(model, token_file, packing="document")
    assert len(scored) < len(documents)  # a document of one token has nothing to predict
    assert result.value == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(result.window_nll, sums, rtol=1e-5)
    assert result.window_count.tolist() == [len(document) - 1 for document in scored]


SIZES = TokenBytes(np.arange(VOCABULARY) % 7, added=1, end_id=0)  # token 0 ends documents and has no bytes


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("tokens", [None, 70])
def test_bits_per_byte_match_a_float64_reference(model, token_file, packing, tokens):
    """Token by token over every window, each scored token with its own bytes, in plain Python."""
    flat, offsets = token_file.tokens.tolist(), token_file.offsets.tolist()
    pieces = [(start, start + LENGTH) for start in range(0, len(flat) - LENGTH + 1, LENGTH)]
    if packing == "document":
        pieces = [(start, min(end, start + LENGTH)) for start, end in itertools.pairwise(offsets)]
    if tokens:
        pieces = [piece for piece in pieces if sum(b - a for a, b in pieces if b <= piece[1]) <= tokens]
    pieces = [piece for piece in pieces if piece[1] - piece[0] > 1]
    starts = {start for start, end in itertools.pairwise(offsets) if end - start > 1}
    size = sum(flat[i] % 7 - (i in starts) for a, b in pieces for i in range(a + 1, b))
    _, sums = reference(model, [flat[a:b] for a, b in pieces])

    amounts = {"token_limit": tokens, "batch_windows": 3}
    counted = scored_bytes(Windows(token_file, LENGTH, packing), SIZES, **amounts)
    assert counted == size
    nats = float(run(model, token_file, packing=packing, tokens=tokens).window_nll.sum())
    assert bits_per_byte(nats, size=counted) == pytest.approx(sum(sums) / math.log(2) / size, rel=1e-5)
    assert bits_per_byte(nats, size=0) is None


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("tokens", [None, 70])
def test_batch_size_changes_nothing(model, token_file, packing, tokens):
    one = run(model, token_file, packing=packing, tokens=tokens, batch_windows=1)
    for batch_windows in (2, 3, 100):
        other = run(model, token_file, packing=packing, tokens=tokens, batch_windows=batch_windows)
        assert other.window_count.tolist() == one.window_count.tolist()
        np.testing.assert_allclose(other.window_nll, one.window_nll, rtol=1e-5)
        assert other.standard_error == pytest.approx(one.standard_error, rel=1e-4)


def test_token_limit_takes_whole_windows_from_the_start(model, token_file):
    everything, part = run(model, token_file), run(model, token_file, tokens=3 * LENGTH + 5)
    np.testing.assert_allclose(part.window_nll, everything.window_nll[:3], rtol=1e-6)
    assert len(run(model, token_file, tokens=1).window_nll) == 1


def test_head_in_pieces_gives_the_same(model, token_file, monkeypatch):
    whole = run(model, token_file)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 7 * VOCABULARY)
    np.testing.assert_allclose(run(model, token_file).window_nll, whole.window_nll, rtol=1e-6)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(model, token_file):
    blind = copy.deepcopy(model)
    blind.lm_head.weight.data.zero_()
    result = run(blind, token_file)
    assert result.value == pytest.approx(VOCABULARY, rel=1e-6)
    assert result.standard_error == pytest.approx(0.0, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.5, 6.0), min_size=2, max_size=30), st.integers(1, 200))
def test_error_of_equal_windows_is_that_of_their_means(means, count):
    result = summarise(np.array(means) * count, np.full(len(means), count))
    expected = math.exp(np.mean(means)) * np.std(means, ddof=1) / math.sqrt(len(means))
    assert result.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_error_predicts_the_spread_of_repeated_samples():
    generator = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(400):
        count = generator.integers(5, 100, size=80)
        rate = 3.0 + 0.4 * generator.standard_normal(80) + 0.002 * count
        result = summarise(rate * count, count)
        values.append(result.value)
        errors.append(result.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)


def test_one_window_has_no_error():
    assert summarise(np.array([10.0]), np.array([5])).standard_error == 0.0


def test_refusals(model, token_file, tmp_path):
    write_tokens(tmp_path / "short.bin", iter([[1, 2]]), vocab_size=VOCABULARY, eos_id=0)
    with pytest.raises(BadInput, match=r"short\.bin: no window of 16 tokens"):
        run(model, TokenFile.open(tmp_path / "short.bin"))
    write_tokens(tmp_path / "large.bin", iter([[VOCABULARY + 3] * 40]), vocab_size=2 * VOCABULARY, eos_id=0)
    with pytest.raises(BadInput, match=f"token {VOCABULARY + 3} .* {VOCABULARY} entries"):
        run(model, TokenFile.open(tmp_path / "large.bin"))
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[3] = float("nan")
    with pytest.raises(BadInput, match="not finite"):
        run(broken, token_file)


@pytest.mark.parametrize("loss", [710.0, 1e30, math.inf, math.nan])
def test_a_loss_whose_perplexity_is_no_number_is_one_line(loss: float) -> None:
    with pytest.raises(BadInput, match=r"nats per token, whose perplexity is no number"):
        summarise(np.array([loss * 10, 10.0]), np.array([10, 10]) if loss > 1e3 or loss != loss else np.array([10, 0]))
    assert summarise(np.array([6000.0]), np.array([10])).value == math.exp(600)
