"""Rows with `budget: elastic`: what they mean, what is refused, and their jobs and lines, one for each budget."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.checkout import checkout
from fixtures.snakemake_runs import planned_jobs

from budgeted_lora.commands.show_status import recipe_lines
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import named_device
from budgeted_lora.planning.structures import own_structures
from budgeted_lora.reporting.contents import ELASTIC
from budgeted_lora.stages.arguments import bind
from budgeted_lora.workflow import options
from budgeted_lora.workflow.cells import cells
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import differences
from budgeted_lora.workflow.report import cell_rows, table_lines

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    "method": "budgeted_lora", "budget": "elastic", "low_rank_init": "activation_svd", "order": "gradient",
    "compression": "dial",
}  # fmt: skip
SWEEPS = {"dial": {"budget": [0.0, 0.4], "rank_multiple": [1, 2]}, "ranks": {"r_max": [2, 4]}}
VALUES: dict[str, Any] = {
    "scale": "tiny", "sequence_length": 64, "corpus": {"packages": ["numpy"]}, "student": {"layers": 2},
    "teacher_ladder": {"A": {"layers": 4, "hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 1}},
    "training": {"tokens": 300 * 4 * 64, "batch_windows": 4, "micro_batch_windows": 4},
    "lora": {"rank": 8, "alpha": 16}, "sweeps": SWEEPS,
}  # fmt: skip


def config(*rows: dict[str, Any], table: str = ELASTIC, **sections: Any) -> Config:
    return Config.model_validate(VALUES | sections | {"tables": {table: list(rows or [ROW])}})


def one(**changed: Any) -> Recipe:
    [cell] = cells(config(ROW | changed))
    return cell.recipe


def test_a_row_is_one_student_in_the_variants_of_its_sweep() -> None:
    [cell] = cells(config())
    assert list(cell.variants) == ["F0.0", "F0.0_multiple2", "F0.4", "F0.4_multiple2"]
    assert "_elastic_gradient_asvd_s0-" in cell.id
    recipe = cell.recipe
    assert recipe.elastic_budgets == (0.0, 0.2, 0.4, 0.6, 0.8)
    assert (recipe.budget, recipe.schedule, recipe.schedule_start, recipe.smoothing) == (None,) * 4
    assert (recipe.controller, recipe.drop_threshold, recipe.statistics_windows) == ("greedy", 0.05, 64)
    assert not recipe.plain


def test_budgets_are_a_set_and_part_of_the_id() -> None:
    assert one(elastic_budgets=[0.8, 0, 0.4]).elastic_budgets == (0.0, 0.4, 0.8)
    scale, row = (config(**more) for more in ({"budget": {"elastic_budgets": [0.4, 0]}}, {}))
    assert cells(scale)[0].id == cells(config(ROW | {"elastic_budgets": [0, 0.4]}))[0].id != cells(row)[0].id
    assert differences(row, one(elastic_budgets=[0, 0.4]))["elastic_budgets"] == [0.0, 0.4]
    assert differences(row, one(low_rank_init="svd")) == {"low_rank_init": "svd"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"schedule": "short"}, "budget: elastic does not use schedule; remove it, or use one budget"),
        ({"whole": True}, "budget: elastic does not use whole; remove it, or use one budget"),
        ({"smoothing": 0.5}, "budget: elastic does not use smoothing; remove it, or use one budget"),
        (
            {"low_rank_init": "zero"},
            "budget: elastic needs low_rank_init: activation_svd or svd; low_rank_init is zero",
        ),
        ({"order": "energy"}, "budget: elastic needs order: gradient; order is energy"),
        ({"order": None}, "budget: elastic needs order: gradient; order is mac"),
        ({"controller": "uniform"}, "budget: elastic needs controller: greedy; controller is uniform"),
        ({"compression": None}, "budget: elastic needs compression: the name of a sweep with budget"),
        ({"compression": "ranks"}, "sweeps.ranks has no budget; budget: elastic needs the fractions F"),
        ({"budget": 0.4}, "sweeps.dial.budget is for rows with budget: elastic"),
        ({"budget": 0.4, "elastic_budgets": [0.0, 0.4], "compression": None}, "has no effect without budget: elastic"),
        ({"method": "kd_lora", "order": None}, "kd_lora does not use budget; remove it, or use budgeted_lora"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=r"^tables.elastic, row 1 \{method: ") as caught:
        cells(config(ROW | row))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"elastic_budgets": [0.4]}, "elastic_budgets is [0.4], expected at least 2 entries"),
        ({"elastic_budgets": [0.4, 0.4]}, "which lists 0.4 twice"),
        ({"elastic_budgets": [0.4, 1.0]}, "expected each value to be a number at least 0 and below 1, found 1.0 in it"),
        ({"budget": "elastik"}, "budget is 'elastik', expected a number from 0 to 1 or elastic or a list"),
        ({"budget": ["elastic", 0.4]}, "found 'elastic' in it"),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(VALUES | {"tables": {ELASTIC: [ROW | row]}}))
    with pytest.raises(BadInput) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sections_say_budgets_only_where_they_act() -> None:
    with pytest.raises(ValueError, match=r"compression\.budget stands in a list of sweeps"):
        config(compression={"budget": 0.4})
    with pytest.raises(ValueError, match=r"budget\.elastic_budgets names a budget twice"):
        config(budget={"elastic_budgets": [0.4, 0.4]})


@pytest.mark.parametrize("table", ["table2", "table8", "thresholds", "beyond", "controls", "tokens", "sensitivity"])
def test_tables_of_one_compressed_student_a_cell_refuse_them(table: str) -> None:
    with pytest.raises(BadInput, match=f"in the table elastic or in one of a name of your own, not in {table}"):
        cells(config(table=table))
    assert len(cells(config(table="mine"))) == 1


def test_lines_have_the_budget_of_their_variant_and_no_structure() -> None:
    graph = Graph(config())
    [cell] = graph.cells
    assert [line["budget"] for line in table_lines(graph, ELASTIC)] == [0.0, 0.0, 0.4, 0.4]
    [row] = cell_rows(graph)
    assert (row["budget"], row["elastic_budgets"], row["structure"]) == (None, [0.0, 0.2, 0.4, 0.6, 0.8], None)
    assert graph.structure_of(cell) is None
    assert graph.timed() == graph.planned == {}
    assert graph.structures() == {}
    assert [item.structure for item in own_structures(graph)] == [None] * 4
    assert "elastic" in recipe_lines(graph, cell)[0]


def test_a_scale_that_is_orders_by_gradient_has_elastic_rows_without_saying_so() -> None:
    row = {name: ROW[name] for name in ("method", "budget", "compression")}
    own = config(row, lora={"rank": 8, "low_rank_init": "activation_svd"}, budget={"order": "gradient"})
    assert cells(own)[0].recipe.order == "gradient"


def test_costs_count_the_share_of_dense_paths_that_steps_have() -> None:
    def flops(row: dict[str, Any]) -> float:
        graph = Graph(config(row))
        return ScaleCosts(graph, named_device("cpu", graph.config)).cells[0].student_flops

    half = ROW | {"elastic_budgets": [0.25, 0.75]}
    fixed = {name: ROW[name] for name in ("method", "low_rank_init", "order")} | {"schedule": "none"}
    assert flops(half) == pytest.approx(flops(fixed | {"budget": 0.5}))


def test_other_variants_keep_their_options() -> None:
    """A key that an option has only where it says something reruns nothing."""
    graph = Graph(config(ROW, {"method": "kd_lora"}))
    elastic, lora = graph.cells
    assert "budget" not in options.compress_cell(graph, lora, "default")["variant"]
    assert "budget" not in options.evaluate(graph, cell=lora, icl=False)
    assert options.compress_cell(graph, elastic, "F0.4")["variant"]["budget"] == 0.4
    assert options.evaluate(graph, cell=elastic, variant="F0.4", icl=False)["budget"] == 0.4


def test_the_target_trains_each_student_once_and_cuts_it_to_every_budget(tmp_path: Path) -> None:
    jobs = planned_jobs(checkout(tmp_path), ELASTIC, "--cores", "2", "--config", "scale=mini")
    found = Counter(job.rule for job in jobs)
    graph = Graph(load_config(ROOT / "config/mini.yaml"))
    mine = graph.listed([ELASTIC])
    elastic = [cell for cell in mine if graph.recipe_of(cell).elastic]
    assert len(elastic) == len(mine) - len(elastic) == 6
    names = [f"cells/{cell}/" for cell in mine]
    own = Counter(job.rule for job in jobs if any(name in job.fields.get("output", "") for name in names))
    assert own["train_cell"] == 12
    assert own["compress_cell"] == own["score_cell"] + own["evaluate_cell"] == 5 * 6 + 6
    assert found["make_figure"] >= 1
    for job in jobs:
        if job.rule in ("train_cell", "compress_cell", "score_cell"):
            stage = {"score_cell": "evaluate"}.get(job.rule, job.rule)
            _, arguments = bind(stage, job.options)
            if job.rule == "score_cell" and "_elastic_" in job.fields["output"]:
                assert f"/F{arguments['budget']}/" in job.fields["output"]
