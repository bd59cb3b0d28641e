"""A file from outside that was replaced is seen, whatever its date."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from fixtures.checkout import checkout
from fixtures.families import raw_config
from fixtures.small_corpus import collected, prose
from fixtures.snakemake_runs import planned_jobs, snakemake

from budgeted_lora.commands.status import Inspector
from budgeted_lora.config.scale import load_config
from budgeted_lora.files import sha256_file
from budgeted_lora.workflow import outside
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.outside import MEMORY, Outside

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = (1e9, 1e9)


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in order; files count as settled at once."""
    names: list[str] = []
    digest = outside.sha256_file
    monkeypatch.setattr(outside, "sha256_file", lambda path: names.append(Path(path).name) or digest(path))
    monkeypatch.setattr(outside, "SETTLED", -1.0)
    return names


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, digested: list[str]) -> None:
    files = [write(tmp_path / name, name) for name in ("a.txt", "b.txt")]
    seen = Outside(tmp_path / "results")
    seen.learn(files)
    first = seen.identity(files)
    again = Outside(tmp_path / "results")  # another process
    again.learn(files)
    assert again.identity(files) == first
    assert digested == ["a.txt", "b.txt"]
    os.utime(files[0])
    again.learn(files)
    assert again.identity(files) == first, "another date alone is no other file"
    assert digested == ["a.txt", "b.txt", "a.txt"]
    write(files[1], "B.txt")
    assert again.identity(files) != first


def test_a_replacement_of_equal_size_and_date_is_seen(tmp_path: Path, digested: list[str]) -> None:
    file, other = write(tmp_path / "a.txt", "one"), write(tmp_path / "new" / "a.txt", "two")
    for path in (file, other):
        os.utime(path, LONG_AGO)
    seen = Outside(tmp_path / "results")
    seen.learn([file])
    first = seen.identity([file])
    os.replace(other, file)
    assert file.stat().st_mtime == LONG_AGO[1]
    assert seen.identity([file]) != first
    shutil.copy2(write(tmp_path / "new" / "a.txt", "one"), file)
    assert seen.identity([file]) == first


def test_a_file_written_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "SETTLED", 3600.0)
    file = write(tmp_path / "a.txt", "one")
    seen = Outside(tmp_path / "results")
    seen.learn([file])
    assert not (tmp_path / "results" / MEMORY).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": [1, 2, 3]}'])
def test_a_damaged_memory_is_made_anew(tmp_path: Path, digested: list[str], content: str) -> None:
    file = write(tmp_path / "a.txt", "one")
    before = Outside(tmp_path / "results").identity([file])
    write(tmp_path / "results" / MEMORY, content)
    seen = Outside(tmp_path / "results")
    seen.learn([file])
    assert seen.identity([file]) == before
    assert str(file) in (tmp_path / "results" / MEMORY).read_text()


def test_names_count_and_folders_do_not(tmp_path: Path) -> None:
    seen = Outside(tmp_path)
    one, same, other = (write(tmp_path / name, "x") for name in ("1/a.txt", "2/a.txt", "1/b.txt"))
    assert seen.identity([one]) == seen.identity([same]) != seen.identity([other])
    assert seen.identity([one, tmp_path / "missing"]) == seen.identity([one]) != seen.identity([])


def graph_with(**corpus: object) -> Graph:
    return Graph(load_config(ROOT / "config" / "smoke.yaml", {"corpus": corpus}))


def test_a_local_folder_in_the_hubs_form_is_among_the_files(tmp_path: Path) -> None:
    files = [write(tmp_path / "data" / name, "x") for name in ("data/a.parquet", "README.md")]
    write(tmp_path / "data" / ".cache" / "b", "x")
    graph = graph_with(source="hub", hub={"name": str(tmp_path / "data")})
    assert sorted(graph.corpus_files()) == sorted(map(str, files))
    before = graph.corpus_identity()
    write(files[0], "y")
    assert graph.corpus_identity() != before


def test_another_version_of_a_documented_package_is_another_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_with(source="docstrings", packages=["networkx", "numpy"])
    before, versions = graph.corpus_identity(), graph.package_versions()
    assert set(versions) == {"networkx", "numpy"}
    monkeypatch.setattr(Graph, "package_versions", lambda self: versions | {"numpy": "0"})
    assert graph.corpus_identity() != before


def test_results_record_what_they_read_from_outside_and_cells_compares_it(tmp_path: Path) -> None:
    _, record = collected(tmp_path, prose(40))
    file = tmp_path / "documents.jsonl"
    inputs = record["provenance"]["inputs"]
    assert inputs[str(file)] == sha256_file(file)
    graph = graph_with(source="files", files=[str(file)])
    assert Inspector(graph).digests(str(file)) == {inputs[str(file)]}
    write(tmp_path / "other", file.read_text().swapcase())
    os.utime(tmp_path / "other", LONG_AGO)
    os.replace(tmp_path / "other", file)
    assert inputs[str(file)] not in Inspector(graph).digests(str(file))


# --- Snakemake


def write_made(folder: Path) -> None:
    """What the jobs that read files from outside would have made."""
    results = folder / "results" / "outside"
    for name in ("documents.parquet", "documents.parquet.sha256", "corpus.json"):
        write(results / "data" / name, name)
    for name in ("model/config.json", "model.sha256", "teacher.json"):
        write(results / "teachers" / "A" / name, name)


def test_snakemake_sees_what_was_replaced_by_older_files(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    files = [write(folder / "texts" / f"{n}.txt", f"text {n}") for n in range(2)]
    weights = write(folder / "given" / "model.safetensors", "weights")
    write(folder / "given" / "config.json", json.dumps(raw_config("mistral", max_position_embeddings=1024)))
    scale = {"extends": "smoke", "scale": "outside", "teachers": "folder"}
    scale |= {"teacher_ladder": {"A": {"folder": "given"}}, "student": {"layers": 2}, "lora": {"rank": 2}}
    scale |= {"corpus": {"source": "files", "files": ["texts/*.txt"]}, "tables": {"table2": [{"method": "kd_full"}]}}
    write(folder / "config" / "outside.yaml", yaml.safe_dump(scale))
    write_made(folder)
    targets = ["results/outside/data/documents.parquet", "results/outside/teachers/A/model.sha256"]
    words = ["--cores", "1", "--config", "scale=outside"]

    def planned() -> set[str]:
        return {job.rule for job in planned_jobs(folder, *targets, *words)} & {"collect_corpus", "fetch_teacher"}

    done = snakemake(folder, *targets, "--touch", "--forceall", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    for path in (*files, weights):
        os.utime(path)
    assert planned() == set()
    for path in (files[0], weights):
        other = write(tmp_path / "other", path.read_text().swapcase())
        os.utime(other, LONG_AGO)
        os.replace(other, path)
    assert planned() == {"collect_corpus", "fetch_teacher"}
