"""What a corpus in shards goes with."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
PATTERN = "data/train-{shard:05d}-of-00003-*.parquet"


def corpus(**values: object) -> Corpus:
    base = {"source": "hub", "overlap_share": 1.0, "hub": {"name": "some/dataset"}}
    return Corpus.model_validate(base | {"shards": {"pattern": PATTERN, "train": 2, "held_out": 3}} | values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"source": "docstrings"}, "corpus.shards needs corpus.source files or hub"),
        ({"source": "files"}, "corpus.shards.pattern is required with source hub"),
        ({"shards": {"train": 2}}, "corpus.shards.pattern is required with source hub"),
        ({"shards": {"train": 2, "held_out": 1, "pattern": PATTERN}}, "held_out 1 is less than corpus.shards.train 2"),
        ({"shards": {"train": 2, "pattern": "data/train-*.parquet"}}, "does not contain {shard}"),
        ({"shards": {"train": 2, "pattern": "data/{part}.parquet"}}, "is not a valid pattern"),
        ({"overlap_share": 0.5}, "corpus.overlap_share must be 1 with corpus.shards"),
        ({"documents": 5}, "corpus.documents must be empty with corpus.shards"),
        ({"function_share": 0.5}, "corpus.function_share must be 0 with corpus.shards"),
    ],
)
def test_what_shards_do_not_go_with_is_refused(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        corpus(**values)


def test_teachers_made_here_need_a_corpus_in_one_piece() -> None:
    with pytest.raises(BadInput, match=r"corpus.shards needs teachers that have a tokenizer"):
        load_config(ROOT / "config" / "paper.yaml", {"teachers": "pretrain", "calibration": {"teachers": False}})


@pytest.mark.parametrize("scale", ["mini", "smoke"])
def test_a_corpus_in_one_piece_is_recorded_as_before_there_were_shards(scale: str) -> None:
    config = load_config(ROOT / "config" / f"{scale}.yaml")
    assert "shards" not in config.corpus.model_dump()
    assert "shards" not in config.model_dump(mode="json")["corpus"]
