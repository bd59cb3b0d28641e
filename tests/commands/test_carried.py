"""Export and import of everything that the workflow makes: in a clone nothing runs again, and what is gone stays so."""

import csv
import io
import os
import time
from pathlib import Path

import pytest
import yaml
from fixtures.checkout import checkout
from fixtures.snakemake_runs import FOLDERS, snakemake

from budgeted_lora.commands.archive import export_archive, import_archive

CUT = {"macs_of_budget": [0.4], "truncation": ["weights", "outputs"], "undistilled": [True]}
OWN = {  # statistics, teachers' own tokens, timings of one student, students that were not distilled
    "extends": "smoke", "pretraining": {"function_share": 0.3}, "sweeps": {"cut": CUT},
    "tables": {
        "table2": [{"method": "kd_full"}],
        "beyond": [
            {"method": "budgeted_lora", "budget": 0.4, "low_rank_init": "activation_svd", "order": "activation"},
            {"method": "kd_full", "compression": "cut"},
        ],
    },
}  # fmt: skip
SHARDED = {
    "extends": "smoke", "teachers": "shipped", "tables": {"table2": [{"method": "kd_full"}]},
    "teacher_ladder": {"0.13B": {"layers": 12, "hidden": 96, "ffn": 384, "heads": 4, "kv_heads": 1}},
    "corpus": {
        "source": "hub", "hub": {"name": "a/b", "revision": "0" * 40}, "packages": None, "documents": None,
        "function_share": 0.0, "shards": {"pattern": "x-{shard:05d}.parquet", "train": 2},
    },
}  # fmt: skip
TARGETS = {"own": ("all", "beyond"), "sharded": ("all",)}


def pending(folder: Path, scale: str) -> dict[str, str]:
    """Files that Snakemake would make for everything of a scale, and the rules that make them."""
    ran = snakemake(folder, "--summary", *TARGETS[scale], "--config", f"scale={scale}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    table = csv.DictReader(io.StringIO(ran.stdout), delimiter="\t")
    return {row["output_file"]: row["rule"] for row in table if row["plan"] != "no update" and row["rule"] != "rule"}


def noted_as_done(folder: Path, scale: str, values: dict) -> dict[str, str]:
    """Lays an empty result for every job and lets Snakemake take it for done; what it would have made."""
    (folder / f"config/{scale}.yaml").write_text(yaml.safe_dump(values | {"scale": scale}))
    jobs = pending(folder, scale)
    for name in jobs:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name in {*FOLDERS, "statistics"}:
            path.mkdir()
            path /= "content"
        path.write_text(name)
    ran = snakemake(folder, "--touch", "--forceall", "--cores", "1", *TARGETS[scale], "--config", f"scale={scale}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    return jobs


@pytest.mark.parametrize(
    ("scale", "values", "rules"),
    [
        ("own", OWN, {"measure_statistics", "tokenize_for_teachers", "measure_speed", "score_cell"}),
        ("sharded", SHARDED, {"fetch_shard", "tokenize_shard", "join_shards"}),
    ],
)
def test_nothing_reruns_where_it_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str, values: dict, rules: set[str]
) -> None:
    folder, archive = checkout(tmp_path / "done"), tmp_path / "a.tar.gz"
    made = noted_as_done(folder, scale, values)
    assert rules <= set(made.values())
    timed = any("/speed/cell_budgeted-lora" in name for name in made)
    undistilled = any("undistilled-True/perplexity.json" in name for name in made)
    assert timed == undistilled == (scale == "own")
    for pattern in ("data/shards/*/*.bin", "data/shards/*/source.parquet", "cache/*/hidden.bin"):
        for path in (folder / f"results/{scale}").glob(pattern):
            path.unlink()  # what others were made from may be removed, and is not made again
    assert pending(folder, scale) == {}
    monkeypatch.chdir(folder)
    assert export_archive(archive, scale=scale).notes == ()
    clone = checkout(tmp_path / "clone")
    (clone / f"config/{scale}.yaml").write_text((folder / f"config/{scale}.yaml").read_text())
    now = time.time() + 5
    for path in (path for path in clone.rglob("*") if path.is_file()):
        os.utime(path, (now, now))  # as git leaves them: newer than the results
    monkeypatch.chdir(clone)
    import_archive(archive)
    assert pending(clone, scale) == {}
