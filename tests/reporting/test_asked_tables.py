"""Tables that `evaluation` asks for: made from their own files where it does, and nowhere else."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_results import write_results

from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.reporting.contents import tables_of
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.stages.make_table import make_table
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs

ROOT = Path(__file__).resolve().parents[2]


def asking(**keys: object) -> Config:
    return load_config(ROOT / "config" / "mini.yaml", {"evaluation": keys})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_results(tmp_path / "results" / "mini")
    return tmp_path / "results" / "mini"


def made(results: Path, name: str) -> tuple[pd.DataFrame, str]:
    """A table as CSV and as text."""
    about = {"report": asking().report.model_copy(update={"bootstrap": 20}), "standing": Standing()}
    files = {"lines": [results / "tables.csv"], "published": ROOT / "config" / "published.csv"}
    make_table(table=name, results=results, out=results.parents[1], **files, **about)
    return pd.read_csv(results.parents[1] / "tables" / f"{name}.csv"), (
        results.parents[1] / "tables" / f"{name}.md"
    ).read_text()


def every_model(results: Path) -> list[Path]:
    return [*sorted(results.glob("teachers/*")), *sorted(results.glob("students/*")),
            *sorted(results.glob("cells/*/compressed/default"))]  # fmt: skip


def write_scores(folder: Path, *, accuracy: float, cut: int = 0) -> None:
    up = {"acc": True, "word_perplexity": False}
    task = {"metrics": {"acc": accuracy}, "standard_errors": {"acc": 0.05}, "higher_is_better": up, "cut_requests": cut}
    group = {"metrics": {"acc": 0.9}, "standard_errors": {}, "higher_is_better": up}
    record = {"tasks": {"capitals": task, "in_a_group": group}, "asked": ["capitals"], "limit": 7}
    (folder / "lm_eval.json").write_text(json.dumps(record | {"versions": {"lm_eval": "0.4.13"}, "provenance": {}}))


def test_nothing_is_made_where_nothing_is_asked() -> None:
    plain, asked = (ReportJobs(Graph(asking(**keys))) for keys in ({}, {"lm_eval": ["capitals"]}))
    assert "lm_eval" not in plain.names("main")
    assert plain.graph.task_scores() == []
    assert set(asked.names("main")) == {*plain.names("main"), "lm_eval"}
    assert "lm_eval" not in tables_of(plain.configured)
    assert list(plain.graph.cells) == list(asked.graph.cells)


def test_tasks_have_a_row_for_each_model(results: Path) -> None:
    for place, folder in enumerate(every_model(results)):
        write_scores(folder, accuracy=place / 100, cut=int(place == 0))
    frame, text = made(results, "lm_eval")
    students = frame.dropna(subset=["cell"])
    assert set(students["cell"]) >= {path.parents[1].name for path in results.glob("cells/kd-full*/compressed/default")}
    assert list(frame["model"][:3]) == ["0.13B itself", "0.5B itself", "1B itself"]
    assert frame["capitals_acc"][0] == 0.0
    [row] = students[students["cell"].str.startswith("kd-lora_1B")].drop_duplicates("cell").to_dict("records")
    place = [path.parents[1].name for path in every_model(results)].index(row["cell"])
    assert row["capitals_acc"] == place / 100
    assert row["capitals_acc_se"] == 0.05
    assert "capitals · acc" in text
    assert "in_a_group" not in text
    assert "By lm_eval 0.4.13 in float32" in text
    assert "Lower is better for word_perplexity, higher for others." in text
    assert "At most 7 examples" in text
    assert "cut 1 requests" in text


def test_the_files_of_a_table_are_those_it_declares(results: Path) -> None:
    jobs = ReportJobs(Graph(asking(lm_eval=["capitals"])))
    inputs = jobs.inputs(jobs.tables["lm_eval"])
    assert {Path(path).name for path in inputs} == {"lm_eval.json"}
    assert {Path(path).parts[2] for path in inputs} == {"teachers", "students", "cells"}
    assert len(inputs) == len(jobs.graph.references()) // 2 + len(jobs.graph.asked("lm_eval"))
