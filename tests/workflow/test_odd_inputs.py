"""Corpus files with odd names, two thousand of them, and missing ones, through Snakemake and a job's shell."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from fixtures.checkout import checkout
from fixtures.snakemake_runs import planned_jobs, snakemake

ODD = ["part[1].jsonl", "a (b) #&;.jsonl", "$HOME 'x'.jsonl", "a*b?.jsonl", "~.jsonl"]
COUNT = 2000
RECORD = "results/odd/data/corpus.json"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("odd"))


def write_scale(folder: Path, files: list[str]) -> None:
    corpus = {"source": "files", "files": files, "slice_per_mille": 100, "documents": None, "characters": None}
    (folder / "config" / "odd.yaml").write_text(yaml.safe_dump({"extends": "smoke", "scale": "odd", "corpus": corpus}))


def test_a_job_reads_two_thousand_files_whatever_their_names(odd: Path) -> None:
    """Each file has a document of its own."""
    corpus = odd / "a folder of the corpus whose name is long enough for two thousand to be long"
    corpus.mkdir()
    names = [*ODD, *(f"part-{number:05d}.jsonl" for number in range(COUNT - len(ODD)))]
    for name in names:
        (corpus / name).write_text(json.dumps({"text": f"This is the only document of the file {name}. " * 3}))
    write_scale(odd, [f"{corpus.name}/{name}" for name in names])
    done = snakemake(odd, RECORD, "--cores", "1", "--config", "scale=odd")
    assert done.returncode == 0, done.stderr[-2000:]
    about = json.loads((odd / RECORD).read_text())
    assert about["documents"]["read"] == about["documents"]["train"] + about["documents"]["held_out"] == COUNT
    inputs = {Path(path).name for path in about["provenance"]["inputs"]}
    assert inputs >= set(ODD)
    jobs = planned_jobs(odd, "main", "--config", "scale=odd")
    assert max(len(shlex.quote(job.command)) for job in jobs) < 100_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("part-99999.jsonl", "no file matches part-99999.jsonl; correct corpus.files"),
        ("~/*.jsonl", "'~/*.jsonl' begins with ~, which only a shell reads"),
        ("a {b}.jsonl", "'a {b}.jsonl': Snakemake reads braces as wildcards; rename it"),
    ],
)
def test_a_dry_run_refuses_files_that_a_job_cannot_read(odd: Path, name: str, expected: str) -> None:
    (odd / "a {b}.jsonl").touch()
    write_scale(odd, [name])
    ran = snakemake(odd, "main", "--dry-run", "--config", "scale=odd")
    assert ran.returncode == 2
    assert len([line for line in ran.stderr.splitlines() if line.startswith("budgeted-lora: ")]) == 1, ran.stderr
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr
