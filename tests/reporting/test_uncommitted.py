"""Tables and verdicts say which of their results were made from code that is in no commit."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_results import write_results

from budgeted_lora.config.scale import load_config
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.stages.judge_claims import judge_claims
from budgeted_lora.stages.make_table import make_table

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED, CLAIMS = ROOT / "config" / "published.csv", ROOT / "config" / "claims.yaml"
MINI = load_config(ROOT / "config" / "mini.yaml")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_results(tmp_path / "results" / "mini")
    return tmp_path / "results" / "mini"


def make_dirty(path: Path) -> None:
    record = json.loads(path.read_text())
    record["provenance"]["git_dirty"] = True
    path.write_text(json.dumps(record))


def table(results: Path, name: str) -> str:
    out = results.parents[1] / "reports"
    options = {"report": MINI.report.model_copy(update={"bootstrap": 50}), "standing": Standing()}
    make_table(table=name, lines=[results / "tables.csv"], results=results, published=PUBLISHED, out=out, **options)
    return (out / "tables" / f"{name}.md").read_text()


@pytest.mark.parametrize("file", ["train.json", "compressed/*/compression.json", "compressed/*/perplexity.json"])
def test_a_table_names_the_cells_of_uncommitted_code(results: Path, file: str) -> None:
    assert "Uncommitted" not in table(results, "table2")
    path = sorted(results.glob(f"cells/kd-full_1B*/{file}"))[0]
    make_dirty(path)
    cell = path.relative_to(results / "cells").parts[0]
    [note] = [line for line in table(results, "table2").splitlines() if "ncommitted" in line]
    assert note.startswith("- Uncommitted code made results of 1 of the cells and models above")
    assert f"({cell})" in note


def test_a_table_of_teachers_names_them(results: Path) -> None:
    make_dirty(results / "teachers" / "1B" / "perplexity.json")
    [note] = [line for line in table(results, "table1").splitlines() if "ncommitted" in line]
    assert "teachers/1B/perplexity.json" in note


def verdicts(results: Path) -> pd.DataFrame:
    out = results.parents[1] / "claims.csv"
    config = MINI.model_copy(update={"report": MINI.report.model_copy(update={"bootstrap": 50})})
    judge_claims(results=results, published=PUBLISHED, claims=CLAIMS, config=config, out=out, standing=Standing())
    return pd.read_csv(out, dtype=str, keep_default_na=False)


def test_verdicts_say_which_rest_on_uncommitted_code(results: Path) -> None:
    before = verdicts(results)
    assert not before["reason"].str.contains("uncommitted").any()
    path = sorted(results.glob("cells/kd-full_1B*/train.json"))[0]
    make_dirty(path)
    cell = path.relative_to(results / "cells").parts[0]
    after = verdicts(results)
    marked = after["reason"].str.contains(f"made from uncommitted code: {cell}", regex=False)
    rests = after["files"].str.contains(f"cells/{cell}/", regex=False)
    assert 0 < rests.sum() < len(after)
    assert (marked == rests).all()
    assert (after["status"] == before["status"]).all()
