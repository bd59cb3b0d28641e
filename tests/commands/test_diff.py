"""What differs between two results is named, with its noise, and only that; equal ones end with status 0."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fixtures.command_line import Outcome
from fixtures.synthetic_results import Builder

from budgeted_lora.commands.archive import export_archive
from budgeted_lora.commands.diff import Comparison, opened
from budgeted_lora.reporting.uncertainty import interval, resampled_perplexities

Run = Callable[..., Outcome]
CELL = "budgeted-lora_0.13B_mixed_F0.4_s0-0a1b2c3d"
SCORES = f"cells/{CELL}/compressed/default"


def write_scale(root: Path) -> None:
    builder = Builder(root)
    builder.cell("budgeted_lora", "0.13B", 0.4, tables="table2")
    builder.cell("kd_lora", "0.13B", None, tables="table2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diff") / "results" / "mini"
    write_scale(root)
    return root


@pytest.fixture
def sides(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two equal scales."""
    a, b = (Path(shutil.copytree(made, tmp_path / name / "results" / "mini")) for name in "ab")
    return a, b


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def compared(a: Path, b: Path, **how: bool) -> Comparison:
    with opened(a) as one, opened(b) as other:
        found = Comparison.of(one, other, **how)
        found.as_json()  # while an archive is unpacked
        return found


def test_equal_results_end_with_status_0(run: Run, sides: tuple[Path, Path]) -> None:
    edit(sides[1] / SCORES / "icl.json", lambda record: record["provenance"].update(started_at="later", seconds=9.0))
    done = run("diff", *sides)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("no difference in ")
    assert compared(*sides).as_json()["equal"] is True


def test_settings_are_compared_key_by_key_and_listed_once(run: Run, sides: tuple[Path, Path]) -> None:
    for path in sides[1].glob("cells/*/train.json"):
        edit(path, lambda record: record["provenance"].update(values={"settings": {"rank_threshold": 0.75}, "new": 1}))
    found = compared(*sides)
    assert [(change.key, change.a, change.b, len(change.where)) for change in found.settings] == [
        ("settings.rank_threshold", 0.5, 0.75, 2),
        ("new", None, 1, 2),
    ]
    assert not found.files
    done = run("diff", *sides)
    assert done.status == 1
    assert "settings.rank_threshold  0.5  ->  0.75  2 results" in done.out


def test_a_recipe_stands_under_its_own_keys(sides: tuple[Path, Path]) -> None:
    """In train.json it is the values themselves, in compression.json one of them."""
    for name, values in (
        (f"cells/{CELL}/train.json", {"rank": 4}),
        (f"{SCORES}/compression.json", {"recipe": {"rank": 4}}),
    ):
        edit(sides[1] / name, lambda record, values=values: record["provenance"]["values"].update(values))
    [change] = compared(*sides).settings
    assert (change.key, change.a, change.b, len(change.where)) == ("rank", None, 4, 2)


def test_code_and_machine_count_unless_told_otherwise(run: Run, sides: tuple[Path, Path]) -> None:
    edit(sides[1] / SCORES / "icl.json", lambda record: record["provenance"].update(git_commit="f" * 40))
    for root, digest in zip(sides, ("a" * 64, "b" * 64), strict=True):
        (root / "code").mkdir(exist_ok=True)
        (root / "code" / "stages.evaluate.txt").write_text(f"{digest} method.loop\n{'c' * 64} errors\n")
    found = compared(*sides).provenance
    assert [(change.key, change.where) for change in found] == [
        ("git_commit", (f"{SCORES}/icl.json",)),
        ("code of method.loop", ("stages.evaluate",)),
    ]
    assert run("diff", *sides).status == 1
    done = run("diff", *sides, "--ignore-provenance")
    assert done.status == 0
    assert "were not compared" in done.out


def test_versions_of_optional_packages_are_code_and_machine(sides: tuple[Path, Path]) -> None:
    """A job that needs one, such as torchao, records them beside its numbers."""
    for root, version in zip(sides, ("0.1", "0.2"), strict=True):
        edit(root / SCORES / "icl.json", lambda record, version=version: record.update(versions={"torchao": version}))
    found = compared(*sides)
    assert ([change.key for change in found.provenance], found.files) == (["versions.torchao"], {})
    assert compared(*sides, ignore_provenance=True).equal


def test_perplexities_on_the_same_windows_are_paired(sides: tuple[Path, Path]) -> None:
    """The interval is that of the bootstrap of differences, far narrower than that of each."""
    frames = [pd.read_parquet(root / SCORES / "perplexity_windows.parquet") for root in sides]
    frames[1]["nll"] = frames[1]["nll"] * 1.01
    frames[1].to_parquet(sides[1] / SCORES / "perplexity_windows.parquet")
    nll, tokens = (np.stack([frame[name] for frame in frames]) for name in ("nll", "tokens"))
    value = math.exp(nll[1].sum() / tokens[1].sum())
    bits = nll[1].sum() / tokens[1].sum() / math.log(2) / 3.5
    edit(sides[1] / SCORES / "perplexity.json", lambda record: record.update(value=value, bits_per_byte=bits))

    by_name = {metric.name: metric for metric in compared(*sides).metrics}
    metric = by_name["perplexity"]
    assert (metric.where, metric.paired, metric.clear) == (CELL, True, True)
    draws = resampled_perplexities(nll, tokens[0], resamples=1000, seed=0)
    expected = interval(metric.b - metric.a, draws[:, 1] - draws[:, 0], confidence=0.95)
    assert metric.noise == expected
    assert expected.standard_error < 0.2 * draws[:, 0].std()
    in_bits = by_name["bits per byte"]
    assert in_bits.paired
    assert in_bits.b - in_bits.a == pytest.approx(0.01 * in_bits.a)
    assert in_bits.noise.low < in_bits.b - in_bits.a < in_bits.noise.high


def test_scores_of_other_windows_have_the_errors_of_both(sides: tuple[Path, Path]) -> None:
    def other_slice(record: dict[str, Any]) -> None:
        record["conditions"]["validation_sha256"] = "0" * 64
        record["value"] += 1.0

    edit(sides[1] / SCORES / "perplexity.json", other_slice)
    edit(sides[1] / SCORES / "icl.json", lambda record: record.update(composite=record["composite"] + 0.001))
    edit(sides[1] / f"cells/{CELL}/train.json", lambda record: record.update(loss=2.5))
    edit(sides[0] / f"cells/{CELL}/train.json", lambda record: record.update(loss=2.25))
    metrics = {metric.name: metric for metric in compared(*sides).metrics}
    error = json.loads((sides[0] / SCORES / "perplexity.json").read_text())["standard_error"]
    ppl, icl = metrics["perplexity"], metrics["in-context score"]
    assert not ppl.paired
    assert ppl.noise.standard_error == pytest.approx(math.sqrt(2) * error)
    assert (icl.clear, metrics["training loss"].clear) == (False, None)
    assert icl.noise.high - icl.noise.low == pytest.approx(2 * 1.96 * 0.004 * math.sqrt(2), rel=1e-3)


def test_structure_is_told_by_module(run: Run, sides: tuple[Path, Path]) -> None:
    def change(record: dict[str, Any]) -> None:
        for module in record["modules"][:5]:
            module.update(decision="svd", svd_rank=3, d=0.25)
        record["totals"]["svd"] = 5

    edit(sides[1] / SCORES / "compression.json", change)
    [item] = compared(*sides).structure
    before = json.loads((sides[0] / SCORES / "compression.json").read_text())["modules"]
    assert item.where == CELL
    assert item.modules[before[0]["name"]] == (f"{before[0]['decision']}, LoRA 16", "svd 3, LoRA 16")
    assert item.retention == max(abs(module["d"] - 0.25) for module in before[:5])
    assert "svd 0 -> 5" in run("diff", *sides).out


def test_cells_of_another_hash_are_compared_by_name(run: Run, sides: tuple[Path, Path]) -> None:
    renamed = CELL.replace("0a1b2c3d", "99999999")
    (sides[1] / "cells" / CELL).rename(sides[1] / "cells" / renamed)
    (sides[1] / "cells" / "alone-11111111").mkdir()
    (sides[1] / "cells" / "alone-11111111" / "train.json").write_text("{}")
    found = compared(*sides)
    assert found.renamed == {CELL: renamed}
    assert found.only == ([], ["alone-11111111"])
    assert found.files == {"cells/alone-11111111/train.json": ["only in B"]}
    assert f"compared: {CELL} with {renamed} of B" in run("diff", *sides).out


def test_two_cells_of_one_scale(run: Run, sides: tuple[Path, Path]) -> None:
    cells = sorted((sides[0] / "cells").iterdir())
    done = run("diff", *cells, "--json")
    found = json.loads(done.out)
    assert done.status == 1
    assert {metric["metric"] for metric in found["metrics"]} >= {"perplexity", "in-context score"}
    assert "history.csv" in found["files"]


def test_exported_models_by_their_configuration_and_factors(tmp_path: Path) -> None:
    for name, rank in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        config = {"hidden_size": 16, "dtype": name, "factorized": {"layers.0.q": rank}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    found = compared(tmp_path / "a", tmp_path / "b")
    assert [(change.key, change.a, change.b) for change in found.settings] == [("dtype", "a", "b")]
    assert found.structure[0].modules == {"layers.0.q": ("factors, rank 3", "factors, rank 4")}


def test_an_archive_is_compared_with_a_folder(
    run: Run, sides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sides[0].parents[1])
    archive = tmp_path / "before.tar.zst"
    export_archive(archive, scale="mini")
    assert run("diff", archive, sides[0]).status == 0
    (sides[1] / "data").mkdir()
    (sides[1] / "data" / "train.bin").write_bytes(b"1")
    assert "data/train.bin: only in B" in run("diff", archive, sides[1]).out


def refusals(root: Path) -> Iterator[tuple[list[object], str]]:
    empty, damaged = root.parent / "empty", root.parent / "damaged"
    empty.mkdir()
    shutil.copytree(root, damaged)
    (damaged / SCORES / "icl.json").write_text("{")
    (root.parent / "text").write_text("no archive")
    yield [root, root / "nowhere"], "no such folder, archive or cell"
    yield [root, empty], "holds no results"
    yield [root, root / "cells" / CELL], "holds several models"
    yield [root, root.parent / "text"], "neither zstd nor gzip"
    yield [root, damaged], "icl.json: not JSON"


def test_cells_by_their_names(run: Run, sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (sides[0].parent / "results").mkdir(exist_ok=True)
    (sides[0].parent / "results" / "tiny").symlink_to(sides[0])
    monkeypatch.chdir(sides[0].parent)
    one, other = sorted(folder.name for folder in (sides[0] / "cells").iterdir())[:2]
    assert run("diff", one, f"results/tiny/cells/{one}").status == 0
    assert run("diff", one, other).status == 1
    (sides[0].parent / "results" / "again").symlink_to(sides[1])
    assert f"{one} begins the names of 2 cells, such as results/again/" in run("diff", one, other).refusal()
    assert "no such folder, archive or cell" in run("diff", "nothing", other).refusal()


def test_what_cannot_be_compared_is_one_line(run: Run, sides: tuple[Path, Path]) -> None:
    for words, expected in refusals(sides[1]):
        assert expected in run("diff", *words).refusal()
