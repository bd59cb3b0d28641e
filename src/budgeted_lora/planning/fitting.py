"""How long a reader's students can train in a given time, and how much text that takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.your_scale import EFFORTS, HELD_OUT, YourScale
from budgeted_lora.errors import BadInput
from budgeted_lora.planning.storage import TEXT_BYTES_PER_TOKEN

BATCHES = (64, 32, 16, 8, 4, 2, 1)  # windows of a step
STEPS = 300  # at least, before a step is made larger
SETTING_UP = 0.4  # largest share of the time for all that is not training, if a smaller effort is left
RESERVE = 0.1  # share of the time for what is not counted: start-up, tables, figures
LEAST_HELD_OUT = 2048  # tokens; a perplexity on fewer says nothing
KEPT = 0.6  # share of the held-out text that is expected to stay: what is also in training text is left out
SAMPLE = 200_000  # characters on which characters per token are measured
COMPARED = 20_000_000  # characters on which the share that stays is measured


def most_steps(seconds: Callable[[int], float], *, within: float, fewest: int) -> int | None:
    """The most steps that take at most `within` seconds; None if the fewest take longer.

    Args:
        seconds: of so many steps; never falls.
    """
    if seconds(fewest) > within:
        return None
    high = 2 * fewest
    while high < 2**40 and seconds(high) <= within:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= within else (low, middle)
    return low


def batch_for(windows: int, *, fewest: int) -> int:
    """Windows of a step, for a run of so many windows: large steps are faster, but the schedule needs many of them.

    Args:
        fewest: steps that the schedule needs.
    """
    return next((batch for batch in BATCHES if windows // batch >= max(STEPS, fewest)), 1)


def fitted(draft: YourScale, seconds: Callable[[YourScale], float], *, hours: float, fewest: int) -> YourScale:
    """The scale with as many tokens as fit, and the largest effort of measuring that leaves most of the time to them.

    Args:
        seconds: that a scale takes.
        fewest: steps that the schedule needs.

    Raises:
        BadInput: not even the fewest steps fit.
    """
    have = 3600 * hours * (1 - RESERVE)

    def run(windows: int, *, batch: int = 1) -> YourScale:
        return replace(draft, tokens=windows * draft.length, batch_windows=batch, measured=True)

    for effort in EFFORTS:
        draft = replace(draft, effort=effort)
        if seconds(run(fewest)) <= SETTING_UP * have:
            break
    windows = most_steps(lambda windows: seconds(run(windows)), within=have, fewest=fewest)
    if windows is None:
        need = seconds(run(fewest)) / (1 - RESERVE) / 3600
        raise BadInput(
            f"--hours {hours:g}: the fewest steps ({fewest} of {draft.length} tokens) take about {need:.1f} hours "
            f"here with {len(draft.budgets)} budget{'s' * (len(draft.budgets) > 1)}; expected --hours {need * 1.1:.1f} "
            "or more, fewer budgets, or a smaller model"
        )
    batch = batch_for(windows, fewest=fewest)
    return run(windows - windows % batch, batch=batch)


def with_tokens(scale: YourScale, tokens: int, *, fewest: int) -> YourScale:
    """The scale with a given number of tokens; measuring is as thorough as that is long."""
    windows = tokens // scale.length
    if windows < fewest:
        raise BadInput(f"--tokens {tokens}: expected at least {fewest * scale.length}, {fewest} steps of one window")
    effort = next((one for one in EFFORTS if 4 * one.validation_tokens <= tokens), EFFORTS[-1])
    batch = batch_for(windows, fewest=fewest)
    return replace(scale, tokens=(windows - windows % batch) * scale.length, batch_windows=batch, effort=effort)


@dataclass(frozen=True)
class Survey:
    """What a corpus holds, in characters of distinct documents.

    Attributes:
        held_out: without documents that share too much with training text.
        whole: whether all of the corpus was read.
    """

    documents: int
    train: int
    held_out: int
    whole: bool
    characters_per_token: float

    @property
    def train_tokens(self) -> int:
        return int(self.train / self.characters_per_token)

    @property
    def held_out_tokens(self) -> int:
        """Those that can be counted on, with a tenth to spare."""
        return int(0.9 * self.held_out / self.characters_per_token)


def survey(corpus: Corpus, *, enough: int, tokenizer: Path | None) -> Survey:
    """Reads a corpus, at most `enough` characters of it.

    Args:
        tokenizer: a tokenizer.json by which characters per token are measured; assumed when None.

    Raises:
        BadInput: a file cannot be read.
    """
    # Here and not above: readers load pyarrow, and `budgeted-lora plan` reads no text.
    from tokenizers import Tokenizer

    from budgeted_lora.data.documents import Counts, distinct_documents, in_slice
    from budgeted_lora.data.readers import read_documents
    from budgeted_lora.data.tokenizer import switch_off

    train = held_out = documents = 0
    sample: list[str] = []
    sides: dict[bool, list[str]] = {True: [], False: []}  # held out, training
    for text, digest in distinct_documents(read_documents(corpus), Counts(), min_characters=corpus.min_characters):
        documents += 1
        if train + held_out < SAMPLE:
            sample.append(text)
        side = in_slice(digest, slice_per_mille=HELD_OUT)
        held_out, train = (held_out + len(text), train) if side else (held_out, train + len(text))
        if train + held_out < COMPARED:
            sides[side].append(text)
        if train + held_out >= enough:
            break
    per_token = TEXT_BYTES_PER_TOKEN
    if tokenizer is not None and sample:
        opened = Tokenizer.from_file(str(tokenizer))
        switch_off(opened)
        encoded = opened.encode_batch(sample, add_special_tokens=False)
        per_token = sum(map(len, sample)) / max(1, sum(len(item.ids) for item in encoded))
    whole = train + held_out < enough
    return Survey(documents, train, int(held_out * _kept(sides[True], sides[False], corpus)), whole, per_token)


def _kept(held_out: list[str], train: list[str], corpus: Corpus) -> float:
    """Share of the held-out characters that stay, since their documents share little with training text."""
    from budgeted_lora.data.overlap import shared_fractions

    if not held_out:
        return 0.0
    shares = shared_fractions(held_out, train, n=corpus.overlap_ngram)
    stay = sum(len(text) for text, share in zip(held_out, shares, strict=True) if share <= corpus.overlap_share)
    return stay / sum(map(len, held_out))


def characters_for(scale: YourScale) -> int:
    """Characters of text that hold a scale's training tokens, and its validation tokens in the held-out slice."""
    share = HELD_OUT / 1000
    training = scale.tokens / (1 - share)
    validation = scale.effort.validation_tokens / share / KEPT
    return int(1.1 * TEXT_BYTES_PER_TOKEN * max(training, validation))


def with_text(scale: YourScale, found: Survey) -> YourScale:
    """The scale, read from as much text as it needs; with fewer validation tokens where the corpus holds fewer.

    Raises:
        BadInput: the corpus is too small to measure anything on.
    """
    held_out = min(scale.effort.validation_tokens, found.held_out_tokens)
    windows = min(scale.effort.windows, found.train_tokens // scale.length)
    if held_out < LEAST_HELD_OUT or windows < 1:
        need = LEAST_HELD_OUT / KEPT / (HELD_OUT / 1000)
        raise BadInput(
            f"--text: {found.documents} distinct documents with about {found.train_tokens + found.held_out_tokens:,} "
            f"tokens, of which {found.held_out_tokens:,} can be held out; expected {LEAST_HELD_OUT:,} held out, one "
            f"document in {1000 // HELD_OUT}, so about {need:,.0f} tokens in many documents (a .txt file is one)"
        )
    effort = replace(scale.effort, validation_tokens=held_out, windows=windows)
    return replace(scale, effort=effort, characters=None if found.whole else characters_for(scale))
