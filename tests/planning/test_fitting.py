"""How many tokens fit in a time, and how much text they need."""

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.own_model import write_text_file
from hypothesis import given
from hypothesis import strategies as st

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.your_scale import EFFORTS, YourScale
from budgeted_lora.errors import BadInput
from budgeted_lora.planning.fitting import (
    RESERVE,
    STEPS,
    batch_for,
    characters_for,
    fitted,
    most_steps,
    survey,
    with_text,
    with_tokens,
)
from tools.your_model import EXAMPLE


@given(st.integers(1, 50), st.integers(0, 2000), st.floats(0.01, 3.0))
def test_the_most_steps_are_those_that_fit(fewest: int, within: int, each: float) -> None:
    def seconds(steps: int) -> float:
        return 5.0 + each * steps

    steps = most_steps(seconds, within=within, fewest=fewest)
    if steps is None:
        assert seconds(fewest) > within
    else:
        assert steps >= fewest
        assert seconds(steps) <= within < seconds(steps + 1)


def test_a_step_grows_only_where_enough_steps_are_left() -> None:
    assert batch_for(10, fewest=5) == 1
    assert batch_for(STEPS * 8, fewest=5) == 8
    assert batch_for(STEPS * 1000, fewest=5) == 64
    assert batch_for(STEPS * 8, fewest=2 * STEPS) == 4


def takes(scale: YourScale) -> float:
    """Half a second per window, and as much for every 1,000 tokens that are scored."""
    return 0.5 * scale.tokens / scale.length + 0.5 * scale.effort.validation_tokens / 1000


def test_tokens_and_scoring_fill_the_time() -> None:
    for hours in (0.2, 1.0, 10.0):
        scale = fitted(EXAMPLE, takes, hours=hours, fewest=40)
        have = 3600 * hours * (1 - RESERVE)
        longer = replace(scale, tokens=scale.tokens + scale.batch_windows * scale.length)
        assert takes(scale) <= have < takes(longer)
        assert scale.steps >= STEPS
    assert fitted(EXAMPLE, takes, hours=10, fewest=40).effort == EFFORTS[0]
    assert fitted(EXAMPLE, takes, hours=0.05, fewest=40).effort == EFFORTS[2]


def test_a_time_in_which_the_schedule_cannot_run_is_refused_with_one_that_is_enough() -> None:
    with pytest.raises(BadInput, match=r"--hours 0\.001: the fewest steps \(40 of 256 tokens\).*expected --hours 0\.0"):
        fitted(EXAMPLE, takes, hours=0.001, fewest=40)
    with pytest.raises(BadInput, match=r"--tokens 1000: expected at least 10240, 40 steps of one window"):
        with_tokens(EXAMPLE, 1000, fewest=40)
    assert with_tokens(EXAMPLE, 10_300, fewest=40).steps == 40


def test_a_corpus_is_read_as_far_as_needed(tmp_path: Path) -> None:
    corpus = Corpus(source="files", files=[str(write_text_file(tmp_path / "t.jsonl", documents=2000))])
    whole = survey(corpus, enough=10**9, tokenizer=None)
    assert whole.whole
    assert whole.documents == 2000
    assert 0.03 < whole.held_out / (whole.train + whole.held_out) < 0.07
    part = survey(corpus, enough=50_000, tokenizer=None)
    assert not part.whole
    assert 50_000 <= part.train + part.held_out < 51_000

    assert with_text(EXAMPLE, whole).characters is None
    assert with_text(EXAMPLE, whole).effort.validation_tokens == whole.held_out_tokens
    enough = replace(whole, whole=False, held_out=10**9, train=10**9)
    assert with_text(EXAMPLE, enough).characters == characters_for(EXAMPLE)
    with pytest.raises(BadInput, match=r"distinct documents .*expected 2,048 held out, one document in 20"):
        with_text(EXAMPLE, part)


def test_text_that_also_stands_in_training_text_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"text": "{"the same words again and again " * 20}{n}"}}\n' for n in range(400)))
    found = survey(Corpus(source="files", files=[str(path)]), enough=10**9, tokenizer=None)
    assert found.documents == 400
    assert found.held_out == 0
