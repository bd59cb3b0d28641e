"""Names of corpus files that a glob reads otherwise, and folders in place of files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.scales import TINY

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.scale import Config
from budgeted_lora.data.readers import local_files, read_documents
from budgeted_lora.stages.tokenize_shard import shard_file
from budgeted_lora.workflow.graph import Graph

ODD = ["part[1].txt", "what?.txt", "a*b.txt", "a {b} (c).txt", "$HOME 'x'.txt", "[a.txt", "_a.txt"]


def corpus(*patterns: object) -> Corpus:
    return Corpus(source="files", files=[str(pattern) for pattern in patterns])


@pytest.mark.parametrize("name", ODD)
def test_a_file_is_read_by_its_own_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this one")
    for other in ("part1.txt", "whats.txt", "aab.txt"):  # what a glob would take
        (tmp_path / other).write_text("another one")
    assert list(read_documents(corpus(tmp_path / name))) == ["this one"]
    assert local_files(corpus(tmp_path / name)) == [str(tmp_path / name)]


def test_a_folder_as_spark_writes_it_is_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "pile.parquet"
    (folder / "language=en").mkdir(parents=True)
    for number in (1, 0):
        path = folder / f"part-0000{number}-8f3c-c000.snappy.parquet"
        pq.write_table(pa.table({"text": [f"part {number}"]}), path, compression="snappy")
        path.with_name(f".{path.name}.crc").write_bytes(b"crc")
    pq.write_table(pa.table({"text": ["partition"]}), folder / "language=en" / "part-00000.parquet")
    for name in ("_SUCCESS", "_committed_123"):
        (folder / name).touch()
    parts = ["partition", "part 0", "part 1"]
    for pattern in (folder, tmp_path / "*.parquet", tmp_path / "**"):
        assert list(read_documents(corpus(pattern))) == parts, pattern
    assert list(read_documents(corpus(folder / "*"))) == parts
    assert [Path(path).name[:10] for path in local_files(corpus(folder))] == ["part-00000", "part-00000", "part-00001"]


def shards_of(files: list[str], read: int) -> Graph:
    corpus = {"source": "files", "files": files, "function_share": 0.0, "overlap_share": 1.0}
    ladder = {name: dict(spec) for name, spec in TINY["teacher_ladder"].items()}
    shards = {"shards": {"train": read}}
    return Graph(
        Config.model_validate(TINY | {"teachers": "shipped", "teacher_ladder": ladder, "corpus": corpus | shards})
    )


def test_shards_with_such_names(tmp_path: Path) -> None:
    for name in ODD:
        (tmp_path / name).write_text(json.dumps(name))
    jobs = shards_of([str(tmp_path / name) for name in ODD], len(ODD)).shard_jobs()
    sources = [jobs.source(name) for name in jobs.names]
    assert sources == sorted(str(tmp_path / name) for name in ODD)
    assert [str(shard_file(source)) for source in sources] == sources
    assert [jobs.local_files(name) for name in jobs.names] == [[source] for source in sources]


def test_a_folder_in_the_form_of_the_hub_with_such_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "pile [en]"
    folder.mkdir()
    (folder / "train-00000-of-00001.parquet").touch()
    (tmp_path / "pile e").mkdir()
    (tmp_path / "pile e" / "train-00000-of-00002.parquet").touch()  # what a glob would take
    values = {"source": "hub", "hub": {"name": str(folder)}, "overlap_share": 1.0}
    values |= {"shards": {"train": 1, "pattern": "train-{shard:05d}-of-*.parquet"}}
    jobs = Graph(Config.model_validate(TINY | {"teachers": "shipped", "corpus": values})).shard_jobs()
    assert jobs.local_files("00000") == [str(folder / "train-00000-of-00001.parquet")]
    assert shard_file(jobs.source("00000")) == folder / "train-00000-of-00001.parquet"
