"""What each scale shares with the paper decides what stands beside the paper's numbers and what its page says."""

import json
import re
import shutil
from fnmatch import fnmatch
from html import unescape
from pathlib import Path

import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_results import write_results

from budgeted_lora.commands.report import write_report
from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.page import facts
from budgeted_lora.reporting.page.render import fill
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing, standing_of
from budgeted_lora.reporting.texts import texts
from budgeted_lora.reporting.uncertainty import Bootstrap
from budgeted_lora.stages.make_index import make_index
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED, CLAIMS = ROOT / "config" / "published.csv", ROOT / "config" / "claims.yaml"
FAST = Bootstrap(20)
# corpus, vocabulary and teachers / training tokens / proportions of the student / enough text for the teachers
SCALES = {
    "paper": (True, True, True, True),
    "single-gpu": (True, False, True, True),
    "gpu-hour": (False, False, True, False),
    "mini": (False, False, True, True),
    "smoke": (False, False, False, False),
}


def config_of(name: str, **overrides: object) -> Config:
    """A shipped scale with values laid on top."""
    return load_config(ROOT / "config" / f"{name}.yaml", overrides)


def standing(name: str, **overrides: object) -> Standing:
    """What a shipped scale shares with the paper."""
    return ReportJobs(Graph(config_of(name, **overrides))).standing


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("standing") / "mini"
    write_results(root)
    return root


def opened(made: Path, folder: Path, scale: str) -> Results:
    """The same results as those of another scale."""
    root = Path(shutil.copytree(made, folder / "results" / scale))
    return Results.open(root, standing=standing(scale if scale in SCALES else "mini"))


@pytest.mark.parametrize(("scale", "expected"), SCALES.items(), ids=SCALES.keys())
def test_what_a_scale_shares_with_the_paper(scale: str, expected: tuple[bool, ...]) -> None:
    found = standing(scale)
    assert found.rule
    assert (found.models, found.length, found.proportions, found.taught) == expected
    assert found.students == (scale == "paper"), "absolute perplexities of students"
    assert (found.setup == "whole") == (scale == "paper")
    assert ("another corpus" in texts()["setups"][found.setup]["apart"]) == (not found.models)


def test_a_scale_of_another_name_is_judged_by_what_it_says() -> None:
    """Its teachers are held against Table 1: so the person said that corpus, tokenizer and checkpoints are those."""
    assert standing("paper", scale="ours").students
    assert standing("paper", scale="ours", calibration={"teachers": False}).models, "they are named"
    assert not standing("mini", scale="paper").models
    assert not standing("paper", training={"tokens": 255_000_000}).students
    ladder = config_of("paper").teacher_ladder
    others = {name: one.model_dump() | {"hub": f"someone/{name}"} for name, one in ladder.items()}
    assert not standing("paper", calibration={"teachers": False}, teacher_ladder=others).models


@pytest.mark.parametrize(
    "other", [{"student": {"layers": 4}}, {"lora": {"rank": 64, "alpha": 128}}, {"budget": {"whole": True}}]
)
def test_numbers_of_other_students_are_not_held_against_the_papers(other: dict[str, object]) -> None:
    assert not standing("paper", **other).students


def test_other_proportions_are_seen() -> None:
    assert not standing("mini", lora={"rank": 8, "alpha": 16}).proportions
    assert not standing("mini", student={"layers": 5}).proportions
    ladder = config_of("mini").teacher_ladder
    wide = {name: one.model_dump() | {"head_dim": 2 * one.hidden // one.heads} for name, one in ladder.items()}
    assert not standing("mini", teacher_ladder=wide).proportions, "the heads are wider than the hidden size"


def test_a_rule_that_is_not_the_papers_is_said() -> None:
    found = standing("recommended")
    assert not found.rule
    can, cannot = say(found).split("It cannot speak of")
    assert "Structures and counts" not in can
    assert cannot.strip().startswith("The paper's own rule")
    assert standing("mini").rule, "only `beyond` has others there"
    assert not standing_of(config_of("mini"), [cell.recipe for cell in Graph(config_of("mini")).cells.values()]).rule


# --- tables


@pytest.mark.parametrize(("scale", "expected"), SCALES.items(), ids=SCALES.keys())
def test_published_numbers_stand_where_they_can_be_compared(
    made: Path, tmp_path: Path, scale: str, expected: tuple[bool, ...]
) -> None:
    results, published = opened(made, tmp_path, scale), Published.open(PUBLISHED)
    teachers = made_table("table1", results, published, FAST)
    assert ("ppl_published" in teachers.frame) == expected[0]
    alone = made_table("published_perplexities", results, published, FAST)
    composites = " ".join(made_table("figure2_values", results, published, FAST).notes)
    words = {"paper": "", "single-gpu": "students of 2.55 B training tokens"}.get(
        scale, "other corpus, other vocabulary"
    )
    assert f"(the paper's{': ' if words else ''}{words})" in alone.title
    assert ("another corpus or vocabulary" in alone.notes[0]) == (not expected[0])
    assert ("other teachers and another corpus" in composites) == (not expected[0])


def test_counts_of_another_shape_are_not_expected_to_be_the_printed_ones(made: Path, tmp_path: Path) -> None:
    for scale, differs in (("mini", False), ("smoke", True)):
        notes = made_table("table8", opened(made, tmp_path, scale), Published.open(PUBLISHED), FAST).notes
        assert ("does not have the paper's proportions" in notes[-1]) == differs


# --- the page


def say(found: Standing) -> str:
    """All that the page's section on the paper says, without markup."""
    text = re.sub(r"<[^>]+>", " ", fill("say.html.j2", standing=found))
    return " ".join(unescape(text).split())


def test_a_tenth_of_the_tokens_on_the_papers_corpus(made: Path, tmp_path: Path) -> None:
    results = opened(made, tmp_path, "single-gpu")
    can, cannot = say(results.standing).split("It cannot speak of")
    assert "The paper's corpus, vocabulary and checkpoints; its students read 255 M training tokens here" in can
    assert "held against Table 1" in can
    assert "Structures and counts" in can
    assert "Absolute perplexities and in-context scores of students" in cannot
    assert "corpus, vocabulary and model sizes differ" not in cannot
    assert "function documents" not in cannot
    out = tmp_path / "reports" / "single-gpu"
    make_index(
        results=results.root, published=PUBLISHED, config=config_of("single-gpu"), out=out, standing=results.standing
    )
    page = (out / "index.html").read_text()
    assert "other corpus" not in page
    assert "standing for" not in page


def test_half_an_hour_on_a_gpu_shows_speed_and_counts() -> None:
    can, cannot = say(standing("gpu-hour")).split("It cannot speak of")
    assert "own width" in can
    assert "Structures and counts" in can
    assert "gains in time" in can
    assert "Orderings" not in can
    assert "every ordering of methods" in cannot


def test_what_the_other_scales_can_say() -> None:
    mini, smoke = say(standing("mini")), say(standing("smoke"))
    assert "1/8 of the width" in mini.split("It can speak")[0]
    assert "of the width" not in say(Standing(width=1.0))
    assert "Nothing about the paper" in smoke
    assert "Structures and counts as printed" in say(Standing(proportions=False)).split("It cannot speak of")[1]
    whole = say(Standing(models=True, length=True)).split("It cannot speak of")[0]
    assert "Absolute perplexities may be compared" in whole


def test_what_is_said_of_gates_follows_from_the_scale() -> None:
    def found(threshold: float, tokens: int) -> Standing:
        return standing("mini", compression={"rank_threshold": threshold}, training={"tokens": tokens})

    assert found(0.0, 2_457_600).rank_cuts == "none"
    assert found(0.5, 409_600).rank_cuts == "out of reach", "400 steps of 5e-3, half of it on average, from 2.0 to 0"
    assert found(0.5, 2_457_600).rank_cuts == "possible"
    assert "cuts no rank" in say(found(0.0, 2_457_600))
    assert "no gate can cross" in say(found(0.5, 409_600))


def test_a_model_of_ones_own_is_not_the_papers_experiment() -> None:
    own = say(standing("your-model"))
    assert "a model of your own" in own
    assert "the paper's experiment" not in own
    assert "function documents" not in own


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
    assert facts.versions(results)["mixed"] == ["commit", "package", "python", "libraries"]


def test_every_record_of_the_workflow_is_of_a_stage() -> None:
    patterns = [pattern for found in facts.STAGES.values() for pattern in found]
    records = set()
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        text = path.read_text().replace("{{kind}}", "teachers")  # or students, whose records lie alike
        found = re.findall(r'(?:record|out)=f"\{(results|shards\.folder)\}/([^"]+\.json)"', text)
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
    paths = {"published": PUBLISHED, "claims": CLAIMS, "out": tmp_path / "reports"}
    with pytest.raises(BadInput) as caught:
        write_report(root, **paths, config=config_of("mini"), standing=Standing(), partial=True)
    line = str(caught.value)
    assert line.startswith(f"{root}/tables.csv: no such file; " if folder else f"{root}: no such folder; ")
    assert f"`snakemake {root}/tables.csv --config scale=mini`" in line
    assert "\n" not in line
    assert not (tmp_path / "reports").exists()
