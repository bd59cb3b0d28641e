"""The jobs of a corpus in shards, run by Snakemake: one a shard, and what a damaged one leaves to do."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
import zstandard
from fixtures.checkout import checkout
from fixtures.shard_files import TEXTS, hub_folder, zst_files
from fixtures.snakemake_runs import planned_jobs, snakemake

from budgeted_lora.data.tokens import TokenFile

MANIFEST = "results/pile/data/manifest.json"


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a scale whose corpus is three files, the second of them cut short."""
    folder = checkout(tmp_path_factory.mktemp("pile"))
    files = sorted(zst_files(folder / "pile", TEXTS).iterdir())
    corpus = {
        "source": "files", "files": ["pile/*.jsonl.zst"], "shards": {"train": 2, "held_out": 3}, "packages": None,
        "function_share": 0.0, "overlap_share": 1.0, "min_characters": 5, "train_tokens": 2000,
        "validation_tokens": 50, "slice_per_mille": 40,
    }  # fmt: skip
    tables = {"table2": [{"method": "kd_full"}]}
    scale = {"extends": "mini", "scale": "pile", "corpus": corpus, "tables": tables}
    (folder / "config" / "pile.yaml").write_text(yaml.safe_dump(scale))
    files[1].write_bytes(files[1].read_bytes()[:-9])
    return folder


def planned(folder: Path) -> Counter[str]:
    """Jobs that a dry run lists, by rule."""
    return Counter(job.rule for job in planned_jobs(folder, MANIFEST, "--cores", "2", "--config", "scale=pile"))


def test_a_damaged_shard_costs_that_shard(pile: Path) -> None:
    assert planned(pile) == {"tokenize_shard": 3, "join_shards": 1, "copy_tokenizer": 1}
    run = (MANIFEST, "--cores", "2", "--config", "scale=pile")
    failed = snakemake(pile, *run)
    assert failed.returncode == 1
    assert "pile/01.jsonl.zst: truncated inside a Zstandard frame" in failed.stderr + failed.stdout
    assert not (pile / MANIFEST).exists()
    shards = pile / "results/pile/data/shards"
    assert sorted(path.parent.name for path in shards.glob("*/shard.json")) == ["00000", "00002"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[1])
    (pile / "pile" / "01.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    assert planned(pile) == {"tokenize_shard": 1, "join_shards": 1}
    done = snakemake(pile, *run)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((pile / MANIFEST).read_text())
    assert manifest["proof"]["documents_on_both_sides"] == 0
    assert [shard["documents"]["left"] > 0 for shard in manifest["shards"]] == [False, False, True]
    assert manifest["files"]["train"]["tokens"] >= 2000
    TokenFile.open(pile / "results/pile/data/train.bin").check_digest()
    for path in shards.glob("*/*.bin"):
        path.unlink()
    assert planned(pile) == {}, "what was joined needs its shards no longer"


def test_the_hubs_layout_in_a_folder_needs_no_download(pile: Path) -> None:
    hub_folder(pile / "mirror", TEXTS)
    scale = yaml.safe_load((pile / "config" / "pile.yaml").read_text())
    scale["scale"] = "mirror"
    pattern = "data/train-{shard:05d}-of-00003-*.parquet"
    scale["corpus"] |= {"source": "hub", "files": None, "hub": {"name": "mirror"}}
    scale["corpus"]["shards"] |= {"pattern": pattern}
    (pile / "config" / "mirror.yaml").write_text(yaml.safe_dump(scale))
    target = MANIFEST.replace("pile", "mirror")
    jobs = planned_jobs(pile, target, "--cores", "2", "--config", "scale=mirror")
    sources = {job.options["source"] for job in jobs if job.rule == "tokenize_shard"}
    assert sources == {f"mirror/data/train-0000{number}-of-00003-*.parquet" for number in range(3)}
    assert "fetch_shard" not in {job.rule for job in jobs}
