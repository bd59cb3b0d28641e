"""The 19 function-style probes as rules, and the split of their pairs by the corpus's MD5 rule (method, section 7).

A pair (probe, input) whose MD5 falls into the slice is an evaluation query; every other pair may appear in training
documents and as a demonstration. The split needs no list and is the same on every machine.
"""

import hashlib
import math
import random
import string
from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json

SEPARATOR = ", "


class Pair(NamedTuple):
    input: str
    output: str


@cache
def words() -> tuple[str, ...]:
    """Common English words of 3 to 9 lower-case letters, sorted."""
    return tuple(files("budgeted_lora").joinpath("assets/words.txt").read_text(encoding="utf-8").split())


WORD_RULES: dict[str, Callable[[str], str]] = {
    "capitalize": str.title,
    "capitalize_first_letter": lambda text: text[0].upper(),
    "capitalize_last_letter": lambda text: text[-1].upper(),
    "lowercase_first_letter": lambda text: text[0].lower(),
    "lowercase_last_letter": lambda text: text[-1].lower(),
    "next_capital_letter": lambda text: chr((ord(text[0].upper()) - ord("A") + 1) % 26 + ord("A")),
    "word_length": lambda text: str(len(text)),
}
LIST_RULES: dict[str, Callable[[list[str]], str]] = {
    f"{name}_{count}": rule
    for name, rule in {
        "alphabetically_first": min,
        "alphabetically_last": max,
        "choose_first_of": lambda items: items[0],
        "choose_middle_of": lambda items: items[len(items) // 2],
        "choose_last_of": lambda items: items[-1],
    }.items()
    for count in (3, 5)
}


def _sequences() -> list[tuple[list[str], bool]]:
    """The sequences behind next_item and prev_item, each with whether its end is followed by its start."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    small += "seventeen eighteen nineteen twenty"
    romans = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX"
    weekdays = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
    months = "January February March April May June July August September October November December"
    letters, capitals = list(string.ascii_lowercase), list(string.ascii_uppercase)
    return [
        (small.split(), False),
        ([str(number) for number in range(30)], False),
        (letters, False),
        (capitals, False),
        ([letter * 2 for letter in capitals], False),
        ([letter * 2 for letter in letters], False),
        (romans.split(), False),
        (romans.lower().split(), False),
        *((names.split(), True) for names in (weekdays, weekdays.lower(), months, months.lower())),
    ]


def _neighbours(step: int) -> list[Pair]:
    """Records of next_item (step 1) or prev_item (step -1); i, v, x, ii are in two sequences, with two answers."""
    pairs = []
    for items, wraps in _sequences():
        for position, item in enumerate(items):
            other = position + step
            if wraps or 0 <= other < len(items):
                pairs.append(Pair(item, items[other % len(items)]))
    return pairs


PROBES: tuple[str, ...] = tuple(sorted([*LIST_RULES, *WORD_RULES, "next_item", "prev_item"]))
SMALLEST_PROBES = ("next_item", "prev_item")
LIST_PROBES: tuple[str, ...] = tuple(sorted(LIST_RULES))


def answer(probe: str, text: str) -> str:
    """The output of a word or list probe for an input."""
    return LIST_RULES[probe](text.split(SEPARATOR)) if probe in LIST_RULES else WORD_RULES[probe](text)


def list_length(probe: str) -> int:
    """Number of words in the input of a list probe."""
    return int(probe.rsplit("_", 1)[1])


@cache
def fixed_pairs(probe: str) -> tuple[Pair, ...]:
    """Every record of a probe other than the list probes, in a fixed order."""
    if probe in ("next_item", "prev_item"):
        return tuple(_neighbours(1 if probe == "next_item" else -1))
    inputs = [word.upper() if probe.startswith("lowercase") else word for word in words()]
    return tuple(Pair(text, answer(probe, text)) for text in inputs)


def pair_key(probe: str, text: str) -> int:
    """MD5 of a (probe, input) pair modulo 1000, compared with `slice_per_mille` like that of a document."""
    return int(hashlib.md5(f"{probe}\t{text}".encode(), usedforsecurity=False).hexdigest(), 16) % 1000


def is_held_out(probe: str, text: str, *, slice_per_mille: int) -> bool:
    return pair_key(probe, text) < slice_per_mille


@cache
def word_pool(slice_per_mille: int, held_out: bool) -> tuple[str, ...]:
    """The words that `hold_out_words` reserves for evaluation (`held_out`), or those it leaves to training."""
    return tuple(word for word in words() if (pair_key("word", word) < slice_per_mille) == held_out)


def _draw_lists(
    probe: str, generator: random.Random, pool: tuple[str, ...], accept: Callable[[str], bool], count: int
) -> list[Pair]:
    """`count` distinct records of a list probe with accepted inputs, each of distinct words of the pool."""
    if math.perm(len(pool), list_length(probe)) < 2 * count:  # and `accept` refuses some
        raise BadInput(f"probe {probe}: {len(pool)} words for {count} lists; expected more (corpus.slice_per_mille)")
    chosen: dict[str, Pair] = {}
    while len(chosen) < count:
        text = SEPARATOR.join(generator.sample(pool, list_length(probe)))
        if accept(text):
            chosen.setdefault(text, Pair(text, answer(probe, text)))
    return list(chosen.values())


@cache
def _trainable(probe: str, slice_per_mille: int, hold_out_words: bool) -> tuple[Pair, ...]:
    kept = (pair for pair in fixed_pairs(probe) if not is_held_out(probe, pair.input, slice_per_mille=slice_per_mille))
    barred = set(word_pool(slice_per_mille, True)) if hold_out_words else set()
    return tuple(pair for pair in kept if not barred & {pair.input.lower(), pair.output.lower()})


def refuse_few(probe: str, *, count: int, slice_per_mille: int, hold_out_words: bool) -> None:
    """Raises BadInput if the training part of a probe has fewer than `count` records to demonstrate with."""
    found = len(_trainable(probe, slice_per_mille, hold_out_words))
    if found < count:
        raise BadInput(
            f"probe {probe} has {found} records to demonstrate with outside a slice of {slice_per_mille} per mille; "
            f"expected at least the {count} of a prompt or document (evaluation.shots, corpus.slice_per_mille)"
        )


def demonstrations(
    probe: str, generator: random.Random, *, count: int, slice_per_mille: int, hold_out_words: bool = False
) -> list[Pair]:
    """`count` distinct records of the training part, drawn without replacement.

    Args:
        hold_out_words: whether to avoid the words that are reserved for evaluation.

    Raises:
        BadInput: the training part has fewer records.
    """
    if probe not in LIST_RULES:
        refuse_few(probe, count=count, slice_per_mille=slice_per_mille, hold_out_words=hold_out_words)
        return generator.sample(_trainable(probe, slice_per_mille, hold_out_words), count)
    pool = word_pool(slice_per_mille, False) if hold_out_words else words()
    held_out = partial(is_held_out, probe, slice_per_mille=slice_per_mille)
    return _draw_lists(probe, generator, pool, lambda text: not held_out(text), count)


def queries(probe: str, *, count: int, slice_per_mille: int, hold_out_words: bool = False, seed: int = 0) -> list[Pair]:
    """At most `count` held-out records of a probe, the same for every model and demonstration seed.

    About slice_per_mille / 1000 of the listed records of a probe are held out; for list probes, records are drawn until
    `count` of them fall into the slice. With `hold_out_words`, no training document of any probe contains a word of a
    query of a word or list probe; a narrow slice may hold too few words for `count` lists.
    """
    generator = random.Random(f"queries {probe} {seed}")
    held_out = partial(is_held_out, probe, slice_per_mille=slice_per_mille)
    reserved = word_pool(slice_per_mille, True) if hold_out_words else ()
    if probe in LIST_RULES and hold_out_words:
        possible = math.perm(len(reserved), list_length(probe))
        return _draw_lists(probe, generator, reserved, lambda text: True, min(count, possible))
    if probe in LIST_RULES:
        return _draw_lists(probe, generator, words(), held_out, count)
    if hold_out_words and probe in WORD_RULES:
        pool = [pair for pair in fixed_pairs(probe) if pair.input.lower() in set(reserved)]
    else:
        pool = [pair for pair in fixed_pairs(probe) if held_out(pair.input)]
    generator.shuffle(pool)
    return pool[:count]


def prompt(examples: list[Pair], query: str, *, space: bool = False) -> str:
    """`Q:<input>` newline `A:<output>`, a blank line between demonstrations, ending at the query's `A:`."""
    question = _as_text(Pair(query, ""), space=space).rstrip()
    return "\n\n".join([*(_as_text(pair, space=space) for pair in examples), question])


def _as_text(pair: Pair, *, space: bool) -> str:
    gap = " " if space else ""
    return f"Q:{gap}{pair.input}\nA:{gap}{pair.output}"


def function_document(
    number: int, *, seed: int, slice_per_mille: int, hold_out_words: bool = False, prompt_space: bool = False
) -> str:
    """Function document `number`: 4 to 11 demonstrations of one probe, none of them held out."""
    generator = random.Random(f"function {seed} {number}")
    probe = generator.choice(PROBES)
    count = generator.randint(4, 11)
    split = {"slice_per_mille": slice_per_mille, "hold_out_words": hold_out_words}
    pairs = demonstrations(probe, generator, count=count, **split)
    return "\n\n".join(_as_text(pair, space=prompt_space) for pair in pairs) + "\n"


def read_original(folder: Path | str) -> dict[str, list[Pair]]:
    """The pairs of each original probe file `<probe>.json` of a folder.

    Raises:
        BadInput: a file is missing or does not hold records with input and output.
    """
    pairs = {}
    for probe in PROBES:
        path = Path(folder) / f"{probe}.json"
        records = read_json(path, expected="a Function Vectors file: a list of records {input, output}", kind=list)
        try:
            pairs[probe] = [Pair(str(record["input"]), str(record["output"])) for record in records]
        except (TypeError, KeyError):
            raise BadInput(f"{path}: expected a list of records with input and output") from None
    return pairs
