"""The 19 probes: each rule against examples and the original files, and the split of their pairs."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.data import probes
from budgeted_lora.data.probes import (
    LIST_PROBES,
    PROBES,
    WORD_RULES,
    Pair,
    answer,
    demonstrations,
    fixed_pairs,
    function_document,
    is_held_out,
    list_length,
    prompt,
    queries,
    read_original,
    word_pool,
    words,
)
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation.icl import generated_probes

ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "data" / "function_vectors"
SLICE = 40
COMMON = settings(deadline=None, max_examples=25)
numbers = st.integers(min_value=0, max_value=10_000)
slices = st.sampled_from([2, 40, 200])

FIVE = "pear, apple, zebra, mango, kiwi"
THREE = "pear, zebra, apple"
EXAMPLES = {
    "alphabetically_first_3": (THREE, "apple"),
    "alphabetically_first_5": (FIVE, "apple"),
    "alphabetically_last_3": (THREE, "zebra"),
    "alphabetically_last_5": (FIVE, "zebra"),
    "choose_first_of_3": (THREE, "pear"),
    "choose_first_of_5": (FIVE, "pear"),
    "choose_middle_of_3": (THREE, "zebra"),
    "choose_middle_of_5": (FIVE, "zebra"),
    "choose_last_of_3": (THREE, "apple"),
    "choose_last_of_5": (FIVE, "kiwi"),
    "capitalize": ("river", "River"),
    "capitalize_first_letter": ("river", "R"),
    "capitalize_last_letter": ("river", "R"),
    "lowercase_first_letter": ("HOUSE", "h"),
    "lowercase_last_letter": ("HOUSE", "e"),
    "next_capital_letter": ("river", "S"),
    "word_length": ("river", "5"),
}
NEIGHBOURS = {
    "next_item": [
        ("three", "four"),
        ("9", "10"),
        ("a", "b"),
        ("Y", "Z"),
        ("AA", "BB"),
        ("IX", "X"),
        ("xix", "xx"),
        ("Sunday", "Monday"),
        ("december", "january"),
        ("zero", "one"),
    ],
    "prev_item": [
        ("four", "three"),
        ("10", "9"),
        ("b", "a"),
        ("BB", "AA"),
        ("X", "IX"),
        ("Monday", "Sunday"),
        ("I", "H"),
    ],
}


def test_there_are_nineteen() -> None:
    assert len(PROBES) == len(set(PROBES)) == 19
    assert set(PROBES) == {*EXAMPLES, *NEIGHBOURS}
    assert len(LIST_PROBES) == 10


@pytest.mark.parametrize(("probe", "example"), EXAMPLES.items(), ids=EXAMPLES.keys())
def test_rule_against_an_example(probe: str, example: tuple[str, str]) -> None:
    assert answer(probe, example[0]) == example[1]


def test_next_capital_letter_wraps() -> None:
    assert answer("next_capital_letter", "zoo") == "A"


@pytest.mark.parametrize("probe", NEIGHBOURS)
def test_neighbours_against_examples(probe: str) -> None:
    assert set(NEIGHBOURS[probe]) <= {tuple(pair) for pair in fixed_pairs(probe)}


def test_ends_of_sequences_have_no_neighbour_outside() -> None:
    inputs = {pair.input for pair in fixed_pairs("next_item")}
    assert not {"twenty", "29", "z", "Z", "zz", "ZZ", "XX", "xx"} & inputs - {"XX", "xx"}
    assert {pair.output for pair in fixed_pairs("next_item") if pair.input == "XX"} == {"YY"}
    assert "zero" not in {pair.input for pair in fixed_pairs("prev_item")}


def test_previous_is_the_inverse_of_next() -> None:
    assert {(b, a) for a, b in fixed_pairs("next_item")} == {tuple(pair) for pair in fixed_pairs("prev_item")}


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the original files are not beside this checkout")
@pytest.mark.parametrize("probe", PROBES)
def test_every_original_record_follows_our_rule(probe: str) -> None:
    records = read_original(ORIGINALS)[probe]
    assert len(records) > 100
    if probe in NEIGHBOURS:
        assert set(records) <= set(fixed_pairs(probe))
    else:
        assert [pair for pair in records if answer(probe, pair.input) != pair.output] == []
    if probe in LIST_PROBES:
        assert {len(pair.input.split(", ")) for pair in records} == {list_length(probe)}


def test_word_list_is_what_the_probes_need() -> None:
    listed = words()
    assert list(listed) == sorted(set(listed))
    assert len(listed) >= 500  # few enough that a small vocabulary has each as one token, see config/mini.yaml
    assert all(re.fullmatch("[a-z]{3,9}", word) for word in listed)


@COMMON
@given(probe=st.sampled_from(PROBES), seed=numbers, slice_per_mille=slices, strict=st.booleans())
def test_demonstrations_are_never_held_out(probe: str, seed: int, slice_per_mille: int, strict: bool) -> None:
    shown = demonstrations(probe, random.Random(seed), count=10, slice_per_mille=slice_per_mille, hold_out_words=strict)
    assert len(shown) == len(set(shown)) == 10
    assert not any(is_held_out(probe, pair.input, slice_per_mille=slice_per_mille) for pair in shown)
    known = set(fixed_pairs(probe)) if probe in NEIGHBOURS else None
    assert all(pair in known if known else answer(probe, pair.input) == pair.output for pair in shown)


@pytest.mark.parametrize("probe", PROBES)
def test_queries_are_held_out_and_repeat(probe: str) -> None:
    asked = queries(probe, count=60, slice_per_mille=SLICE)
    assert asked == queries(probe, count=60, slice_per_mille=SLICE)
    assert 0 < len(asked) <= 60
    assert len(set(asked)) == len(asked)
    assert all(is_held_out(probe, pair.input, slice_per_mille=SLICE) for pair in asked)
    assert queries(probe, count=5, slice_per_mille=SLICE) == asked[:5]


@pytest.mark.parametrize("probe", [name for name in PROBES if name not in LIST_PROBES])
def test_queries_and_training_share_out_every_listed_record(probe: str) -> None:
    asked = set(queries(probe, count=10**6, slice_per_mille=200))
    trained = set(probes._trainable(probe, 200, False))
    assert not asked & trained
    assert asked | trained == set(fixed_pairs(probe))
    assert not {pair.input for pair in asked} & {pair.input for pair in trained}


@COMMON
@given(probe=st.sampled_from(PROBES), text=st.text(max_size=20), slice_per_mille=st.integers(1, 998))
def test_a_wider_slice_holds_the_narrower_one(probe: str, text: str, slice_per_mille: int) -> None:
    if is_held_out(probe, text, slice_per_mille=slice_per_mille):
        assert is_held_out(probe, text, slice_per_mille=slice_per_mille + 1)


def test_word_pools_share_out_the_words() -> None:
    held, left = word_pool(SLICE, True), word_pool(SLICE, False)
    assert sorted(held + left) == list(words())
    assert held
    assert left


def test_strict_switch_keeps_query_words_out_of_every_training_document() -> None:
    asked = {
        word.lower()
        for probe in PROBES
        if probe not in NEIGHBOURS
        for pair in queries(probe, count=60, slice_per_mille=SLICE, hold_out_words=True)
        for word in pair.input.split(", ")
    }
    assert asked <= set(word_pool(SLICE, True))
    for number in range(300):
        text = function_document(number, seed=0, slice_per_mille=SLICE, hold_out_words=True)
        assert not asked & set(re.findall("[a-z]+", text.lower())), text


def test_strict_switch_bars_answers_too() -> None:
    barred = set(word_pool(SLICE, True))
    for probe in (*WORD_RULES, *NEIGHBOURS):
        for pair in probes._trainable(probe, SLICE, True):
            assert not barred & {pair.input.lower(), pair.output.lower()}


def test_without_the_switch_query_words_do_occur_in_training() -> None:
    held = set(word_pool(SLICE, True))
    texts = [function_document(number, seed=0, slice_per_mille=SLICE) for number in range(100)]
    assert any(held & set(re.findall("[a-z]+", text.lower())) for text in texts)


@pytest.mark.parametrize("probe", LIST_PROBES)
def test_a_narrow_strict_slice_gives_what_it_has(probe: str) -> None:
    asked = queries(probe, count=210, slice_per_mille=1, hold_out_words=True)
    assert len(asked) <= 210
    assert all(set(pair.input.split(", ")) <= set(word_pool(1, True)) for pair in asked)


def test_a_slice_without_queries_is_refused() -> None:
    with pytest.raises(BadInput, match=r"probe \w+: no query in a slice of 1 per mille"):
        generated_probes(shots=10, queries=1, slice_per_mille=1)


@COMMON
@given(number=numbers, seed=st.integers(0, 3), strict=st.booleans())
def test_function_documents_follow_one_rule(number: int, seed: int, strict: bool) -> None:
    text = function_document(number, seed=seed, slice_per_mille=SLICE, hold_out_words=strict)
    assert text == function_document(number, seed=seed, slice_per_mille=SLICE, hold_out_words=strict)
    spaced = function_document(number, seed=seed, slice_per_mille=SLICE, hold_out_words=strict, prompt_space=True)
    assert spaced == text.replace("Q:", "Q: ").replace("A:", "A: ")
    found = re.findall(r"Q:(.+)\nA:(.+)\n", text)
    assert 4 <= len(found) <= 11
    shown = [Pair(*pair) for pair in found]
    assert "\n\n".join(f"Q:{a}\nA:{b}" for a, b in shown) + "\n" == text
    fitting = [name for name in PROBES if all(_belongs(name, pair) for pair in shown)]
    assert any(not any(is_held_out(name, pair.input, slice_per_mille=SLICE) for pair in shown) for name in fitting), (
        text
    )


def _belongs(probe: str, pair: Pair) -> bool:
    if probe in NEIGHBOURS:
        return pair in fixed_pairs(probe)
    if probe in LIST_PROBES and pair.input.count(", ") + 1 != list_length(probe):
        return False
    return answer(probe, pair.input) == pair.output


def test_prompt_is_as_published() -> None:
    shown = [Pair("a", "b"), Pair("x, y, z", "x")]
    assert prompt(shown, "q") == "Q:a\nA:b\n\nQ:x, y, z\nA:x\n\nQ:q\nA:"
    assert prompt(shown[:1], "q", space=True) == "Q: a\nA: b\n\nQ: q\nA:"


def test_originals_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"alphabetically_first_3\.json: no such file"):
        read_original(tmp_path)
    first = tmp_path / f"{PROBES[0]}.json"
    for text, expected in (("[{", "not JSON"), ('[{"input": "a"}]', "records with input and output"), ("7", "records")):
        first.write_text(text)
        with pytest.raises(BadInput, match=expected):
            read_original(tmp_path)


def test_more_demonstrations_than_a_probe_has_are_refused_in_one_line():
    with pytest.raises(
        BadInput, match=r"probe next_item has \d+ records to demonstrate with .*; expected at least the 300"
    ):
        demonstrations("next_item", random.Random(0), count=300, slice_per_mille=SLICE)
