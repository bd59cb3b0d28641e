"""Cells: each student once, ids that change with what determines the weights and with nothing else."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.config.sections import Pretraining
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, dense_macs
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import steps_needed
from budgeted_lora.workflow import options
from budgeted_lora.workflow.cells import Cell, cells
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import control_shape, default_recipe, differences, planned, student_shape

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"layers": 4, "hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 1, "tokens": 4096}
LARGE = SMALL | {"hidden": 64, "ffn": 128}
TABLES = {
    "table2": [
        {"method": "kd_full", "teacher": ["A", "B"]},
        {"method": "kd_lora", "teacher": ["A", "B"]},
        {"method": "budgeted_lora", "teacher": ["A", "B"], "budget": [0.4, 0.0]},
    ],
    "table8": [{"method": "budgeted_lora", "budget": [0.0, 0.4, 0.8]}],
}
VALUES: dict[str, Any] = {
    "scale": "tiny",
    "sequence_length": 64,
    "corpus": {"packages": ["numpy"]},
    "teachers": "pretrain",
    "teacher_ladder": {"A": SMALL, "B": LARGE},
    "student": {"layers": 2},
    "training": {"tokens": 300 * 4 * 64, "batch_windows": 4, "micro_batch_windows": 4},
    "lora": {"rank": 8, "alpha": 16},
    "compression": {"r_max": 4},
    "tables": TABLES,
}


def config(**paths: Any) -> Config:
    """The values above with some replaced, e.g. `training__clip=2.0`."""
    values = copy.deepcopy(VALUES)
    for path, value in paths.items():
        *parents, name = path.split("__")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return Config.model_validate(values)


def ids(**paths: Any) -> list[str]:
    return [cell.id for cell in cells(config(**paths))]


def one(row: dict[str, Any], **paths: Any) -> Cell:
    all_cells = cells(config(tables={"t": [row]}, **paths))
    assert len(all_cells) == 1
    return all_cells[0]


def test_lists_are_multiplied_out_and_equal_cells_are_one() -> None:
    all_cells = cells(config())
    assert len(all_cells) == 2 + 2 + 4 + 1
    assert len({cell.id for cell in all_cells}) == len(all_cells)
    shared = [cell for cell in all_cells if cell.tables == ("table2", "table8")]
    assert sorted(cell.recipe.budget for cell in shared) == [0.0, 0.4]
    assert {cell.recipe.teacher for cell in shared} == {"A"}


def test_a_row_that_says_the_default_is_the_same_cell() -> None:
    plain = one({"method": "budgeted_lora", "budget": 0.4})
    said = {"teacher": "A", "init": "mixed", "schedule": "short", "controller": "greedy", "rank": 8, "alpha": 16}
    said |= {"temperature": 3.0, "kd_weight": 0.8, "seed": 0, "tokens": 300 * 4 * 64, "learning_rate": 1e-3}
    assert one({"method": "budgeted_lora", "budget": 0.4} | said) == plain


def test_windows_of_statistics_are_in_the_id_though_the_row_trains_on_others() -> None:
    """Statistics are taken on windows as the scale cuts them."""
    row = {"method": "budgeted_lora", "budget": 0.4, "rows": "packed", "low_rank_init": "activation_svd"}
    assert one(row, rows="packed").id != one(row, rows="document").id
    plain = {"method": "kd_lora", "rows": "packed"}
    assert one(plain, teachers="shipped").id == one(plain, teachers="shipped", rows="document").id


def test_a_cell_of_two_rows_names_its_table_once() -> None:
    rows = [{"method": "kd_full"}, {"method": "kd_full", "teacher": "A"}]
    assert [cell.tables for cell in cells(config(tables={"t": rows}))] == [("t",)]


def test_ids_are_readable_and_repeat() -> None:
    names = ids()
    assert names == ids()
    assert names[0].startswith("kd-full_A_mixed_s0-")
    assert any(name.startswith("budgeted-lora_B_mixed_F0.4_s0-") for name in names)
    assert one({"method": "kd_lora", "rank": 4}).id.startswith("kd-lora_A_mixed_r4_s0-")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gpus_per_run", 2),
        ("evaluation__queries", 7),
        ("evaluation__shots", 3),
        ("compression__r_max", 2),
        ("compression__svd_threshold", 0.4),
        ("compression__rank_multiple", 8),
        ("report__bootstrap", 10),
        ("speed__repeats", 5),
        ("training__log_every", 3),
        ("training__checkpoint_every", 3),
        ("corpus__validation_tokens", 1000),
        ("threads__evaluation", 2),
        ("device", "cpu"),
        ("scale", "other"),
    ],
)
def test_what_does_not_touch_weights_changes_no_id(path: str, value: Any) -> None:
    assert ids(**{path: value}) == ids()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("corpus__slice_per_mille", 40),
        ("corpus__function_share", 0.5),
        ("tokenizer__vocab_size", 512),
        ("pretraining__seed", 1),
        ("sequence_length", 32),
        ("training__temperature", 2.0),
        ("training__seed", 1),
        ("training__batch_windows", 2),
        ("rows", "document"),
        ("training__betas", [0.9, 0.95]),
    ],
)
def test_what_every_student_depends_on_changes_every_id(path: str, value: Any) -> None:
    more = {"training__micro_batch_windows": 2} if path == "training__batch_windows" else {}
    assert not set(ids(**{path: value}, **more)) & set(ids())


@pytest.mark.parametrize(
    ("path", "value", "concerned"),
    [
        ("training__learning_rate", {"kd_full": 5e-3}, lambda r: r.method == "kd_full"),
        ("lora__dropout", 0.3, lambda r: r.method != "kd_full"),
        ("training__train_embeddings_head_norms", True, lambda r: r.method != "kd_full"),
        ("budget__smoothing", 0.8, lambda r: r.method == "budgeted_lora"),
        ("budget__gate_logit", 1.0, lambda r: r.method == "budgeted_lora"),
        ("teacher_ladder__B__tokens", 8192, lambda r: r.teacher == "B"),
        ("teacher_ladder__A__tokens", 8192, lambda r: True),
        ("training__learning_rate", {"budgeted_lora": 5e-3}, lambda r: r.method == "budgeted_lora"),
    ],
)
def test_ids_change_for_the_cells_concerned_only(path: str, value: Any, concerned: Any) -> None:
    before, after = cells(config()), cells(config(**{path: value}))
    assert len(before) == len(after)
    changed = [old.id != new.id for old, new in zip(before, after, strict=True)]
    assert changed == [bool(concerned(cell.recipe)) for cell in before]


def test_editing_one_row_changes_that_cell_only() -> None:
    tables = copy.deepcopy(TABLES)
    tables["table8"][0]["budget"] = [0.0, 0.4, 0.6]
    before, after = set(ids()), set(ids(tables=tables))
    assert len(before - after) == len(after - before) == 1


def test_the_recipe_of_shipped_teachers_does_not_depend_on_pretraining_settings() -> None:
    assert ids(teachers="shipped") == ids(teachers="shipped", pretraining__seed=1, tokenizer__vocab_size=512)


def test_alpha_keeps_its_ratio_to_the_rank() -> None:
    assert one({"method": "kd_lora", "rank": 4}).recipe.alpha == 8
    assert one({"method": "kd_lora", "rank": 4, "alpha": 5}).recipe.alpha == 5


def test_kd_weight_zero_and_seed_zero_are_values() -> None:
    recipe = one({"method": "kd_full", "kd_weight": 0.0, "seed": 0}, training__seed=4).recipe
    assert (recipe.kd_weight, recipe.seed) == (0.0, 0)


def test_tokens_are_rounded_down_to_whole_steps() -> None:
    recipe = one({"method": "kd_full", "tokens": 1000}).recipe
    assert (recipe.steps, recipe.tokens) == (3, 768)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {"table2": [{"method": "kd_full"}, {"method": "kd_full", "learning_rate": 0.5}]},
            "table2 lists kd_full with learning_rate 0.001 and 0.5; expected one",
        ),
        (
            {"table2": [{"method": "kd_lora"}], "sensitivity": [{"method": "kd_full", "temperature": 1.0}]},
            "sensitivity varies kd_full .teacher A, seed 0., of which table2 and table8 list no student",
        ),
        (
            {
                "table2": [{"method": "kd_lora", "seed": [0, 1]}],
                "sensitivity": [{"method": "kd_lora", "rank": 2, "seed": [0, 1]}],
            },
            "sensitivity has 2 values of seed; expected one",
        ),
    ],
)
def test_tables_that_would_mix_or_lack_students_are_refused(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        cells(config(tables=tables))


def test_structure_is_shared_where_shapes_are_equal() -> None:
    row = {"method": "budgeted_lora", "budget": 0.4}
    rows = [row | {"teacher": ["A", "B"], "schedule": ["short", "long"]}, row | {"controller": "uniform"}]
    graph = Graph(config(tables={"mine": [*rows, {"method": "kd_lora"}]}))
    names = [graph.structure_of(cell) for cell in graph.cells]
    assert len(names) == 6
    assert len(set(names[:4])) == 1
    assert names[4] not in {None, names[0]}
    assert names[5] is None


@settings(deadline=None)
@given(budget=st.floats(0, 1), rank=st.integers(1, 8), depth=st.one_of(st.none(), st.just(2)))
def test_a_control_has_the_macs_of_its_budget(budget: float, rank: int, depth: int | None) -> None:
    scale = config(lora__rank=rank)
    try:
        layers, ffn = control_shape(scale, budget, layers=depth)
    except BadInput:  # so few that not one neuron is left
        assume(False)
    full = student_shape(scale)
    control = replace(full, layers=layers, ffn=ffn)
    left_over = planned(scale, default_recipe(scale, "budgeted_lora", budget)).totals.macs - dense_macs(control)
    assert left_over >= 0
    assert control == full or left_over < layers * (3 * full.hidden + 1)


def test_a_row_may_ask_for_another_shape() -> None:
    budgeted = {"method": "budgeted_lora", "budget": 0.4}
    rows = [budgeted, budgeted | {"student_layers": 3, "student_ffn": [48, 64]}, budgeted | {"student_ffn": 48}]
    rows += [budgeted | {"student_layers": 2, "student_ffn": 64}, {"method": "kd_full", "student_layers": 3}]
    graph = Graph(config(tables={"mine": rows}))
    shapes = [(graph.recipe_of(cell).student_layers, graph.recipe_of(cell).student_ffn) for cell in graph.cells]
    assert shapes == [(2, None), (3, 48), (3, 64), (2, 48), (3, 64)]  # the fourth row is the first again
    students = [graph.student_of(cell) for cell in graph.cells]
    assert students == ["mixed", "mixed_L3_ffn48", "mixed_L3_ffn64", "mixed_L2_ffn48", "mixed_L3_ffn64"]
    first, *others = graph.cells
    assert graph.structure_of(first) is not None
    assert {graph.structure_of(cell) for cell in others} == {None}
    full = dense_macs(student_shape(graph.config))
    assert [round(graph.planned[cell].totals.dense_macs / full, 2) for cell in list(graph.cells)[:4]] == [
        1.0, 1.24, 1.5, 0.82,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "table", "expected"),
    [
        ({"student_layers": 5}, "mine", "student_layers 5 exceeds 4, that of the first teacher A"),
        ({"student_ffn": 65}, "beyond", "student_ffn 65 exceeds 64, that of the first teacher A"),
        ({"student_ffn": 48}, "table2", "student_ffn stands in the tables beyond, controls, tokens or in one of a"),
        ({"student_ffn": 48}, "table4", "not in table4"),
        (
            {"student_ffn": 48, "macs_of_budget": 0.4},
            "controls",
            "macs_of_budget chooses the size of the feed-forwards",
        ),
        (
            {"student_layers": 4, "macs_of_budget": 0.0},
            "controls",
            "macs_of_budget 0: 4 layers leave no MACs for feed-",
        ),
        ({"student_layers": 1, "macs_of_budget": 0.8}, "controls", "macs_of_budget 0.8: 1 whole layers have fewer"),
        ({"macs_of_budget": 0.4}, "pareto", "macs_of_budget stands in the tables beyond, controls, tokens"),
        ({"student_ffn": 48}, "figure2", "not in figure2"),
        ({"student_ffn": 48, "method": "kd_lora"}, "controls", "student_ffn of kd_lora stands in beyond"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(row: dict[str, Any], table: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        cells(config(tables={table: [{"method": "kd_full"} | row]}))


def test_beyond_needs_a_student_of_the_scales_shape() -> None:
    rows = [{"method": "kd_full"}, {"method": "budgeted_lora", "budget": 0.4, "student_ffn": 48}]
    with pytest.raises(BadInput, match="beyond: students of another shape stand beside budgeted ones"):
        cells(config(tables={"beyond": rows}))
    assert len(cells(config(tables={"beyond": [*rows, {"method": "budgeted_lora", "budget": 0.4}]}))) == 3


def test_ranks_rounded_to_a_multiple_are_planned_truncated_to_and_named() -> None:
    row = {"method": "budgeted_lora", "budget": 0.4, "compression": "multiples"}
    tables = {"t": [row, {"method": "kd_full", "compression": "alone"}]}
    sweeps = {"multiples": {"rank_multiple": [1, 4]}, "alone": {"macs_of_budget": [0.4]}}
    plain, rounded = (Graph(config(tables=tables, sweeps=sweeps, compression__rank_multiple=m)) for m in (1, 8))
    assert list(plain.variants) == ["default", "multiple4", "macsF0.4"]
    assert "rank_multiple" not in options.compression(plain, "default")
    assert options.compression(plain, "multiple4")["rank_multiple"] == 4
    cell = next(iter(plain.cells))
    assert [module.svd_rank for module in plain.planned[cell].modules if module.svd_rank] == [2]
    assert [module.svd_rank for module in rounded.planned[cell].modules if module.svd_rank] == [8]
    assert plain.structure_of(cell) != rounded.structure_of(cell)
    macs = [options.compression(graph, "macsF0.4")["macs"] for graph in (plain, rounded)]
    assert macs == [graph.planned[cell].totals.macs for graph in (plain, rounded)]
    assert macs[1] - macs[0] == 6 * (32 + 64)


def test_controls_and_sweeps_are_named_by_what_differs() -> None:
    rows = [
        {"method": "kd_full", "macs_of_budget": [0.4, 0.0]},
        {"method": "kd_full", "init": "scratch", "seed": [0, 1]},
        {"method": "kd_full", "compression": "svd"},
        {"method": "budgeted_lora", "budget": 0.4, "compression": "gates"},
    ]
    sweeps = {"svd": {"macs_of_budget": [0.4]}, "gates": {"rank_threshold": [0.3, 0.5], "r_max": [2, 4]}}
    graph = Graph(config(tables={"t": rows, "table2": [{"method": "kd_full"}]}, sweeps=sweeps))
    assert [graph.student_of(cell) for cell in graph.cells] == [
        "mixed_L2_ffn35", "mixed_L1_ffn56", "scratch", "scratch_s1", "mixed", "mixed",
    ]  # fmt: skip
    *_, full, budgeted = graph.cells.values()
    assert full.variants == {"default": ("table2",), "macsF0.4": ("t",)}
    assert list(budgeted.variants) == ["default", "gate0.3_rmax2", "gate0.3", "rmax2"]
    assert full.tables == ("table2", "t")
    assert options.compression(graph, "macsF0.4")["macs"] == graph.planned[budgeted.id].totals.macs


def test_a_longer_row_reads_a_cache_of_its_own() -> None:
    """So that adding it changes nothing that the others read."""
    rows = [{"method": "kd_lora"}, {"method": "kd_lora", "tokens": 301 * 4 * 64}, {"method": "kd_full", "tokens": 6400}]
    graph = Graph(
        config(tables={"t": [*rows, {"method": "kd_full", "rows": "document"}]}, training__teacher_cache="hidden")
    )
    names = [graph.cache_of(cell).name for cell in graph.cells]
    assert names == ["A_1200", "A_1204", "A_1200", "A_1200_document"]
    assert [cache.windows for cache in graph.caches().values()] == [1200, 1204, 1200]
    assert graph.train_tokens() == Graph(config()).train_tokens()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"method": "kd_full", "teacher": "C"}, "teacher 'C' is not in teacher_ladder: A, B"),
        (
            {"method": "budgeted_lora", "budget": 0.4, "schedule": "slow"},
            "schedule 'slow' is not among budget.schedules",
        ),
        ({"method": "budgeted_lora"}, "budgeted_lora needs budget, the final dense fraction F"),
        ({"method": "kd_lora", "budget": 0.4}, "kd_lora does not use budget; remove it, or use budgeted_lora"),
        ({"method": "kd_full", "budget": 0.0}, "kd_full does not use budget"),
        ({"method": "kd_lora", "rank": 9}, "rank 9 exceeds 8, the smallest dimension"),
        (
            {"method": "kd_full", "tokens": 255},
            "tokens 255 make 0 steps: a step takes 256 (training.batch_windows 4 x sequence_length 64)",
        ),
        (
            {"method": "kd_full", "macs_of_budget": 0.4, "rank": 4},
            "kd_full does not use rank; remove it, or use kd_lora or budgeted_lora",
        ),
        ({"method": "kd_full", "alpha": 4.0}, "kd_full does not use alpha"),
        (
            {"method": "kd_full", "train_embeddings_head_norms": False},
            "kd_full does not use train_embeddings_head_norms",
        ),
        (
            {"method": "kd_lora", "schedule": ["short", "long"]},
            "kd_lora does not use schedule; remove it, or use budgeted_lora",
        ),
        ({"method": "kd_lora", "smoothing": 0.0}, "kd_lora does not use smoothing; remove it, or use budgeted_lora"),
        ({"method": "kd_lora", "controller": "greedy"}, "kd_lora does not use controller"),
        ({"method": "kd_lora", "macs_of_budget": 0.4}, "kd_lora does not use macs_of_budget; remove it"),
        (
            {"method": "kd_lora", "compression": "svd"},
            "kd_lora does not use sweeps.svd.macs_of_budget; remove it, or use kd_full",
        ),
        (
            {"method": "kd_full", "compression": "moments"},
            "sweeps.moments: truncation: outputs needs undistilled: true",
        ),
        (
            {"method": "budgeted_lora", "budget": 0.4, "controller": "uniform", "order": "energy"},
            "order needs controller: greedy",
        ),
        (
            {"method": "budgeted_lora", "budget": 0.4, "controller": "uniform", "train_dense": "kept"},
            "train_dense needs controller: greedy",
        ),
        (
            {"method": "budgeted_lora", "budget": 0.4, "controller": "uniform", "whole": True},
            "whole needs controller: greedy",
        ),
        ({"method": "kd_lora", "whole": True}, "kd_lora does not use whole"),
        (
            {"method": "budgeted_lora", "budget": 0.4, "train_dense": "all"},
            "train_dense: all needs low_rank_init: svd or activation_svd; low_rank_init is zero",
        ),
        ({"method": "kd_lora", "train_dense": "kept"}, "kd_lora does not use train_dense"),
        ({"method": "kd_lora", "rank": 2, "ranks": "allocated"}, "lora.rank_step 4 exceeds rank 2"),
        ({"method": "kd_full", "compression": "none"}, "'none' is not among sweeps: svd, moments"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(row: dict[str, Any], expected: str) -> None:
    sweeps = {"svd": {"macs_of_budget": [0.4]}, "moments": {"macs_of_budget": [0.4], "truncation": ["outputs"]}}
    with pytest.raises(BadInput, match=r"^tables.t, row 2 \{method: .*\}: ") as caught:
        cells(config(tables={"t": [{"method": "kd_full"}, row]}, sweeps=sweeps))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dense_paths_train_at_the_rate_of_kd_full_where_some_are_left() -> None:
    row = {"method": "budgeted_lora", "budget": 0.4, "low_rank_init": "svd"}
    plain, kept, everything = (one(row | {"train_dense": value}) for value in ("none", "kept", "all"))
    assert plain.id == one(row).id
    assert "_dense-kept_" in kept.id
    assert kept.recipe.dense_learning_rate == config().training.learning_rate.kd_full
    assert everything.recipe.train_dense == "all"
    nothing_left = row | {"budget": 0.0}
    assert one(nothing_left | {"train_dense": "kept"}).id == one(nothing_left).id
    assert one(nothing_left | {"train_dense": "all"}).id != one(nothing_left).id


def test_largest_rank_is_allowed() -> None:
    assert one({"method": "kd_lora", "rank": 8}).recipe.rank == 8


def test_too_short_a_run_is_refused_with_what_it_needs() -> None:
    shape = ModelShape(layers=2, hidden=32, kv=8, ffn=64)
    needed = steps_needed(shape, BudgetRule(budget=0.0, start=0.1, end=0.3))
    row = {"method": "budgeted_lora", "budget": 0.0}
    assert one(row | {"tokens": needed * 256}).recipe.steps == needed
    numbers = f"{needed - 1} steps are too few .* needs {needed} steps, tokens {needed * 256}: a step takes 256"
    with pytest.raises(BadInput, match=numbers):
        one(row | {"tokens": needed * 256 - 1})


def test_ids_are_those_of_results_that_exist() -> None:
    """Ids of every scale and of unusual rows: a change here makes all results of the cells concerned be made again."""
    kept = json.loads((ROOT / "tests/workflow/cell_ids.json").read_text())
    for scale, expected in kept["scales"].items():
        assert sorted(cell.id for cell in cells(load_config(ROOT / "config" / f"{scale}.yaml"))) == expected
    for case in kept["rows"]:
        assert ids(tables={"t": [case["row"]]}) == case["ids"]


def test_what_only_scores_a_student_or_is_not_read_changes_no_id() -> None:
    assert ids(corpus__overlap_share=0.9) == ids(corpus__overlap_ngram=8) == ids(corpus__validation_tokens=5) == ids()
    assert ids(teacher_ladder__A__tokens=8192) != ids()
    shipped = ids(teachers="shipped")
    assert ids(teachers="shipped", teacher_ladder__A__tokens=8192, teacher_ladder__B__folder="x") == shipped
    local = {"A": SMALL | {"folder": "a"}, "B": LARGE | {"folder": "b"}}
    here = ids(teachers="folder", teacher_ladder=local)
    assert ids(teachers="folder", teacher_ladder=local | {"B": LARGE | {"folder": "c"}}) != here


def test_steps_are_counted_with_the_configured_svd_threshold() -> None:
    row = {"method": "budgeted_lora", "budget": 0.7, "controller": "uniform"}
    shape = ModelShape(layers=2, hidden=32, kv=8, ffn=64)
    rule = BudgetRule(budget=0.7, start=0.1, end=0.3, controller="uniform")
    needed = steps_needed(shape, rule, svd_threshold=0.71)
    assert needed > steps_needed(shape, rule, svd_threshold=0.5)
    few = {"tables": {"t": [row]}, "training__tokens": (needed - 1) * 4 * 64, "compression__svd_threshold": 0.71}
    with pytest.raises(BadInput, match=f"it needs {needed} "):
        cells(config(**few))


def test_an_order_of_the_scale_is_not_that_of_a_controller_without_one() -> None:
    rows = [
        {"method": "budgeted_lora", "budget": 0.4},
        {"method": "budgeted_lora", "budget": 0.4, "controller": "uniform"},
    ]
    greedy, uniform = (cell.recipe for cell in cells(config(tables={"t": rows}, budget={"order": "activation"})))
    assert (greedy.order, uniform.order) == ("activation", None)
    assert greedy.statistics_windows
    assert uniform.statistics_windows is None


def test_no_step_of_the_scale_itself_is_told_from_one_of_a_row() -> None:
    assert one({"method": "kd_full", "tokens": 256}, training__tokens=1).recipe.steps == 1
    with pytest.raises(BadInput, match=r"\}: training\.tokens 255 make 0 steps"):
        cells(config(tables={"t": [{"method": "kd_full"}]}, training__tokens=255))


# --- in words


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"method": "kd_full"}, {}),
        ({"method": "kd_full", "teacher": "B", "seed": 3}, {"teacher": "B", "seed": 3}),
        ({"method": "kd_full", "betas": [0.8, 0.9], "rows": "document"}, {"betas": [0.8, 0.9], "rows": "document"}),
        ({"method": "kd_full", "tokens": 10 * 4 * 64}, {"tokens": 10 * 4 * 64}),
        ({"method": "kd_lora", "rank": 4}, {"rank": 4}),
        ({"method": "kd_lora", "rank": 4, "alpha": 16}, {"rank": 4, "alpha": 16.0}),
        ({"method": "kd_lora", "low_rank_init": "svd"}, {"low_rank_init": "svd"}),
        ({"method": "budgeted_lora", "budget": 0.4, "gate_logit": 0.0}, {"gate_logit": 0.0}),
        ({"method": "budgeted_lora", "budget": 0.0, "schedule": "long"}, {"schedule": "long"}),
        (
            {"method": "budgeted_lora", "budget": 0.4, "low_rank_init": "activation_svd", "order": "activation"},
            {"low_rank_init": "activation_svd", "order": "activation"},
        ),
        ({"method": "budgeted_lora", "budget": 0.4, "ranks": "allocated"}, {"ranks": "allocated"}),
    ],
)
def test_what_differs_is_said_in_the_words_of_a_row(row: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = config(tables={"t": [row]})
    [cell] = cells(asked)
    assert differences(asked, cell.recipe) == expected


def test_a_scale_of_other_defaults_has_other_differences() -> None:
    rows = [{"method": "budgeted_lora", "budget": 0.4, "order": order} for order in ("mac", "energy")]
    asked = config(tables={"t": rows}, budget={"order": "energy"})
    assert [differences(asked, cell.recipe) for cell in cells(asked)] == [{"order": "mac"}, {}]


@pytest.mark.parametrize("scale", ["mini", "smoke", "paper", "single-gpu"])
def test_no_two_students_of_a_scale_read_the_same(scale: str) -> None:
    asked = load_config(ROOT / "config" / f"{scale}.yaml")
    said = [(cell.id.rpartition("-")[0], str(differences(asked, cell.recipe))) for cell in cells(asked)]
    assert len(set(said)) == len(said)


def test_a_teachers_training_is_told_nothing_of_what_its_files_hold() -> None:
    graph = Graph(config(pretraining__function_share=0.6, pretraining__clip=2.0))
    assert graph.teachers_share == 0.6
    values = options.pretraining(graph)
    assert Pretraining.model_validate(values).clip == 2.0
    assert "function_share" not in values
