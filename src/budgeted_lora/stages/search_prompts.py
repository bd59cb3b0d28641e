"""Stage search_prompts: search the prompts and answers of the in-context evaluation in the training text."""

from pathlib import Path
from typing import Any

import numpy as np

from budgeted_lora.config.sections import EvaluationOptions
from budgeted_lora.config.types import Positive
from budgeted_lora.data.contamination import document_texts, occurring
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.evaluation.icl import Example, build_examples
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.stages.evaluate import probe_set


def search_prompts(
    *, tokens: Path, tokenizer: Path, out: Path, evaluation: EvaluationOptions, ngram: Positive, scale: str
) -> None:
    """Writes how many examples of each probe share n-grams of words with the training text.

    The text searched is that of the training token file itself, so a corpus in shards and one in one piece are searched
    alike, with the function documents in both. An example is searched as one text: its prompt, then its answer.

    Args:
        tokens: the training token file.
        out: the JSON result: under `probes` the counts of each, see `counts`, and under `total` those of all.
        evaluation: which probes, queries, demonstrations and seeds.
        ngram: words in an n-gram.

    Raises:
        BadInput: a file cannot be used, or a probe has no query.
    """
    clock = Clock()
    encoder = open_tokenizer(tokenizer).tokenizer
    file = TokenFile.open(tokens)
    space = evaluation.prompt_space
    examples = build_examples(probe_set(evaluation), seeds=evaluation.demonstration_seeds, space=space)
    texts = [example.prompt + (" " if space else "") + example.expected for example in examples]
    found = occurring(texts, document_texts(file, encoder), n=ngram)
    names = dict.fromkeys(example.probe for example in examples)
    payload = {
        "ngram": ngram,
        "training_tokens": len(file.tokens),
        "training_documents": len(file.offsets) - 1,
        "total": counts(examples, found),
        "probes": {name: counts(examples, found, probe=name) for name in names},
    }
    values = {"ngram": ngram, "evaluation": evaluation.model_dump(mode="json")}
    write_result(out, payload, scale=scale, cell=None, values=values, inputs=[tokens, tokenizer], clock=clock)


def counts(examples: list[Example], found: list[np.ndarray], *, probe: str | None = None) -> dict[str, Any]:
    """What was found of one probe's examples, or of all.

    Returns:
        examples: their number; long_enough: those with an n-gram to search; prompts: those with an n-gram in the
        training text; answers: those whose last n-gram, which ends with the answer, is there; largest_share: the
        largest share of one example's n-grams.
    """
    mine = [hits for example, hits in zip(examples, found, strict=True) if probe in (None, example.probe)]
    long_enough = [hits for hits in mine if len(hits)]
    return {
        "examples": len(mine),
        "long_enough": len(long_enough),
        "prompts": sum(bool(hits.any()) for hits in long_enough),
        "answers": sum(bool(hits[-1]) for hits in long_enough),
        "largest_share": max((float(hits.mean()) for hits in long_enough), default=0.0),
    }
