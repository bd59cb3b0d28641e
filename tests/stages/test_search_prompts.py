"""Prompts and answers that were laid into the training text are found and counted, and no others."""

import json
from pathlib import Path

import pytest

from budgeted_lora.config.sections import EvaluationOptions
from budgeted_lora.data.probes import PROBES
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.evaluation.icl import Example, build_examples
from budgeted_lora.models.checkpoint import shipped_tokenizer
from budgeted_lora.stages.evaluate import probe_set
from budgeted_lora.stages.search_prompts import search_prompts

ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "data" / "function_vectors"
VALUES = {
    "context": None, "batch_windows": 3, "shots": 10, "demonstration_seeds": [0, 2], "queries": 3, "icl_batch": 16,
    "probes": "generated", "probes_folder": None, "prompt_space": False, "sequence_length": 384, "rows": "packed",
    "validation_tokens": 2000, "slice_per_mille": 40, "hold_out_words": False,
}  # fmt: skip
FOLDER = VALUES | {"probes": "folder", "probes_folder": str(ORIGINALS), "prompt_space": True}


def examples_of(values: dict) -> list[Example]:
    options = EvaluationOptions(**values)
    return build_examples(probe_set(options), seeds=options.demonstration_seeds, space=options.prompt_space)


def searched(folder: Path, values: dict, documents: list[str]) -> dict:
    """The result of the stage for a training file of these documents."""
    opened = open_tokenizer(shipped_tokenizer())
    ids = (opened.tokenizer.encode(text, add_special_tokens=False).ids for text in documents)
    write_tokens(folder / "train.bin", ids, vocab_size=opened.vocab_size, eos_id=opened.end_id)
    search_prompts(
        tokens=folder / "train.bin", tokenizer=shipped_tokenizer(), out=folder / "contamination.json",
        evaluation=EvaluationOptions(**values), ngram=13, scale="tiny",
    )  # fmt: skip
    return json.loads((folder / "contamination.json").read_text())


def check(folder: Path, values: dict) -> None:
    examples, gap = examples_of(values), " " if values["prompt_space"] else ""
    given_away, shown = examples[0], next(example for example in examples if example.probe != examples[0].probe)
    documents = [
        "Some prose of a page. " * 10,
        f"As seen elsewhere: {given_away.prompt.upper()}{gap}{given_away.expected.upper()}\n\nQ:{gap}more",
        " ".join(shown.prompt.split()[:13]),  # demonstrations alone, on one line
    ]
    found = searched(folder, values, documents)
    assert found["total"]["examples"] == len(examples)
    assert list(found["probes"]) == list(PROBES)
    first, second = (found["probes"][example.probe] for example in (given_away, shown))
    assert (first["prompts"], first["answers"], first["largest_share"]) == (1, 1, 1.0)
    assert (second["prompts"], second["answers"]) == (1, 0)
    assert 0 < second["largest_share"] < 1
    assert (found["total"]["prompts"], found["total"]["answers"]) == (2, 1)
    assert found["training_documents"] == 3
    clean = searched(folder, values, documents[:1])
    assert (clean["total"]["prompts"], clean["total"]["largest_share"]) == (0, 0.0)
    assert clean["total"]["long_enough"] == len(examples)


def test_what_was_laid_into_the_training_text_is_counted(tmp_path: Path) -> None:
    check(tmp_path, VALUES)


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the original probe files are not here")
def test_the_original_probe_files_are_searched_too(tmp_path: Path) -> None:
    check(tmp_path, FOLDER)
