"""Tables that `evaluation` asks for: made from their own files where it does, and nowhere else."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_results import write_results

from budgeted_lora.commands.diff_files import TIMED_COLUMNS
from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.reporting.contents import table_of, tables_of
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import ABSENT
from budgeted_lora.reporting.uncertainty import Bootstrap
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


def test_int8_stands_beside_each_student(results: Path) -> None:
    for folder in results.glob("cells/*/compressed/default"):
        ppl = json.loads((folder / "perplexity.json").read_text())["value"]
        sizes = {"plain": {"model": 4e6, "projections": 3e6}, "int8": {"model": 2e6, "projections": 1e6}}
        record = {"perplexity": {"value": 1.02 * ppl, "standard_error": 0.1}, "bytes": sizes, "dtype": "float32"}
        record |= {"prefill": {"speedup": 1.5}, "decode": {"speedup": 0.75}, "versions": {"torchao": "0.18.0"}}
        (folder / "int8.json").write_text(json.dumps(record | {"device": "cpu", "provenance": {}}))
    frame, text = made(results, "int8")
    assert set(frame["int8_loss_pct"].round(6)) == {2.0}
    assert set(frame["int8_bytes"]) == {2e6}
    line = next(line for line in text.splitlines() if line.startswith("| KD Full | 0.13B"))
    assert "| 4.00 | 2.00 | 3.00× smaller | 19." in line
    assert line.endswith(" | +2.00 % | 1.50× | 0.75× |")
    assert "By torchao 0.18.0" in text
    assert "time of the student in float32 over that of its int8 form (cpu" in text
    timings = [name for name in frame if name.startswith(TIMED_COLUMNS)]
    assert set(frame[timings].mean()) == {1.5, 0.75}  # so that `diff` leaves them out


def test_a_partial_report_has_dashes_for_int8(results: Path) -> None:
    opened = Results.open(results, standing=Standing(), partial=True)
    table = table_of(opened.tables, "int8")
    shown = table.make()(opened.of(table), Published.open(ROOT / "config" / "published.csv"), Bootstrap(20)).shown
    for heading in ("Projections", "int8, PPL", "Change", "Measured: prefill", "Measured: decode"):
        assert set(shown[heading]) == {ABSENT}


def test_nothing_is_made_where_nothing_is_asked() -> None:
    plain, asked = (ReportJobs(Graph(asking(**keys))) for keys in ({}, {"lm_eval": ["capitals"], "int8": True}))
    assert not {"lm_eval", "int8"} & set(plain.names("main"))
    assert plain.graph.task_scores() == []
    assert set(asked.names("main")) == {*plain.names("main"), "lm_eval", "int8"}
    assert not {"lm_eval", "int8"} & set(tables_of(plain.configured))
    assert list(plain.graph.cells) == list(asked.graph.cells)


def test_tasks_have_a_row_for_each_model(results: Path) -> None:
    for place, folder in enumerate(every_model(results)):
        write_scores(folder, accuracy=place / 100, cut=int(place == 0))
    for name in ("train.json", "compressed/default/perplexity.json", "compressed/default/compression.json"):
        for path in results.glob(f"cells/*/{name}"):
            path.unlink()  # which the table does not declare
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
    assert {*jobs.graph.references(), *jobs.graph.task_scores()} == set(inputs)
    tasks = [path for path in inputs if path.endswith("/lm_eval.json")]
    assert {Path(path).parts[2] for path in tasks} == {"teachers", "students", "cells"}
    assert len(tasks) == len(jobs.graph.references()) // 2 + len(jobs.graph.asked("lm_eval"))
