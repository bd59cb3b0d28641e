"""The workflow as Snakemake plans it: dry runs in a copy of the checkout, without results and with all done."""

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest
import yaml
from fixtures.checkout import checkout
from fixtures.snakemake_runs import Job, count_all_as_done, edited, pending, planned_jobs, snakemake

from budgeted_lora.config.scale import DEFAULT_VARIANT, MAIN_CELLS, Config, load_config
from budgeted_lora.planning.start import requested_targets, targets_of
from budgeted_lora.reporting.contents import CONTROLS, ICL_TABLES
from budgeted_lora.stages.arguments import bind, read_words
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs
from budgeted_lora.workflow.stage_command import check_arguments, stage_arguments

ROOT = Path(__file__).resolve().parents[2]
RULE_FILES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
CORES = 2
ABLATIONS = ("table3", "table4", "table5", "table6", "lora_construction", "table7", "thresholds")
ALIASES = {  # rules that call another one's stage
    "evaluate_reference": "evaluate", "evaluate_cell": "evaluate", "score_cell": "evaluate",
    "score_reference_tasks": "score_tasks",
    "tokenize_for_teachers": "tokenize_corpus", "judge_all_claims": "judge_claims", "make_contents": "make_index",
}  # fmt: skip
TARGETS = (
    "table1", "table2", "table8", "table9", "figure2", "pareto", "claims", "report", "main", *ABLATIONS, "ablations",
    "all",
)  # fmt: skip


Plan = Callable[..., list[Job]]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def plan(fresh: Path) -> Plan:
    """The jobs of a dry run in a fresh checkout, by targets and configuration; each is planned once."""

    @cache
    def go(*words: str) -> list[Job]:
        return planned_jobs(fresh, "--cores", str(CORES), *words)

    return go


def rules(jobs: list[Job]) -> Counter[str]:
    return Counter(job.rule for job in jobs)


# --- every scale


def graph_of(scale: str) -> Graph:
    return Graph(load_config(ROOT / "config" / f"{scale}.yaml"))


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_scale_is_planned_whole(plan: Plan, scale: str) -> None:
    graph, jobs = graph_of(scale), plan("all", "--config", f"scale={scale}")
    found = rules(jobs)
    wanted = {*MAIN_CELLS, CONTROLS, *ReportJobs(graph).names("ablations")}
    cells, references = graph.listed(wanted), len(graph.references()) // 2
    assert found["train_cell"] == len(cells)
    assert found["evaluate_cell"] == len(set(graph.listed(ICL_TABLES)) & set(cells))
    assert found["compress_cell"] == sum(len(graph.variants_listed(cell, wanted)) for cell in cells)
    assert found["score_cell"] == found["compress_cell"] - found["evaluate_cell"]
    assert found["evaluate_reference"] == references
    assert found["measure_speed"] == len({graph.structure_of(cell) for cell in graph.listed(MAIN_CELLS)} - {None})
    assert found["cut_student"] == len({graph.config.training.init, *map(graph.student_of, cells)})
    assert found["cache_teacher"] == len({graph.cache_of(cell) for cell in cells} - {None})
    assert found["pretrain_teacher"] + found["fetch_teacher"] == len(graph.teachers)
    assert found["calibrate_teachers"] == len(graph.calibration())
    calibrated = Counter(job.rule for job in jobs if "calibration.json" in job.fields.get("input", ""))
    waiting = {"train_cell": len(cells), "judge_claims": 1, "judge_all_claims": 1, "make_table": 2}
    assert calibrated == (waiting if graph.calibration() else {}), "said before any student trains or is judged"
    assert found["make_table"] == len(ReportJobs(graph).names("main", "ablations"))
    assert found["make_figure"] == len(ReportJobs(graph).main_figures())
    for rule in ("list_cells", "make_index", "make_contents"):
        assert found[rule] == 1
    shards = graph.config.corpus.shards
    assert found["collect_corpus"] == found["tokenize_corpus"] == (0 if shards else 1)
    assert found["join_shards"] == (1 if shards else 0)
    assert found["fetch_shard"] == found["tokenize_shard"] == (shards.held_out if shards else 0)


def test_no_target_means_all(plan: Plan) -> None:
    assert rules(plan("--config", "scale=smoke")) == rules(plan("all", "--config", "scale=smoke")) != Counter()


def test_main_needs_no_ablation_and_draws_the_controls(plan: Plan) -> None:
    graph, jobs = graph_of("mini"), plan("main", "--config", "scale=mini")
    found = rules(jobs)
    assert found["train_cell"] == len(graph.listed({*MAIN_CELLS, CONTROLS}))
    tables = {job.fields["wildcards"].removeprefix("table=") for job in jobs if job.rule == "make_table"}
    assert tables == set(ReportJobs(graph).names("main"))
    assert CONTROLS in tables
    assert not found.keys() & {"make_contents", "judge_all_claims"}
    [pareto] = [job for job in jobs if job.fields.get("wildcards") == "figure=pareto_mac_speedup"]
    inputs = pareto.fields["input"]
    assert all(f"/{cell}/compressed" in inputs for cell in graph.listed([CONTROLS]))
    assert "compressed/macsF0.4/perplexity.json" in inputs


def test_ablations_at_smoke_leave_main_as_it_was(plan: Plan) -> None:
    graph = graph_of("smoke")
    assert ReportJobs(graph).names("ablations") == list(ABLATIONS)
    assert rules(plan("main", "--config", "scale=smoke"))["train_cell"] == len(graph.listed(MAIN_CELLS)) == 8


def whole_runs(jobs: list[Job]) -> Counter[tuple[object, ...]]:
    """Teacher, method, budget, controller and seed of the students of full length, without controls and schedules."""
    recipes = [job.options["recipe"] for job in jobs if job.rule == "train_cell"]
    recipes = [recipe for recipe in recipes if recipe.get("student_ffn") is None]
    longest = max(recipe["steps"] for recipe in recipes)
    named = ("teacher", "method", "budget", "controller", "seed")
    return Counter(
        tuple(recipe.get(name) for name in named)
        for recipe in recipes
        if recipe["steps"] == longest and recipe.get("schedule") in (None, "short")
    )


def test_table_2_has_every_cell_that_it_must(plan: Plan) -> None:
    """In main three teachers by four methods, on the smallest F = 0.8 too; in all three seeds there, every budget of
    the dial and uniform decay as well."""
    main, everything = (whole_runs(plan(name, "--config", "scale=mini")) for name in ("main", "all"))
    expected = {
        (teacher, *method)
        for teacher in ("0.13B", "0.5B", "1B")
        for method in (
            ("kd_full", None, None),
            ("kd_lora", None, None),
            ("budgeted_lora", 0.4, "greedy"),
            ("budgeted_lora", 0.0, "greedy"),
        )
    }
    several = {key for key in expected if key[0] == "0.13B"}
    expected |= {("0.13B", "budgeted_lora", 0.8, "greedy")}
    assert set(main) == {(*key, 0) for key in expected}
    expected |= {("0.13B", "budgeted_lora", budget, "greedy") for budget in (0.2, 0.6)}
    expected |= {("0.13B", "budgeted_lora", 0.0, "uniform")}
    assert {key[:-1] for key in everything} == expected
    drawn = Counter(key[:-1] for key in everything)
    assert all(drawn[key] == (3 if key in several else 1) for key in expected)
    assert set(main.values()) == set(everything.values()) == {1}


ASKING = "evaluation={lm_eval: [capitals], lm_eval_limit: 2, int8: true}"


def test_what_evaluation_asks_for_is_done_for_each_model_of_the_main_tables(plan: Plan) -> None:
    plain, jobs = plan("main", "--config", "scale=smoke"), plan("main", "--config", "scale=smoke", ASKING)
    graph = graph_of("smoke")
    added = rules(jobs) - rules(plain)
    cells = len(graph.listed(MAIN_CELLS))
    references = len(graph.references()) // 2
    asked = {"score_tasks": cells, "score_reference_tasks": references, "measure_int8": cells}
    assert added == {"make_table": 2} | asked
    assert rules(plain) - rules(jobs) == Counter()
    asked = [job.options["tasks"] for job in jobs if "score" in job.rule and "tasks" in job.options]
    assert asked == [["capitals"]] * (cells + references)


@pytest.mark.parametrize("words", ["smoke", "mini", "paper", f"smoke {ASKING}"])
def test_every_command_is_one_that_the_command_line_takes(plan: Plan, words: str) -> None:
    scale, *more = words.split(maxsplit=1)
    for job in plan("main" if more else "all", "--config", f"scale={scale}", *more):
        if job.rule in ("all", "main"):
            continue
        words, _, rest = job.command.partition(" 2>&1 | tee ")
        assert rest == job.fields["log"], job.rule
        program, group, *options = shlex.split(words)
        assert (program, group) == ("budgeted-lora", "stage")
        assert options[0] == ALIASES.get(job.rule, job.rule), "a rule calls the stage of its name"
        assert not any(word.startswith("/") for word in options), job.command
        with chdir(job.folder):
            stage, given = read_words(options)
            check_arguments(stage, given)
            bind(stage, given)  # raises where a value does not have its argument's type, and runs nothing


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_job_has_log_and_benchmark_and_those_with_a_device_a_gpu(plan: Plan, scale: str) -> None:
    for job in plan("all", "--config", f"scale={scale}"):
        if job.rule == "all":
            continue
        assert job.fields["log"].startswith(f"results/{scale}/logs/")
        assert job.fields["benchmark"].startswith(f"results/{scale}/benchmarks/")
        assert ("gpu=1" in job.fields["resources"]) == ("device" in job.options), job.rule
        if "threads" in job.options:
            planned = int(job.fields.get("threads", "1"))  # Snakemake caps it at --cores; the option is never capped
            assert planned == min(job.options["threads"], CORES), job.rule


def test_messages_name_what_a_job_is_about(plan: Plan) -> None:
    """Snakemake prints a job's message in place of its wildcards and files."""
    jobs = plan("all", "--config", "scale=smoke")
    for job in jobs:
        values = [pair.partition("=")[2] for pair in job.fields.get("wildcards", "").split(", ") if pair]
        named = [value for value in values if value in job.message or value == DEFAULT_VARIANT]
        assert named == values, job
    working = [job for job in jobs if job.command]
    assert len({job.message for job in working}) == len(working), "two jobs say the same"


def test_gpus_per_run_reaches_the_trainings_and_nothing_else(plan: Plan) -> None:
    jobs = plan("table2", "--config", "scale=smoke", "gpus_per_run=2")
    assert rules(jobs) == rules(plan("table2", "--config", "scale=smoke"))
    for job in jobs:
        if job.rule == "train_cell":
            assert (job.options["gpus"], job.fields["threads"]) == (2, "2")
            assert "gpu=2" in job.fields["resources"]
        else:
            assert "gpus" not in job.options
            assert "gpu=2" not in job.fields.get("resources", "")
    one, two = (
        {job.options["cell"] for job in plan("table2", "--config", "scale=smoke", *words) if job.rule == "train_cell"}
        for words in ((), ("gpus_per_run=2",))
    )
    assert one == two


# --- targets


def test_every_target_is_there_and_together_they_are_all(plan: Plan) -> None:
    together = rules(plan(*TARGETS, "--config", "scale=smoke"))
    assert {name for name in together if name in TARGETS} == set(TARGETS)
    alone = rules(plan("all", "--config", "scale=smoke"))
    assert {name: n for name, n in together.items() if name not in TARGETS} == {
        name: n for name, n in alone.items() if name not in TARGETS
    }


def test_table_1_trains_no_student(plan: Plan) -> None:
    found = rules(plan("table1", "--config", "scale=smoke"))
    assert not found.keys() & {"train_cell", "compress_cell", "evaluate_cell", "cache_teacher", "measure_speed"}
    assert found["make_table"] == found["table1"] == 1
    assert found["evaluate_reference"] == 3


def test_a_scale_names_the_targets_that_it_has() -> None:
    assert set(targets_of(graph_of("smoke"))) >= set(TARGETS)
    smoke, mini, paper = (targets_of(graph_of(scale)) for scale in ("smoke", "mini", "paper"))
    assert {"sensitivity", "beyond", "controls"} <= set(mini) - set(smoke)
    assert set(paper) - set(smoke) == {"calibration", "controls", "sensitivity"}
    assert set(paper) == {*mini, "calibration"} - {"beyond", "continuum", "elastic", "seeds", "tokens"}
    assert not set(targets_of(graph_of("gpu-hour"))) & {"ablations", *ABLATIONS}
    rows = {"tables": {"table2": [{"method": "kd_full"}]}}
    alone = Graph(Config.model_validate(graph_of("mini").config.model_dump() | rows))
    assert not set(targets_of(alone)) & {"ablations", "table6", "beyond", "controls"}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["/x/bin/snakemake", "table2", "main", "--config", "scale=mini", "a=b", "-n"], ["table2", "main"]),
        (["/x/snakemake/__main__.py", "--config", "scale=mini", "--resources", "gpu=2", "--", "table2"], ["table2"]),
        (["/x/bin/snakemake", "--config", "scale=mini"], []),
        (["/x/bin/snakemake", "table2", "--target-jobs", "train_cell:cell=c"], []),
        (["/x/bin/pytest", "table2"], []),
    ],
)
def test_targets_are_read_as_snakemake_reads_them(
    words: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert requested_targets() == asked


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("table7", "--config", "scale=gpu-hour"), "scale gpu-hour has no target 'table7'; expected one of its"),
        (("all", "tabel2", "--config", "scale=smoke"), "scale smoke has no target 'tabel2'; expected one of its"),
        (("ablations", "--config", "scale=gpu-hour"), "scale gpu-hour has no rows for 'ablations'; expected one of"),
    ],
)
def test_a_target_that_a_scale_has_not_is_status_2_and_one_line(
    fresh: Path, words: tuple[str, ...], expected: str
) -> None:
    done = snakemake(fresh, "--dry-run", "--cores", "1", *words)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"budgeted-lora: {expected}")


def test_an_undistilled_student_is_scored_without_the_distilled_one(plan: Plan) -> None:
    scored = [job for job in plan("beyond", "--config", "scale=mini") if job.rule.startswith("score_")]
    folders = {job.options["out"].rpartition("/")[2]: job for job in scored}
    undistilled = {name for name, variant in graph_of("mini").variants.items() if variant.undistilled}
    assert len(undistilled) == 4
    assert {name for name, job in folders.items() if job.options["uncompressed"] is None} == undistilled
    assert all(job.options["compression"] == f"{job.options['out']}/compression.json" for job in scored)
    for name in undistilled:
        assert folders[name].options["student"] is None
        assert not re.search(r"/trained(\.sha256)?(,|$)", folders[name].fields["input"])


# --- teachers


@pytest.mark.parametrize(
    ("words", "teacher", "tokenizer"),
    [
        (("scale=smoke",), "pretrain_teacher", "train_tokenizer"),
        (("scale=mini",), "fetch_teacher", "copy_tokenizer"),
        (("scale=paper",), "fetch_teacher", "copy_tokenizer"),
        (("scale=mini", "teachers=pretrain"), "pretrain_teacher", "train_tokenizer"),
        (("scale=local",), "fetch_teacher", "copy_tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_source_of_teachers_switches_the_rules(
    fresh: Path, plan: Plan, words: tuple[str, ...], teacher: str, tokenizer: str
) -> None:
    smallest = {"layers": 4, "hidden": 32, "ffn": 128, "heads": 4, "kv_heads": 1, "folder": "checkpoints/A"}
    tables = {"table2": [{"method": "kd_full"}]}
    local = {"extends": "smoke", "scale": "local", "teachers": "folder", "teacher_ladder": {"A": smallest}}
    (fresh / "config" / "local.yaml").write_text(yaml.safe_dump(local | {"tables": tables}))
    jobs = plan("all", "--config", *words)
    found = rules(jobs)
    assert found.keys() & {"pretrain_teacher", "fetch_teacher"} == {teacher}
    assert found.keys() & {"train_tokenizer", "copy_tokenizer"} == {tokenizer}
    sources = {job.options["source"] for job in jobs if job.rule == "fetch_teacher"}
    assert sources == {("scale=mini",): {"shipped"}, ("scale=paper",): {"hub"}, ("scale=local",): {"folder"}}.get(
        words, set()
    )


# --- refusals


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("scale=huge",), "config/huge.yaml: no such scale file; expected one of: "),
        (
            ("scale=mini", "rows=loose"),
            "config/mini.yaml: rows is 'loose', expected one of packed, document (given in --config)",
        ),
        (("scale=mini", "scael=mini"), "config/mini.yaml: unknown key scael; did you mean scale? (given in --config)"),
        (
            ("scale=short",),
            "config/short.yaml: tables.table2, row 1 {method: budgeted_lora, budget: 0.4}: 20 steps are too few for "
            "schedule 'short' to reach the structure",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_configuration_is_status_2_and_one_line(fresh: Path, words: tuple[str, ...], expected: str) -> None:
    short = {"extends": "smoke", "scale": "short", "training": {"tokens": 256 * 4 * 20}}
    tables = {"table2": [{"method": "budgeted_lora", "budget": 0.4}]}
    (fresh / "config" / "short.yaml").write_text(yaml.safe_dump(short | {"tables": tables}))
    done = snakemake(fresh, "--dry-run", "--cores", "1", "--config", *words)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"budgeted-lora: {expected}")


# --- what an edit reruns


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which every job of the smallest scale counts as done."""
    folder = checkout(tmp_path_factory.mktemp("done"))
    count_all_as_done(folder)
    return folder


REPORT = {"make_table", "make_figure", "make_index", "make_contents", "judge_claims", "judge_all_claims"}


def test_touched_files_and_edited_captions_rerun_nothing(done: Path) -> None:
    for path in [*(done / "src").rglob("*.py"), *(done / "config").iterdir(), *done.glob("workflow/**/*")]:
        os.utime(path)
    with edited(done / "workflow" / "report" / "table.rst", lambda text: text + "\nMore words.\n"):
        assert pending(done) == {}


def test_results_made_after_the_clock_went_back_rerun_nothing(done: Path) -> None:
    """What a cell's stages wrote is dated an hour before what it was made from; contents tell that nothing changed."""
    for path in (done / "results" / "smoke" / "cells").rglob("*"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 3600 * 10**9))
    assert pending(done) == {}


def test_an_edit_of_the_loss_retrains_and_nothing_else_upstream(done: Path) -> None:
    with edited(done / "src/budgeted_lora/method/loss.py", lambda text: text + "\nNEW = 1\n"):
        found = pending(done)
    assert set(found.values()) == {"train_cell", "compress_cell", "evaluate_cell", "score_cell", *REPORT}
    assert sum(name.endswith("train.json") for name in found) == len(graph_of("smoke").cells)


def test_an_edit_of_a_figure_draws_and_trains_nothing(done: Path) -> None:
    with edited(done / "src/budgeted_lora/reporting/figures/main.py", lambda text: text + "\nNEW = 1\n"):
        found = pending(done)
    assert set(found.values()) == {"make_figure", "make_index"}
    assert {Path(name).stem for name, rule in found.items() if rule == "make_figure"} == {"figure2"}


def test_evaluation_options_evaluate_anew(done: Path) -> None:
    with edited(done / "config" / "smoke.yaml", lambda text: text.replace("queries: 4", "queries: 5")):
        assert set(pending(done).values()) == {
            "search_prompts", "evaluate_reference", "evaluate_cell", "score_cell", *REPORT,
        }  # fmt: skip


def test_one_edited_value_is_one_new_cell(done: Path) -> None:
    before = set(graph_of("smoke").cells)
    with edited(done / "config" / "smoke.yaml", lambda text: text.replace("[0.0, 0.4]}", "[0.0, 0.4, 0.7]}")):
        after = set(Graph(load_config(done / "config" / "smoke.yaml")).cells)
        found = pending(done)
    [new] = after - before
    assert before < after
    assert "F0.7" in new
    of_cells = {name.split("/")[3] for name in found if name.startswith("results/smoke/cells/")}
    assert of_cells == {new}
    assert set(found.values()) == {
        "train_cell", "compress_cell", "evaluate_cell", "measure_speed", "list_cells", "list_table", *REPORT,
    }  # fmt: skip
    assert sum(rule == "measure_speed" for rule in found.values()) == 1
    assert made_tables(found) == {"table8", "speed", "table1", "reference"}  # the last two list what main cells name
    assert not any("figure2" in name for name in found)


def made_tables(found: dict[str, str]) -> set[str]:
    """Tables that a plan makes."""
    return {Path(name).stem for name, rule in found.items() if rule == "make_table"}


@pytest.mark.parametrize(
    ("after", "new"), [("init: [mixed, last, middle]", 1), ("init: [mixed]", 0)], ids=["added", "removed"]
)
def test_an_ablation_row_remakes_its_own_table_only(done: Path, after: str, new: int) -> None:
    with edited(done / "config" / "smoke.yaml", lambda text: text.replace("init: [mixed, last]", after)):
        found = pending(done)
    chain = {"train_cell", "compress_cell", "score_cell"} if new else set()
    pages = {"make_index", "make_contents", "judge_claims", "judge_all_claims"}
    assert set(found.values()) == {"list_cells", "list_table", "make_table", *chain, *pages}
    assert made_tables(found) == {"lora_construction"}
    assert len({name.split("/")[3] for name in found if name.startswith("results/smoke/cells/")}) == new


def test_a_table_whose_source_is_edited_is_made_beside_a_new_row(done: Path) -> None:
    row = ("init: [mixed, last]", "init: [mixed, last, middle]")
    with (
        edited(done / "config" / "smoke.yaml", lambda text: text.replace(*row)),
        edited(done / "src/budgeted_lora/reporting/tables/in_context.py", lambda text: text + "\nNEW = 1\n"),
    ):
        assert made_tables(pending(done)) == {"lora_construction", "table9", "figure2_values", "contamination"}


def test_an_edit_of_how_lines_are_written_lists_them_again(done: Path) -> None:
    """The code that writes them is no input of a rule; a digest of the lines says that they change."""
    edit = ('about = {"table": table,', 'about = {"new": 1, "table": table,')
    with edited(done / "src/budgeted_lora/workflow/report.py", lambda text: text.replace(*edit)):
        found = pending(done)
    lists = {name for name, rule in found.items() if rule in ("list_cells", "list_table")}
    tables = graph_of("smoke").config.tables
    assert lists >= {f"results/smoke/{name}.csv" for name in ("tables", *(f"tables/{table}" for table in tables))}
    assert set(found.values()) == {"list_cells", "list_table", *REPORT}


def test_a_table_of_its_own_is_made_though_the_page_is_made_anew_before_it(done: Path) -> None:
    """A new row remakes the page, which such a target only comes after: what it lacks must be seen all the same."""
    row = "\ntables:\n  beyond:\n    - {method: budgeted_lora, budget: 0.0, low_rank_init: svd}\n"
    with edited(done / "config" / "smoke.yaml", lambda text: text.replace("\ntables:\n", row)):
        found = pending(done, "beyond")
    assert {"train_cell", "make_index", "make_contents"} <= set(found.values())
    assert made_tables(found) == {"beyond"}


def test_an_edit_of_a_table_trains_and_scores_nothing(done: Path) -> None:
    with edited(done / "src/budgeted_lora/reporting/tables/ablations.py", lambda text: text + "\nNEW = 1\n"):
        found = pending(done)
    assert set(found.values()) == {"make_table", "make_index", "make_contents"}
    assert made_tables(found) == set(ABLATIONS) - {"thresholds"}


def test_another_threshold_compresses_again_and_trains_nothing(done: Path) -> None:
    with edited(done / "config" / "smoke.yaml", lambda text: text.replace("[0.5, 0.9]", "[0.5, 0.9, 0.8]")):
        found = pending(done)
    assert {"compress_cell", "score_cell"} <= set(found.values())
    assert not set(found.values()) & {"train_cell", "evaluate_cell", "make_figure"}
    assert made_tables(found) == {"thresholds"}


def test_a_stage_that_fails_before_a_pipe_is_a_failed_job(tmp_path: Path) -> None:
    """Else it would count as done once its outputs are there, and its message would be lost behind a missing file."""
    folder = checkout(tmp_path / "failing")
    (folder / "broken.jsonl").write_text("{not JSON\n")
    scale = "extends: smoke\nscale: failing\ncorpus: {source: files, files: [broken.jsonl], packages: []}\nfit: warn\n"
    (folder / "config" / "failing.yaml").write_text(scale)
    words = ("collect_corpus", "--cores", "1", "--config", "scale=failing")
    ran = snakemake(folder, *words)
    assert ran.returncode == 1
    said = ran.stdout + ran.stderr
    assert "Error in rule collect_corpus" in said
    assert "latency" not in said
    assert "broken.jsonl, line 1: not JSON" in said


# --- the rule files themselves


def rule_blocks() -> dict[str, str]:
    """Text of every rule, by name."""
    found = {}
    for path in [ROOT / "Snakefile", *RULE_FILES]:
        text = path.read_text(encoding="utf-8")
        for block in re.split(r"^(?= *(?:use )?rule\b)", text, flags=re.MULTILINE)[1:]:
            if block.lstrip().startswith("use rule"):  # takes what it does not say from another one
                continue
            name = re.match(r" *rule (\w+):|\s*rule:\s+name:\s+(\w+)", block)
            assert name, block[:100]
            found[name[1] or name[2]] = block
    return found


def test_rule_files_hold_no_logic() -> None:
    for path in [ROOT / "Snakefile", *RULE_FILES]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(run|script|checkpoint|notebook)\b.*:", text, flags=re.MULTILINE), path.name
        assert not re.search(r"\btemp\(|\bopen\(|\bwrite_text\(", text), path.name
        assert len(text.splitlines()) <= (100 if path.name == "Snakefile" else 200), path.name


def test_every_rule_that_runs_something_names_log_benchmark_and_environment() -> None:
    blocks = rule_blocks()
    working = {name: block for name, block in blocks.items() if "output:" in block}
    assert len(working) >= 14
    for name, block in working.items():
        for directive in ("log", "benchmark", "conda", "shell"):
            assert re.search(rf"^\s+{directive}:", block, flags=re.MULTILINE), f"{name} has no {directive}:"
        assert '"../../environment.yml"' in block, name
        stage = re.search(r"stage_command\(\s*\"(\w+)\"", block)[1]
        assert (" gpu=" in block) == ("device" in stage_arguments(stage)), name
        assert re.search(rf'code=(lambda wildcards: )?code\.of\(\s*"{stage}"', block), name
    for name, block in blocks.items():
        assert re.search(r"^\s+message:", block, flags=re.MULTILINE), f"{name} has no message:"
    for name in blocks.keys() - working.keys():
        assert "shell:" not in blocks[name], f"{name} runs something and makes nothing"
    assert "gpu=scale_config.gpus_per_run" in blocks["train_cell"]


def test_the_default_profile_is_as_designed() -> None:
    profile = yaml.safe_load((ROOT / "profiles" / "default" / "profile.yaml").read_text(encoding="utf-8"))
    wanted = {"cores": "all", "resources": {"gpu": 2}, "rerun-incomplete": True, "keep-going": True}
    assert {key: profile.get(key) for key in wanted} == wanted
