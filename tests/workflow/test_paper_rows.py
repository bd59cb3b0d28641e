"""The paper's scale has a row for every number that the paper prints, and a target is judged by what it needs."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from fixtures.made_table import made_table

from budgeted_lora.config.scale import MAIN_CELLS, load_config
from budgeted_lora.reporting.claims import verdicts as judged
from budgeted_lora.reporting.claims.evidence import Evidence
from budgeted_lora.reporting.claims.file import Order, Printed, read_claims
from budgeted_lora.reporting.claims.verdicts import judge
from budgeted_lora.reporting.contents import CONTROLS, OWN_TARGETS
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.uncertainty import Bootstrap
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs, cell_rows, table_lines
from budgeted_lora.workflow.targets import limited, tables_needed

ROOT = Path(__file__).resolve().parents[2]
CLAIMS, PUBLISHED = ROOT / "config" / "claims.yaml", ROOT / "config" / "published.csv"
PRINTED = Published.open(PUBLISHED).lines
PAPER = load_config(ROOT / "config" / "paper.yaml")
GRAPH = Graph(PAPER)
SOURCES = {
    "table3": "Table 3", "table4": "Table 4", "table5": "Table 5", "table6": "Table 6", "table7": "Table 7",
    "lora_construction": "Section C.2",
}  # fmt: skip
COLUMNS = {"F": "budget", "T": "temperature", "a": "kd_weight", "r": "rank"}  # of cells.csv; other words are columns
SLIPS = {"28.13", "28.11", "31.13", "31.14", "25.13", "25.1"}  # two numbers in print for one student
FAST = Bootstrap(20)
STANDING = ReportJobs(GRAPH).standing
NOT_PRINTED = {0.2: 24.7, 0.6: 24.2, 0.8: 24.1}


def printed_of(source: str, metric: str = "ppl") -> list[dict[str, str]]:
    """Lines of published.csv, read here and not by the code that is tested."""
    frame = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
    return frame[(frame["source"] == source) & (frame["metric"] == metric)].to_dict("records")


def is_of(cell: dict, line: dict[str, str]) -> bool:
    """Whether a line of cells.csv is the student that a published number is about."""
    parts = [part.split("=") for part in line["setting"].split()]
    wanted = {COLUMNS.get(name, name): value for name, value in parts}
    wanted |= {"method": line["method"]} | ({"teacher": line["teacher"]} if line["teacher"] else {})
    return all(
        value == cell[name] if isinstance(cell[name], str) else cell[name] is not None and float(value) == cell[name]
        for name, value in wanted.items()
        if name in cell
    )


def perplexity_of(cell: dict) -> float:
    """What the paper prints of a student, the first of its numbers; else something between."""
    sources = {"table2": "Table 2"} | SOURCES
    for table in cell["tables"].split():
        for line in printed_of(sources[table]) if table in sources else ():
            if is_of(cell, line):
                return float(line["value"])
    return NOT_PRINTED.get(cell["budget"], 30.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/paper with every student of the scale's tables, each with the perplexity that the paper prints."""
    root = tmp_path_factory.mktemp("paper") / "results" / "paper"
    graph = limited(GRAPH, ["main", "ablations"])
    cells = cell_rows(graph)
    written = pd.DataFrame({"nll": 0.0, "tokens": 100.0}, index=range(5))
    for cell in cells:
        ppl = perplexity_of(cell)
        module = {"name": "model.layers.0.self_attn.q_proj", "dense_macs": 768 * 768}
        totals = {"avg_rank": 128.0, "macs": 1, "dense_macs": 2, "kept": 0, "svd": 0, "dropped": 42}
        for settings in cell["settings"].split():
            folder = root / "cells" / cell["cell"] / "compressed" / settings
            folder.mkdir(parents=True)
            write(folder / "perplexity.json", {"value": ppl, "conditions": {"validation_sha256": "ab"}})
            write(folder / "compression.json", {"modules": [module], "totals": totals})
            written.assign(nll=100 * math.log(ppl)).to_parquet(folder / "perplexity_windows.parquet")
        write(root / "cells" / cell["cell"] / "train.json", {"train_compute": {"scheduled": 0.5, "executed": 0.5}})
    lines = [line for table in graph.config.tables for line in table_lines(graph, table)]
    pd.DataFrame(lines).to_csv(root / "tables.csv", index=False)
    write(root / "calibration.json", {"as_published": True})
    return root


def write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def results(root: Path) -> Results:
    return Results.open(root, standing=STANDING)


@pytest.mark.parametrize("table", SOURCES)
def test_every_published_number_stands_beside_its_own_student(results: Results, table: str) -> None:
    made = made_table(table, results, Published.open(PUBLISHED), FAST)
    frame, lines = made.frame, printed_of(SOURCES[table])
    assert len(frame) == len(lines) > 0
    by_setting = {}
    for row in frame.to_dict("records"):
        [line] = [line for line in lines if is_of(row | {"method": line["method"], "teacher": "0.13B"}, line)]
        assert row["ppl_published"] == float(line["value"])
        assert line["value"] in SLIPS or row["ppl"] == pytest.approx(row["ppl_published"])
        by_setting[line["setting"]] = line["value"]
    assert by_setting == {line["setting"]: line["value"] for line in lines}
    assert list(made.shown["PPL, published"]) == [f"{value:.2f}" for value in frame["ppl_published"]]


def test_table_7_has_the_published_cost_and_rank_of_each_schedule(results: Results) -> None:
    frame = made_table("table7", results, Published.open(PUBLISHED), FAST).frame.set_index("schedule")
    for column, source, metric in (
        ("train_compute_published", "Table 7", "train_compute"),
        ("avg_rank_published", "Section C.3", "avg_rank"),
    ):
        printed = {line["setting"].split("schedule=")[1]: float(line["value"]) for line in printed_of(source, metric)}
        assert frame[column].to_dict() == printed
        assert len(printed) == 3


def test_thresholds_compress_the_students_of_the_main_tables_again(results: Results) -> None:
    frame = made_table("thresholds", results, Published.open(PUBLISHED), FAST).frame
    assert len(frame) == 3 * 12
    assert set(GRAPH.listed(["thresholds"])) <= set(GRAPH.listed(MAIN_CELLS))


def evidence_of(results: Results) -> Evidence:
    return Evidence(Results.open(results.root, standing=STANDING, partial=True), PAPER, FAST)


def test_every_claim_on_a_perplexity_finds_its_students(results: Results) -> None:
    """With the paper's own numbers as measured, each is reproduced, but for the four that are printed twice."""
    evidence, rows = evidence_of(results), []
    for claim in read_claims(CLAIMS, PRINTED).claims:
        if isinstance(claim, Printed | Order) and "teachers/" not in claim.model_dump_json():
            metric = claim.lines.metric if isinstance(claim, Printed) else claim.metric
            if metric == "ppl" and (not isinstance(claim, Printed) or claim.table):
                rows += judge(claim, evidence, PRINTED)
    assert len(rows) > 50
    assert [row.id for row in rows if row.status in (judged.NOT_RUN, judged.NOT_JUDGED)] == []
    others = [row for row in rows if row.status != judged.REPRODUCED]
    assert {row.published for row in others} <= SLIPS
    assert {row.source for row in others} <= {"Table 5", "Table 7", "Section C.2", "Table 2"}


def test_a_missing_student_is_named_and_passes_nothing(results: Results, tmp_path: Path) -> None:
    lines = results.lines
    kept = ~((lines["init"] == "scratch") & (lines["temperature"] == 4.0))
    assert kept.sum() == len(lines) - 1
    root = tmp_path / "paper"
    root.mkdir()
    lines[kept].to_csv(root / "tables.csv", index=False)
    (root / "cells").symlink_to(results.root / "cells")
    claim = next(claim for claim in read_claims(CLAIMS, PRINTED).claims if claim.id == "warm-beats-scratch")
    [row] = judge(claim, Evidence(Results.open(root, standing=STANDING, partial=True), PAPER, FAST), PRINTED)
    assert row.status == judged.NOT_RUN
    assert "init scratch, temperature 4.0" in row.reason


# --- the rows


def test_the_papers_scale_has_the_tables_of_the_default_one() -> None:
    """But for `beyond`, `elastic` and what the default scale adds because it trains little: seeds, and lengths. What it
    moves from main to all, the other budgets and the uniform controller, stands in its table `continuum`."""
    mini = load_config(ROOT / "config" / "mini.yaml")
    assert set(mini.tables) - set(PAPER.tables) == {"beyond", "continuum", "elastic", "seeds", "tokens"}
    assert set(PAPER.tables) - set(mini.tables) == {"pareto"}
    papers, minis = (ReportJobs(graph).names("ablations") for graph in (GRAPH, Graph(mini)))
    assert papers == [name for name in minis if name not in ("continuum", "seeds")]
    assert PAPER.sweeps["thresholds"] == mini.sweeps["thresholds"]
    shared = [name for name in PAPER.tables if name not in ("table2", "table8", "pareto")]
    counted = {name: len(Graph(mini).listed([name])) for name in shared}
    assert {name: len(GRAPH.listed([name])) for name in counted} == counted

    def dial(graph: Graph, *tables: str) -> set[tuple[float | None, str | None]]:
        recipes = [graph.recipe_of(cell) for cell in graph.listed(tables)]
        return {(recipe.budget, recipe.controller) for recipe in recipes}

    assert dial(GRAPH, "table8", "pareto") == dial(Graph(mini), "continuum") > dial(Graph(mini), "table8")


def test_ablations_read_a_tenth_of_the_tokens_but_for_the_schedules() -> None:
    tokens = {table: {GRAPH.recipe_of(cell).tokens for cell in GRAPH.listed([table])} for table in SOURCES}
    whole = tokens.pop("table7")
    assert whole == {2_550_000_000 // 65_536 * 65_536}
    assert set().union(*tokens.values()) == {255_000_000 // 65_536 * 65_536}


def test_one_gpu_has_the_papers_ablations_in_full_length() -> None:
    single = Graph(load_config(ROOT / "config" / "single-gpu.yaml"))
    for table in SOURCES:
        mine, papers = ({g.recipe_of(cell).tokens for cell in g.listed([table])} for g in (single, GRAPH))
        assert mine == {min(papers | {255_000_000 // 65_536 * 65_536})}
    shared = set(single.listed(["table2"]))
    assert shared & set(single.listed(["table5"]))
    assert shared & set(single.listed(["table6"])) & set(single.listed(["lora_construction"]))


def varied(row: dict, base: dict) -> Iterator[str]:
    return (name for name in row if name not in ("method", "budget") and row[name] != base.get(name))


def test_each_row_of_the_sensitivity_table_changes_one_constant() -> None:
    """And to another value than the scale's: otherwise it would be the same student as in Table 2."""
    rows = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())["tables"]["sensitivity"]
    assert all(len(list(varied(row, {}))) == 1 for row in rows)
    changed = {name for row in rows for name in varied(row, {})}
    assert changed == {
        "learning_rate", "gate_lr_multiplier", "gate_logit", "smoothing", "drop_threshold", "compression",
        "train_embeddings_head_norms", "betas", "rows",
    }  # fmt: skip
    own = set(GRAPH.listed(["table2", "table8"]))
    again = [cell for cell in GRAPH.listed(["sensitivity"]) if cell in own]
    assert [GRAPH.recipe_of(cell).budget for cell in again] == [0.8]  # compressed anew, not trained anew
    assert set(GRAPH.variants_listed(again[0], ["sensitivity"])) == {"rmax32", "rmax128"}
    assert {GRAPH.recipe_of(cell).tokens for cell in GRAPH.listed(["sensitivity"])} == {
        GRAPH.recipe_of(cell).tokens for cell in own
    }


# --- what a target needs


@pytest.mark.parametrize("scale", ["mini", "smoke", "paper"])
def test_a_target_is_judged_by_the_tables_it_needs(scale: str) -> None:
    graph = Graph(load_config(ROOT / "config" / f"{scale}.yaml"))
    every, main = set(graph.config.tables), {*MAIN_CELLS, CONTROLS} & set(graph.config.tables)
    assert tables_needed(graph, ["main"]) == tables_needed(graph, ["report"]) == main
    assert tables_needed(graph, []) == tables_needed(graph, ["all"]) == every - OWN_TARGETS
    assert tables_needed(graph, ["table3"]) == {"table3"}
    assert tables_needed(graph, ["ablations"]) == set(ReportJobs(graph).names("ablations"))
    assert tables_needed(graph, ["main", "table3"]) == main | {"table3"}
    assert tables_needed(graph, ["calibration"]) == set()
    assert tables_needed(graph, ["reports/some/file.csv"]) == every
    assert limited(graph, ["main"]).cells.keys() == set(graph.listed(main))
    if "sensitivity" in every:
        assert tables_needed(graph, ["sensitivity"]) == main | {"sensitivity"}
