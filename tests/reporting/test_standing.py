"""What each scale shares with the paper decides what stands beside the paper's numbers and what its page says."""

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_results import write_results

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.contents_tables import TABLES
from budgeted_lora.reporting.grouping import Settings, caveats
from budgeted_lora.reporting.page import facts
from budgeted_lora.reporting.page.says import can_say
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing, standing_of
from budgeted_lora.stages import report as build
from budgeted_lora.workflow.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "config" / "published.csv"
FAST = Settings(bootstrap=20)
# corpus, vocabulary and teachers / training tokens / proportions of the student: the paper's?
SCALES = {
    "paper": (True, True, True),
    "single-gpu": (True, False, True),
    "gpu-hour": (False, False, True),
    "mini": (False, False, True),
    "smoke": (False, False, False),
}


def rows_of(scale: str, folder: Path) -> pd.DataFrame:
    """cells.csv of a shipped scale, and the shape of its untrained student as a run would leave it in `folder`."""
    graph = Graph(load_config(ROOT / "config" / f"{scale}.yaml"))
    first = graph.config.teacher_ladder[graph.config.first_teacher]
    shape = {"hidden_size": first.hidden, "intermediate_size": first.ffn, "num_attention_heads": first.heads}
    shape |= {"num_key_value_heads": first.kv_heads, "num_hidden_layers": graph.config.student.layers}
    model = folder / "students" / graph.config.training.init / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(shape))
    return pd.DataFrame(graph.cell_rows())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("standing") / "mini"
    write_results(root)
    return root


def opened(made: Path, folder: Path, scale: str) -> Results:
    """The same results under the name of another scale."""
    return Results.open(Path(shutil.copytree(made, folder / "results" / scale)))


@pytest.mark.parametrize(("scale", "expected"), SCALES.items(), ids=SCALES.keys())
def test_what_a_scale_shares_with_the_paper(tmp_path: Path, scale: str, expected: tuple[bool, ...]) -> None:
    found = standing_of(tmp_path / scale, rows_of(scale, tmp_path / scale))
    assert found.rule
    assert (found.models, found.length, found.proportions) == expected
    assert found.students == (scale == "paper"), "absolute perplexities of students"
    assert (found.print_differs == "") == (scale == "paper")
    assert ("another corpus" in found.apart) == (not found.models)


def test_a_scale_of_another_name_is_judged_by_what_it_says(tmp_path: Path) -> None:
    """Its teachers were held against Table 1: so the person said that corpus, tokenizer and checkpoints are those."""
    rows = rows_of("paper", tmp_path / "ours")
    assert not standing_of(tmp_path / "ours", rows).models
    (tmp_path / "ours" / "calibration.json").write_text("{}")
    assert standing_of(tmp_path / "ours", rows).students
    assert not standing_of(tmp_path / "ours", rows.assign(tokens=255_000_000)).students


def test_an_ablation_is_as_long_as_its_scale(tmp_path: Path) -> None:
    """Only its own lines are there when its table is made; they read a part of the tokens."""
    rows = rows_of("paper", tmp_path / "paper").assign(tokens=255_000_000)
    assert not standing_of(tmp_path / "paper", rows).length
    assert standing_of(tmp_path / "paper", rows.assign(tables="table3")).length
    assert not standing_of(tmp_path / "single-gpu", rows.assign(tables="table3")).length


def test_ranks_that_a_table_varies_are_no_proportion(tmp_path: Path) -> None:
    rows = rows_of("mini", tmp_path / "mini")
    few = rows[rows["tables"].str.contains("table6") & (rows["rank"] == 2)]
    assert standing_of(tmp_path / "mini", few).proportions is True
    assert standing_of(tmp_path / "mini", rows.assign(rank=8)).proportions is False
    assert standing_of(tmp_path / "elsewhere", rows).proportions is None


def test_a_rule_that_is_not_the_papers_is_said(tmp_path: Path) -> None:
    standing = standing_of(tmp_path / "recommended", rows_of("recommended", tmp_path / "recommended"))
    assert not standing.rule
    _, can, cannot = can_say("recommended", standing)
    assert "Structures and counts" not in " ".join(can)
    assert cannot[0].startswith("The paper's own rule")
    assert standing_of(tmp_path / "mini", rows_of("mini", tmp_path / "mini")).rule, "only `beyond` has others there"


# --- tables


@pytest.mark.parametrize(("scale", "expected"), SCALES.items(), ids=SCALES.keys())
def test_published_numbers_stand_where_they_can_be_compared(
    made: Path, tmp_path: Path, scale: str, expected: tuple[bool, ...]
) -> None:
    results, published = opened(made, tmp_path, scale), Published.open(PUBLISHED)
    teachers = TABLES["table1"](results, published, FAST)
    assert ("ppl_published" in teachers.frame) == expected[0]
    alone = TABLES["published_perplexities"](results, published, FAST)
    composites = " ".join(TABLES["figure2_values"](results, published, FAST).notes)
    words = "other corpus, other vocabulary" if not expected[0] else "students of 2.55 B training tokens"
    assert f"(the paper's: {words})" in alone.title  # these results are short whatever their name
    assert ("another corpus or vocabulary" in alone.notes[0]) == (not expected[0])
    assert ("other teachers and another corpus" in composites) == (not expected[0])


def test_counts_of_another_shape_are_not_expected_to_be_the_printed_ones(made: Path, tmp_path: Path) -> None:
    results = opened(made, tmp_path, "ours")
    assert caveats(results) == []
    for path in results.root.glob("students/*/model/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 2}))
    assert "has not the paper's proportions" in caveats(results)[0]


# --- the page


def say(results: Results) -> str:
    """All that the page's section on the paper says."""
    summary, can, cannot = can_say(results.scale, results.standing)
    return " ".join([summary, "CAN", *can, "CANNOT", *cannot])


def test_a_tenth_of_the_tokens_on_the_papers_corpus(made: Path, tmp_path: Path) -> None:
    results = opened(made, tmp_path, "single-gpu")
    results.cells["tokens"] = 254_935_040
    can, cannot = say(results).split("CANNOT")
    assert "The paper's corpus, vocabulary and checkpoints; its students read 255 M training tokens here" in can
    assert "held against Table 1" in can
    assert "Structures and counts" in can
    assert "Absolute perplexities and in-context scores of students" in cannot
    assert "corpus, vocabulary and model sizes differ" not in cannot
    assert "function documents" not in cannot
    page = build.build_index(
        results=results.root, published=PUBLISHED, out=tmp_path / "reports" / "single-gpu"
    ).read_text()
    assert "other corpus" not in page
    assert "standing for" not in page


def test_half_an_hour_on_a_gpu_shows_speed_and_counts(made: Path, tmp_path: Path) -> None:
    can, cannot = say(opened(made, tmp_path, "gpu-hour")).split("CANNOT")
    assert "own width" in can
    assert "Structures and counts" in can
    assert "gains in time" in can
    assert "Orderings" not in can
    assert "every ordering of methods" in cannot


def test_what_the_other_scales_can_say(made: Path, tmp_path: Path) -> None:
    mini, smoke, ours = (say(opened(made, tmp_path, name)) for name in ("mini", "smoke", "ours"))
    assert "one eighth of the width" in mini.split("CAN")[0]
    assert "eighth" not in ours
    assert mini.split("CAN", 1)[1] == ours.split("CAN", 1)[1]
    assert "Nothing about the paper" in smoke
    assert "Structures and counts as printed" in can_say("ours", Standing(False, False, False, 1e6))[2][0]
    whole = " ".join(can_say("ours", Standing(True, True, True, 2.55e9))[1])
    assert "Absolute perplexities may be compared" in whole


# --- what was run


def test_shards_downloads_and_caches_are_counted(made: Path, tmp_path: Path) -> None:
    results = opened(made, tmp_path, "mini")
    before = facts.time_sentence(results)
    made_by = {"provenance": {"git_commit": "e" * 40, "started_at": "2026-01-02T03:04:05+00:00", "seconds": 7200.0}}
    for name in ("data/shards/00000/shard.json", "data/shards/00000/source.json", "cache/1B_1200/provenance.json"):
        path = results.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made_by))
    said = facts.time_sentence(results)
    assert said != before
    assert "corpus 4.0 h" in said
    assert "caches 2.0 h" in said
    assert facts.versions(results).mixed == ["commit", "package", "python", "libraries"]


def test_every_record_of_the_workflow_is_of_a_stage() -> None:
    patterns = [pattern for found in facts.STAGES.values() for pattern in found]
    records = set()
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        found = re.findall(r'record=f"\{(results|shards\.folder)\}/([^"]+\.json)"', path.read_text())
        records |= {
            ("data/shards/" if root != "results" else "") + re.sub(r"\{\{.*?\}\}", "x", name) for root, name in found
        }
    assert {"data/corpus.json", "data/shards/x/shard.json", "calibration.json", "cells/x/train.json"} <= records
    without_provenance = {"cache/x/cache.json"}
    assert not {name for name in records - without_provenance if not any(fnmatch(name, one) for one in patterns)}


@pytest.mark.parametrize("folder", [True, False])
def test_a_report_of_nothing_says_how_to_begin(tmp_path: Path, folder: bool) -> None:
    root = tmp_path / "results" / "mini"
    if folder:
        root.mkdir(parents=True)
    with pytest.raises(BadInput) as caught:
        build.build_report(results=root, published=PUBLISHED, out=tmp_path / "reports", partial=True)
    line = str(caught.value)
    assert line.startswith(f"{root}/cells.csv: no such file; " if folder else f"{root}: no such folder; ")
    assert f"`snakemake {root}/cells.csv --config scale=mini`" in line
    assert "\n" not in line
    assert not (tmp_path / "reports").exists()
