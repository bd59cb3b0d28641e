import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM

from budgeted_lora.data import probes as rules
from budgeted_lora.data.probes import Pair
from budgeted_lora.data.tokenizer import END
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import icl
from budgeted_lora.evaluation.decoding import batches, greedy_decode
from budgeted_lora.stages.train_tokenizer import train_bpe

SLICE, VOCABULARY = 40, 600


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small matrices on shared cores: a second thread mostly waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    texts = (rules.function_document(number, seed=0, slice_per_mille=SLICE) for number in range(400))
    return train_bpe(texts, vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def end_id(tokenizer):
    return tokenizer.token_to_id(END)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MistralConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=1,
        vocab_size=VOCABULARY, sliding_window=None, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)  # so that the continuation depends on the prompt
    return model


@pytest.fixture(scope="module")
def probes():
    return icl.generated_probes(shots=10, queries=4, slice_per_mille=SLICE)


@pytest.fixture(scope="module")
def examples(probes):
    return icl.build_examples(probes, seeds=[0, 1], space=False)


def test_prompt_is_the_papers():
    pairs = [Pair("without", "Without"), Pair("dog", "Dog")]
    assert rules.prompt(pairs, "cat") == "Q:without\nA:Without\n\nQ:dog\nA:Dog\n\nQ:cat\nA:"
    assert rules.prompt(pairs[:1], "cat", space=True) == "Q: without\nA: Without\n\nQ: cat\nA:"


def test_examples_have_ten_fresh_demonstrations_from_the_train_part(probes, examples):
    assert {example.probe for example in examples} == set(rules.PROBES)
    assert len(rules.PROBES) == 19
    for example in examples:
        shown, query = example.prompt.rsplit("\n\n", 1)
        blocks = [block.removeprefix("Q:").split("\nA:") for block in shown.split("\n\n")]
        assert query == f"Q:{example.query}\nA:"
        assert len({tuple(block) for block in blocks}) == 10
        assert example.query not in {text for text, _ in blocks}
        assert rules.is_held_out(example.probe, example.query, slice_per_mille=SLICE)
        assert not any(rules.is_held_out(example.probe, text, slice_per_mille=SLICE) for text, _ in blocks)
        assert tuple(output for _, output in blocks) == example.demonstrated
    prompts = {example.prompt.rsplit("\n\n", 1)[0] for example in examples}
    assert len(prompts) == len(examples)  # fresh for each query and seed


def test_prompts_depend_on_probe_seed_and_query_alone(probes, examples):
    fewer = icl.build_examples(probes[5:7], seeds=[1], space=False)
    known = {(example.probe, example.seed, example.query): example.prompt for example in examples}
    assert all(known[example.probe, example.seed, example.query] == example.prompt for example in fewer)


def test_a_query_among_its_demonstrations_is_refused():
    probe = icl.Probe("capitalize", [Pair("dog", "Dog")], lambda generator: [Pair("cat", "Cat"), Pair("dog", "Dog")])
    with pytest.raises(BadInput, match="'dog' is among its own demonstrations"):
        icl.build_examples([probe], seeds=[0], space=False)


def test_original_files_split_by_input(tmp_path):
    for name in rules.PROBES:
        records = [{"input": f"w{i}", "output": f"W{i}"} for i in range(1000)] + [{"input": "w7", "output": "other"}]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    probe = icl.original_probes(tmp_path, shots=10, queries=500)[0]
    asked = {pair.input for pair in probe.queries}
    assert len(asked) == 210
    generator = random.Random(0)
    drawn = {pair.input for _ in range(300) for pair in probe.draw(generator)}
    assert len(drawn) > 600
    assert not drawn & asked
    assert probe.answers["w7"] == {"W7", "other"}
    (tmp_path / "capitalize.json").write_text(json.dumps(records[:10]))
    with pytest.raises(BadInput, match=r"capitalize\.json: 7 records to demonstrate with; expected at least 10"):
        icl.original_probes(tmp_path, shots=10, queries=5)
    (tmp_path / "capitalize.json").write_text(json.dumps(records[:2]))
    with pytest.raises(BadInput, match=r"capitalize\.json: 2 records, too few for a query"):
        icl.original_probes(tmp_path, shots=1, queries=5)


def plain_greedy(model, prompt, limit, stops):
    """One prompt at a time, without a cache."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if stops[ids[-1]]:
            break
    return ids[len(prompt) :]


def test_batched_decoding_equals_one_prompt_at_a_time_without_cache(model, tokenizer, end_id, examples):
    encoded = icl.encode_examples(examples[::6], tokenizer, sequence_length=512, space=False)
    stops = icl.stop_tokens(tokenizer, end_ids=[end_id], vocab_size=VOCABULARY)
    stops |= torch.arange(VOCABULARY) % 7 == 0  # a random model rarely says newline; let rows end at different steps
    alone = [plain_greedy(model, p, n, stops) for p, n in zip(encoded.prompts, encoded.limits, strict=True)]
    assert len({len(tokens) for tokens in alone}) > 1
    assert len({tuple(tokens) for tokens in alone}) > 10
    for batch in (1, 64):
        assert greedy_decode(model, encoded.prompts, limits=encoded.limits, stops=stops, batch=batch) == alone
    shuffled = list(range(len(alone)))
    random.Random(0).shuffle(shuffled)
    prompts, limits = [encoded.prompts[i] for i in shuffled], [encoded.limits[i] for i in shuffled]
    again = greedy_decode(model, prompts, limits=limits, stops=stops, batch=8)
    assert again == [alone[i] for i in shuffled]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=40), st.integers(1, 7))
def test_batches_cover_every_prompt_once_and_hold_one_length(items, batch):
    lengths, limits = [a for a, _ in items], [b for _, b in items]
    groups = batches(lengths, limits, batch=batch)
    assert sorted(index for group in groups for index in group) == list(range(len(items)))
    assert all(len(group) <= batch and len({lengths[i] for i in group}) == 1 for group in groups)


class Scripted(torch.nn.Module):
    """Continues each known prompt with given tokens, as a causal model with a cache would."""

    def __init__(self, scripts: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__()
        self.scripts, self.steps = scripts, 0
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"vocab_size": VOCABULARY})

    def forward(self, input_ids, past_key_values, use_cache, logits_to_keep):
        if past_key_values is None:
            past_key_values = {"rows": [self.scripts[tuple(row)] for row in input_ids.tolist()], "step": 0}
        self.steps += 1
        logits = torch.zeros(len(input_ids), 1, VOCABULARY)
        for row, script in enumerate(past_key_values["rows"]):
            logits[row, 0, script[min(past_key_values["step"], len(script) - 1)]] = 1.0
        past_key_values["step"] += 1
        return type("Output", (), {"logits": logits, "past_key_values": past_key_values})


def scripted_score(probes, examples, tokenizer, end_id, say):
    encoded = icl.encode_examples(examples, tokenizer, sequence_length=512, space=False)
    spoken = [tokenizer.encode(say(example)).ids for example in examples]
    scripts = {tuple(prompt): ids for prompt, ids in zip(encoded.prompts, spoken, strict=True)}
    model = Scripted(scripts)
    answers, encoded = icl.answer_examples(model, tokenizer, examples, end_id=end_id, sequence_length=512, batch=16)
    return icl.summarise(probes, examples, icl.example_rows(examples, answers, encoded)), model


def test_right_answers_score_one_and_case_counts(probes, examples, tokenizer, end_id):
    perfect, _ = scripted_score(probes, examples, tokenizer, end_id, lambda example: f"{example.expected}\n\nQ:more")
    assert perfect["composite"] == 1.0
    assert perfect["composite_se"] == 0.0
    assert perfect["per_seed"] == {"0": 1.0, "1": 1.0}
    lowered, _ = scripted_score(probes, examples, tokenizer, end_id, lambda example: f"{example.expected.lower()}\n")
    assert lowered["probes"]["capitalize"]["accuracy"] == 0.0
    assert lowered["probes"]["choose_first_of_3"]["accuracy"] == 1.0
    runs_on, _ = scripted_score(probes, examples, tokenizer, end_id, lambda example: f"{example.expected}s and more\n")
    assert runs_on["composite"] == 0.0
    nothing, _ = scripted_score(probes, examples, tokenizer, end_id, lambda example: f"\n{example.expected}")
    assert nothing["composite"] == 0.0


def test_decoding_stops_when_every_row_has_said_newline(probes, tokenizer, end_id):
    asked = [probe for probe in probes if probe.name == "choose_first_of_5"]
    long = icl.build_examples(asked, seeds=[0], space=False)
    encoded = icl.encode_examples(long, tokenizer, sequence_length=512, space=False)
    assert min(encoded.limits) > 2
    _, model = scripted_score(asked, long, tokenizer, end_id, lambda _: "\n")
    assert model.steps == len({len(prompt) for prompt in encoded.prompts})  # one pass a batch


def test_limits_are_the_longest_answer_and_one_more(examples, tokenizer):
    encoded = icl.encode_examples(examples, tokenizer, sequence_length=512, space=False)
    for probe in rules.PROBES:
        mine = [i for i, example in enumerate(examples) if example.probe == probe]
        longest = max(len(tokenizer.encode(examples[i].expected).ids) for i in mine)
        assert {encoded.limits[i] for i in mine} == {longest + 1}
    assert encoded.prefix_breaks == 0  # byte-level BPE never merges across `A:` and a letter or digit


def test_prefix_breaks_are_counted(examples):
    vocabulary = {"[unk]": 0, "Q:dog": 1, "A:": 2, "A:Dog": 3, "Dog": 4}
    colon = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    colon.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # joins `A:` with the answer: "A:Dog" is one token
    example = icl.Example("capitalize", 0, "dog", "Dog", "Q:dog\nA:", ())
    assert icl.encode_examples([example], colon, sequence_length=9, space=False).prefix_breaks == 1
    assert icl.encode_examples([example], colon, sequence_length=9, space=True).prefix_breaks == 0


def test_a_prompt_that_does_not_fit_is_refused(examples, tokenizer):
    longest = icl.encode_examples(examples, tokenizer, sequence_length=4096, space=False).longest
    icl.encode_examples(examples, tokenizer, sequence_length=longest, space=False)
    message = rf"probe \w+_5: .* {longest} tokens; expected at most {longest - 1}"
    with pytest.raises(BadInput, match=message):
        icl.encode_examples(examples, tokenizer, sequence_length=longest - 1, space=False)


def test_answers_are_cut_at_the_first_newline(tokenizer, end_id):
    def read(text):
        return icl.read_answer(tokenizer, tokenizer.encode(text).ids)

    assert read(" Dog \n\nQ:cat") == "Dog"
    assert read("\nDog") == ""
    assert icl.read_answer(tokenizer, [*tokenizer.encode("Dog").ids, end_id]) == "Dog"
    stops = icl.stop_tokens(tokenizer, end_ids=[end_id], vocab_size=VOCABULARY + 8)
    assert stops[end_id]
    assert all(stops[token] for token in tokenizer.encode("\n").ids)
    assert not any(stops[token] for token in tokenizer.encode("Dog:, QA").ids)
    with pytest.raises(BadInput, match=f"tokenizer has {VOCABULARY} tokens, the model's vocabulary 50"):
        icl.stop_tokens(tokenizer, end_ids=[end_id], vocab_size=50)


def example_of(probe: str, query: Pair, shown: list[str], seed: int = 0) -> icl.Example:
    return icl.Example(probe, seed, query.input, query.output, "", tuple(shown))


def test_chance_levels():
    queries = [Pair("a, b, c", "a"), Pair("d, e, f", "d"), Pair("a, g, h", "a"), Pair("i, j, k", "i")]
    probe = icl.Probe("choose_first_of_3", queries, lambda generator: [])
    found = icl.chance(probe, [example_of(probe.name, query, ["d", "d", "a"]) for query in queries])
    assert found["chance_constant"] == 0.5
    assert found["chance_constant_answer"] == "a"
    assert found["chance_constant_shown"] == 0.25
    assert found["chance_word"] == pytest.approx(1 / 3)
    assert found["ceiling"] == 1.0
    answers = {"i": frozenset({"j", "ii"}), "5": frozenset({"6"})}
    ambiguous = icl.Probe("next_item", [Pair("i", "j"), Pair("5", "6")], lambda generator: [], answers)
    found = icl.chance(ambiguous, [example_of("next_item", Pair("i", "j"), ["6"])])
    assert found["ceiling"] == 0.75
    assert found["chance_word"] is None


def test_ceiling_of_the_neighbour_probes_is_a_little_under_one():
    full = icl.generated_probes(shots=10, queries=300, slice_per_mille=999)
    for probe in full:
        ceiling = icl.chance(probe, [example_of(probe.name, probe.queries[0], ["x"])])["ceiling"]
        assert 0.9 < ceiling < 1.0 if "item" in probe.name else ceiling == 1.0


def test_composite_is_a_macro_mean_with_the_larger_chance_level():
    first = icl.Probe("choose_first_of_3", [Pair("a, b, c", "a")], lambda generator: [])
    second = icl.Probe("capitalize", [Pair("dog", "Dog"), Pair("cat", "Cat"), Pair("cow", "Cow")], lambda generator: [])
    asked = [example_of(p.name, q, ["Dog"], seed) for p in (first, second) for seed in (0, 1) for q in p.queries]
    right = [True, False, True, True, False, False, True, False]
    rows = [
        {"probe": e.probe, "seed": e.seed, "query": e.query, "expected": e.expected, "correct": hit}
        for e, hit in zip(asked, right, strict=True)
    ]
    found = icl.summarise([first, second], asked, rows)
    assert found["composite"] == pytest.approx((1 / 2 + 3 / 6) / 2)
    assert found["per_seed"] == pytest.approx({"0": (1 + 2 / 3) / 2, "1": (0 + 1 / 3) / 2})
    assert found["chance_composite"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["composite_se"] == pytest.approx(math.hypot(found["probes"]["capitalize"]["se"], 0) / 2)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 4))
def test_repeating_a_query_under_more_seeds_adds_no_certainty(hits, seeds):
    once = icl.cluster_error([[float(hit)] for hit in hits])
    assert icl.cluster_error([[float(hit)] * seeds for hit in hits]) == pytest.approx(once, abs=1e-12)
    assert once == pytest.approx(np.std(hits, ddof=1) / math.sqrt(len(hits)), abs=1e-12)


def test_cluster_error_predicts_the_spread_over_repeated_draws():
    generator = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(600):
        ease = generator.beta(0.5, 0.5, size=60)
        hits = generator.random((60, 3)) < ease[:, None]
        means.append(hits.mean())
        errors.append(icl.cluster_error(hits.astype(float).tolist()))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
