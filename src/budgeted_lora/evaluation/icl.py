"""In-context learning on the 19 function-style probes: prompts, exact match, chance and ceiling (method.md 7).

A prompt is tokenised as one string that ends at the query's `A:`; the answer follows directly. `decoding.py` decodes;
this module builds the prompts and scores the answers.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from budgeted_lora.data import probes as rules
from budgeted_lora.data.probes import Pair
from budgeted_lora.data.tokenizer import vocabulary_size
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation.decoding import greedy_decode

TRAIN_PERCENT, TEST_PERCENT = 70, 21  # of an original file's inputs: 70 % train, 70 % of the rest test


@dataclass(frozen=True)
class Probe:
    """One probe: its queries, a function that draws its demonstrations, and every answer its data gives per input."""

    name: str
    queries: list[Pair]
    draw: Callable[[random.Random], list[Pair]]
    answers: Mapping[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One query under one demonstration seed; `demonstrated` holds the outputs of its demonstrations."""

    probe: str
    seed: int
    query: str
    expected: str
    prompt: str
    demonstrated: tuple[str, ...]


def generated_probes(*, shots: int, queries: int, slice_per_mille: int, hold_out_words: bool = False) -> list[Probe]:
    """Our probes: queries from the held-out pairs, demonstrations from the others, split by MD5 of (probe, input).

    Raises:
        BadInput: the slice is so narrow that a probe has no query.
    """
    split = {"slice_per_mille": slice_per_mille, "hold_out_words": hold_out_words}
    probes = []
    for name in rules.PROBES:
        draw = partial(rules.demonstrations, name, count=shots, **split)
        known_pairs = () if name in rules.LIST_PROBES else rules.fixed_pairs(name)
        chosen = rules.queries(name, count=queries, **split)
        if not chosen:
            slice_text = f"a slice of {slice_per_mille} per mille"
            raise BadInput(f"probe {name}: no query in {slice_text}; widen corpus.slice_per_mille")
        probes.append(Probe(name, chosen, draw, _answers(known_pairs)))
    return probes


def original_probes(folder: Path | str, *, shots: int, queries: int) -> list[Probe]:
    """The original files: inputs in MD5 order, the first 70 % for demonstrations, the next 21 % for queries.

    The paper's own split is not published. Splitting by input keeps both answers of an ambiguous input on one side.

    Raises:
        BadInput: a file is missing or holds too few records for the demonstrations or for a query.
    """
    probes = []
    for name, pairs in rules.read_original(folder).items():
        inputs = sorted(
            {pair.input for pair in pairs}, key=lambda text: md5(text.encode(), usedforsecurity=False).digest()
        )
        train_end = len(inputs) * TRAIN_PERCENT // 100
        test_end = len(inputs) * (TRAIN_PERCENT + TEST_PERCENT) // 100
        place = {text: number for number, text in enumerate(inputs)}
        to_show = [pair for pair in pairs if place[pair.input] < train_end]
        if len(to_show) < shots:
            path = Path(folder) / f"{name}.json"
            raise BadInput(f"{path}: {len(to_show)} records to demonstrate with; expected at least {shots}")
        test = [pair for pair in pairs if train_end <= place[pair.input] < test_end]
        if not test:
            raise BadInput(f"{Path(folder) / f'{name}.json'}: {len(pairs)} records, too few for a query; expected more")
        test.sort(key=lambda pair, place=place: place[pair.input])

        def draw(generator: random.Random, pairs: list[Pair] = to_show) -> list[Pair]:
            return generator.sample(pairs, shots)

        probes.append(Probe(name, test[:queries], draw, _answers(pairs)))
    return probes


def _answers(pairs: Sequence[Pair]) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for pair in pairs:
        known.setdefault(pair.input, set()).add(pair.output)
    return known


def build_examples(probes: Sequence[Probe], *, seeds: Sequence[int], space: bool) -> list[Example]:
    """Every query of every probe under every seed, each with its own demonstrations.

    The draw depends only on the probe, the seed and the query, so fewer queries or other probes change no prompt.

    Raises:
        BadInput: a query is among its own demonstrations.
    """
    examples = []
    for probe in probes:
        for seed in seeds:
            for query in probe.queries:
                shown = probe.draw(random.Random(f"demonstrations {probe.name} {seed} {query.input} {query.output}"))
                if any(pair.input == query.input for pair in shown):
                    raise BadInput(f"probe {probe.name}: query {query.input!r} is among its own demonstrations")
                prompt = rules.prompt(shown, query.input, space=space)
                outputs = tuple(pair.output for pair in shown)
                examples.append(Example(probe.name, seed, query.input, query.output, prompt, outputs))
    return examples


@dataclass(frozen=True)
class Encoded:
    """Tokenised prompts.

    Attributes:
        prompts: token ids of each prompt.
        limits: most new tokens for each prompt.
        prefix_breaks: prompts that are not a token prefix of prompt + answer, so that the model answers at a token
            boundary that training text would not have.
        longest: tokens of the longest prompt with its answer.
    """

    prompts: list[list[int]]
    limits: list[int]
    prefix_breaks: int
    longest: int


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer, *, sequence_length: int, space: bool) -> Encoded:
    """Tokenises prompts; the limit of new tokens is the longest answer of the probe plus one.

    Raises:
        BadInput: a prompt with its answer is longer than `sequence_length` tokens. Prompts are never truncated.
    """
    gap = " " if space else ""
    prompts = _ids(tokenizer, [example.prompt for example in examples])
    wholes = _ids(tokenizer, [example.prompt + gap + example.expected for example in examples])
    answers = _ids(tokenizer, [gap + example.expected for example in examples])
    longest_answer: dict[str, int] = {}
    breaks, longest = 0, 0
    for example, prompt, whole, answer in zip(examples, prompts, wholes, answers, strict=True):
        length = max(len(whole), len(prompt) + 1)
        if length > sequence_length:
            raise BadInput(
                f"probe {example.probe}: a prompt with its answer has {length} tokens; "
                f"expected at most {sequence_length} (evaluation.context, or sequence_length)"
            )
        breaks += whole[: len(prompt)] != prompt
        longest = max(longest, length)
        needed = max(len(whole) - len(prompt), len(answer))
        longest_answer[example.probe] = max(longest_answer.get(example.probe, 1), needed)
    return Encoded(prompts, [longest_answer[example.probe] + 1 for example in examples], breaks, longest)


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def end_tokens(model: torch.nn.Module) -> list[int]:
    """The ids that end a text by the model's configuration: none, one, or several."""
    ends = getattr(model.config, "eos_token_id", None)
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def stop_tokens(tokenizer: Tokenizer, *, end_ids: Sequence[int], vocab_size: int) -> torch.Tensor:
    """Bool [vocab_size]: True for tokens whose text contains a newline and for those that end a text.

    Raises:
        BadInput: the tokenizer has more tokens than the model.
    """
    token_count = vocabulary_size(tokenizer)
    if token_count > vocab_size:
        raise BadInput(f"the tokenizer has {token_count} tokens, the model's vocabulary {vocab_size}")
    texts = tokenizer.decode_batch([[token] for token in range(token_count)], skip_special_tokens=False)
    stops = torch.zeros(vocab_size, dtype=torch.bool)
    stops[:token_count] = torch.tensor(["\n" in text for text in texts])
    stops[[end for end in end_ids if end < vocab_size]] = True
    return stops


def read_answer(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Decoded text up to the first newline, without surrounding white space."""
    return tokenizer.decode(tokens, skip_special_tokens=True).split("\n", 1)[0].strip()


def answer_examples(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    end_id: int,
    sequence_length: int,
    batch: int,
    space: bool = False,
) -> tuple[list[str], Encoded]:
    """The model's answer to every example, in order, and the tokenised prompts.

    Raises:
        BadInput: from `encode_examples` or `stop_tokens`.
    """
    encoded = encode_examples(examples, tokenizer, sequence_length=sequence_length, space=space)
    ends = [end_id, *end_tokens(model)]
    stops = stop_tokens(tokenizer, end_ids=ends, vocab_size=model.config.vocab_size)
    decoded = greedy_decode(model, encoded.prompts, limits=encoded.limits, stops=stops, batch=batch)
    return [read_answer(tokenizer, tokens) for tokens in decoded], encoded


def example_rows(examples: Sequence[Example], answers: Sequence[str], encoded: Encoded) -> list[dict[str, Any]]:
    """One record per example; exact match is case-sensitive."""
    rows = []
    for example, answer, prompt in zip(examples, answers, encoded.prompts, strict=True):
        row = {"probe": example.probe, "seed": example.seed, "query": example.query, "expected": example.expected}
        row |= {"predicted": answer, "correct": answer == example.expected, "prompt_tokens": len(prompt)}
        rows.append(row | {"prompt_sha256": sha256(example.prompt.encode()).hexdigest()})
    return rows


def summarise(
    probes: Sequence[Probe], examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Accuracy per probe, macro means, chance and ceiling.

    Args:
        rows: records of `example_rows`.

    A query under several seeds is one draw, not several: the standard error of a probe uses the mean over seeds of each
    query as its unit. The standard error of the composite treats probes as independent.
    """
    seeds = sorted({row["seed"] for row in rows})
    per_seed: dict[int, list[float]] = {seed: [] for seed in seeds}
    scores: dict[str, dict[str, Any]] = {}
    for probe in probes:
        mine = [row for row in rows if row["probe"] == probe.name]
        by_query: dict[tuple[str, str], list[float]] = {}
        for row in mine:
            by_query.setdefault((row["query"], row["expected"]), []).append(float(row["correct"]))
        for seed in seeds:
            per_seed[seed].append(_mean([float(row["correct"]) for row in mine if row["seed"] == seed]))
        scores[probe.name] = {
            "accuracy": _mean([float(row["correct"]) for row in mine]),
            "se": cluster_error(list(by_query.values())),
            "n": len(mine),
            "queries": len(by_query),
            **chance(probe, [example for example in examples if example.probe == probe.name]),
        }
    levels = [max(score["chance_constant"], score["chance_word"] or 0.0) for score in scores.values()]
    return {
        "composite": _mean([score["accuracy"] for score in scores.values()]),
        "composite_se": math.sqrt(sum(score["se"] ** 2 for score in scores.values())) / len(scores),
        "per_seed": {str(seed): _mean(accuracies) for seed, accuracies in per_seed.items()},
        "seeds": seeds,
        "chance_composite": _mean(levels),
        "ceiling_composite": _mean([score["ceiling"] for score in scores.values()]),
        "examples": len(rows),
        "probes": scores,
    }


def cluster_error(clusters: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean over all values if clusters are the sampling unit; 0 for a single cluster."""
    count, total = len(clusters), sum(len(cluster) for cluster in clusters)
    if count < 2:
        return 0.0
    mean = sum(sum(cluster) for cluster in clusters) / total
    residuals = sum((sum(cluster) - mean * len(cluster)) ** 2 for cluster in clusters)
    return math.sqrt(count / (count - 1) * residuals) / total


def chance(probe: Probe, examples: Sequence[Example]) -> dict[str, Any]:
    """Scores reachable without solving the task, and the highest score reachable by solving it.

    - chance_constant: the best constant answer to these queries; the composite uses this level.
    - chance_constant_shown: the most frequent answer in the demonstrations, given to every query: a constant that
      the prompts reveal. Ties go to the first in code-point order.
    - chance_word: a random word of the query (list probes only).
    - ceiling: mean over queries of 1 / (number of answers in the probe's data for that input).
    """
    expected = [pair.output for pair in probe.queries]
    best = _most_common(expected)
    shown = _most_common([output for example in examples for output in example.demonstrated])
    word = None
    if probe.name in rules.LIST_PROBES:
        words = [(pair.input.split(rules.SEPARATOR), pair.output) for pair in probe.queries]
        word = _mean([items.count(output) / len(items) for items, output in words])
    return {
        "chance_constant": expected.count(best) / len(expected),
        "chance_constant_answer": best,
        "chance_constant_shown": expected.count(shown) / len(expected),
        "chance_word": word,
        "ceiling": _mean([1 / max(1, len(probe.answers.get(pair.input, ()))) for pair in probe.queries]),
    }


def _most_common(values: Sequence[str]) -> str:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
