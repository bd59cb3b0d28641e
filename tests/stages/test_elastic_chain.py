"""A tiny scale with an elastic row, from the untrained student to its table: each stage with the options of its job."""

import shutil
from contextlib import chdir
from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.tiny_scale import SCALE, TINY, write_scale
from fixtures.training_world import lay_out_world

from budgeted_lora.commands.status import Inspector
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.planning.structures import own_structures
from budgeted_lora.reporting.contents import ELASTIC
from budgeted_lora.stages.arguments import bind
from budgeted_lora.workflow import options
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs

START = {"method": "budgeted_lora", "low_rank_init": "activation_svd", "order": "gradient"}
OWN = {
    "tables": {
        ELASTIC: [START | {"budget": "elastic", "compression": "dial"}, START | {"budget": 0.4}],
        "table6": None,
    },
    "budget": {"schedules": {"none": [0.0, 0.0]}, "schedule": "none", "smoothing": 0.0, "elastic_budgets": [0.0, 0.8]},
    "sweeps": {"dial": {"budget": [0.0, 0.4, 0.8]}}, "lora": {"rank": 4, "alpha": 8, "statistics_windows": 2},
    "compression": {"rank_threshold": 0.0}, "report": {"bootstrap": 20},
}  # fmt: skip


def run(stage: str, given: dict, **paths: Path | None) -> None:
    """A stage as its rule calls it: options in the types of its signature, paths as they are."""
    function, arguments = bind(stage, given | {name: str(path) for name, path in paths.items() if path is not None})
    function(**arguments)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything of the scale's table."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("chain")
    with chdir(folder):
        graph = write_scale(folder, SCALE, OWN, {"device": "cpu"})
        data, teacher, student = TINY / "data", TINY / "teachers/A/model", TINY / "students/mixed"
        lay_out_world(data, teacher=teacher)
        cut = options.cut_student(graph, "mixed")
        run("cut_student", cut, teacher=teacher, out=student / "model", record=student / "student.json")
        measured = {"out": student / "statistics", "record": student / "statistics.json"}
        measured |= {"student": student / "model", "tokens": data / "train.bin"}
        run("measure_statistics", options.measure_statistics(graph), **measured)
        for cell in graph.cells:
            make_cell(graph, cell)
        table = TINY / f"tables/{ELASTIC}.csv"
        config = {"config": graph.config.model_dump(mode="json")}
        run("list_table", config | {"table": ELASTIC}, out=table)
        shutil.copyfile(table, TINY / "tables.csv")
    return folder


def make_cell(graph: Graph, cell: str) -> None:
    data, student, place = TINY / "data", TINY / "students/mixed", TINY / "cells" / cell
    begun = {"student": student / "model", "teacher": TINY / "teachers/A/model", "tokens": data / "train.bin"}
    run(
        "train_cell", options.train_cell(graph, cell), **begun, statistics=student / "statistics", out=place,
        state=TINY / "state",
    )  # fmt: skip
    for variant in graph.cells[cell].variants:
        out, trained = place / "compressed" / variant, place / "trained"
        run(
            "compress_cell", options.compress_cell(graph, cell, variant), student=student / "model", trained=trained,
            tokens=data / "validation.bin", tokenizer=data / "tokenizer", out=out,
        )  # fmt: skip
        run(
            "evaluate", options.evaluate(graph, cell=cell, variant=variant, icl=False), model=out / "model",
            tokens=data, tokenizer=data / "tokenizer", out=out, student=student / "model", uncompressed=trained,
            compression=out / "compression.json",
        )  # fmt: skip


@pytest.fixture
def here(computed: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """The scale's graph, in its folder."""
    monkeypatch.chdir(computed)
    return write_scale(computed, SCALE, OWN, {"device": "cpu"})


def test_one_training_is_compressed_and_scored_at_every_budget(here: Graph) -> None:
    elastic, fixed = here.cells
    scores = {}
    for variant in here.cells[elastic].variants:
        folder = TINY / "cells" / elastic / "compressed" / variant
        record, score = (read_json(folder / f"{name}.json") for name in ("compression", "perplexity"))
        scores[variant] = score["value"], record["totals"]["macs"], score["uncompressed"]["value"]
        assert score["conditions"]["budget"] == float(variant[1:])
        assert record["totals"]["svd"] <= 1
    (at_0, at_4, at_8), macs, before = zip(*scores.values(), strict=True)
    assert list(scores) == ["F0.0", "F0.4", "F0.8"]
    assert len({at_0, at_4, at_8}) == len({*before}) == 3, "each is scored at its own budget, before and after"
    assert macs[0] < macs[1] < macs[2]
    own = read_json(TINY / "cells" / fixed / "compressed/default/compression.json")
    mine = read_json(TINY / "cells" / elastic / "compressed/F0.4/compression.json")
    assert [m["d"] for m in mine["modules"]] == pytest.approx([m["d"] for m in own["modules"]])
    assert mine["totals"]["macs"] == own["totals"]["macs"]


def test_the_books_know_each_budget(here: Graph) -> None:
    own = [one for status in Inspector(here).cells() for one in status.stages if one.stage.own]
    assert {one.state for one in own} == {"done"}
    assert [one.stage.name for one in own][:4] == ["train", "compress F0.0", "score F0.0", "compress F0.4"]
    named = [(item.cell, item.structure.rule.budget) for item in own_structures(here) if item.structure]
    elastic, fixed = here.cells
    assert named == [(elastic, 0.0), (elastic, 0.4), (elastic, 0.8), (fixed, 0.4)]


def test_the_table_has_a_line_for_each_budget(here: Graph, tmp_path: Path) -> None:
    given = ReportJobs(here).table_options(ELASTIC)
    lines = TINY / f"tables/{ELASTIC}.csv"
    published = Path(__file__).parents[2] / "config/published.csv"
    run("make_table", given, lines=lines, published=published, results=TINY, out=tmp_path)
    frame = pd.read_csv(tmp_path / f"tables/{ELASTIC}.csv")
    assert frame["budget"].tolist() == [0.0, 0.4, 0.4, 0.8]
    assert frame["elastic"].tolist() == [True, False, True, True]
    assert frame["above_own_pct"].notna().tolist() == [False, False, True, False]
    run("make_figure", {"figure": ELASTIC, "standing": given["standing"]}, lines=lines, results=TINY, out=tmp_path)
    assert (tmp_path / f"figures/{ELASTIC}.svg").stat().st_size


def test_without_a_budget_an_elastic_student_is_not_compressed(here: Graph, tmp_path: Path) -> None:
    elastic, _ = here.cells
    data, place = TINY / "data", TINY / "cells" / elastic
    with pytest.raises(BadInput, match="trained for every budget; compress it at one"):
        run(
            "compress_cell", options.compress_cell(here, elastic, "default"), student=TINY / "students/mixed/model",
            trained=place / "trained", tokens=data / "validation.bin", tokenizer=data / "tokenizer", out=tmp_path,
        )  # fmt: skip
