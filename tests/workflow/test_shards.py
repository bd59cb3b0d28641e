"""The jobs of a corpus in shards."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.shard_files import TEXTS, hub_folder, zst_files

from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.tokenize_shard import shard_file
from budgeted_lora.workflow.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
PATTERN = "data/train-{shard:05d}-of-00003-*.parquet"


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def paper(**corpus: object) -> Config:
    return load_config(ROOT / "config" / "paper.yaml", {"corpus": corpus})


def test_shards_that_are_only_scored_on_leave_the_cells_as_they_are() -> None:
    before = set(Graph(paper()).cells)
    assert set(Graph(paper(shards={"held_out": 60})).cells) == before
    assert not set(Graph(paper(shards={"train": 30})).cells) & before


def test_jobs_of_a_hub_dataset_and_of_a_local_copy(tmp_path: Path) -> None:
    jobs = Graph(paper()).shard_jobs()
    assert len(jobs.names) == 44
    assert jobs.downloaded
    assert jobs.pattern("00043") == "data/train-00043-of-01650-*.parquet"
    assert jobs.source("00007") == "results/paper/data/shards/00007/source.parquet"
    assert [jobs.reading(name)["training"] for name in jobs.names] == [True] * 22 + [False] * 22
    hub = hub_folder(tmp_path / "hub", TEXTS)
    local = Graph(paper(hub={"name": str(hub)}, shards={"pattern": PATTERN, "train": 3, "held_out": 4})).shard_jobs()
    assert not local.downloaded
    assert [len(local.local_files(name)) for name in local.names] == [1, 1, 1, 0]
    assert Path(local.local_files("00001")[0]) == shard_file(local.source("00001"))


def test_jobs_of_local_files_are_in_sorted_order(tmp_path: Path) -> None:
    folder = zst_files(tmp_path / "pile", TEXTS)
    config = paper(source="files", files=[f"{folder}/*.zst"], shards={"pattern": None, "train": 4, "held_out": None})
    jobs = Graph(config).shard_jobs()
    assert [Path(jobs.source(name)).name for name in jobs.names[:3]] == ["00.jsonl.zst", "01.jsonl.zst", "02.jsonl.zst"]
    assert jobs.local_files("00003") == []
    assert "corpus.files has 3 files, none for shard 00003" in refusal(lambda: shard_file(jobs.source("00003")))
