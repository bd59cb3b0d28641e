"""The files a stage lists as its code are those it loads when it really runs; the workflow itself needs no torch."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import budgeted_lora
from budgeted_lora.config.scale import load_config
from budgeted_lora.reporting.contents import FIGURES, TABLES
from budgeted_lora.workflow import report
from budgeted_lora.workflow.code import EXEMPT, EXEMPT_MODULES, NOT_EXEMPT, Sources, exempt, sources
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs
from budgeted_lora.workflow.stage_command import stage_names

PACKAGE = Path(budgeted_lora.__file__).parent
ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).parents[1] / "fixtures" / "run_stages.py"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Modules of the package in memory after `import <stage>` and after `run <stage>`, each in a process of its own."""
    folder = tmp_path_factory.mktemp("stages")
    run = subprocess.run(
        [sys.executable, str(DRIVER), str(folder)], capture_output=True, text=True, cwd=folder, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "loaded.json").read_text())


MAKERS = {  # what the stages of the report import by the names in reporting/contents.py
    "make_table": [table.module for table in TABLES.values()],
    "make_figure": [figure.module for figure in FIGURES.values()],
    "make_index": [shown.module for shown in (*TABLES.values(), *FIGURES.values())],
}


def listed(stage: str) -> set[str]:
    """Names of the modules whose digests a stage lists."""
    return set(sources().reached(f"stages.{stage}", *MAKERS.get(stage, ())))


def says_nothing(module: str) -> bool:
    """Whether a module is the `__init__.py` of a folder and holds no more than a sentence."""
    path = PACKAGE.joinpath(*module.split("."), "__init__.py")
    return path.is_file() and len(ast.parse(path.read_text(encoding="utf-8")).body) <= 1


LISTS = {"list_cells", "list_table"}  # what they write follows from the configuration: a digest of it is a parameter


@pytest.mark.parametrize("stage", sorted(set(stage_names()) - LISTS))
@pytest.mark.parametrize("how", ["import", "run"])
def test_a_stage_loads_nothing_that_it_does_not_list(loaded: dict[str, list[str]], stage: str, how: str) -> None:
    modules = set(loaded[f"{how} {stage}"])
    assert f"stages.{stage}" in modules
    unlisted = {name for name in modules - listed(stage) if not exempt(name) and not says_nothing(name)}
    unlisted -= NOT_EXEMPT  # loaded by the configuration alone, which checks values with it
    assert not unlisted, f"{stage} loads {sorted(unlisted)}, of which an edit would rerun nothing"


@pytest.mark.parametrize("writer", ["table_lines", "recipe_columns"])
def test_another_line_is_another_digest_of_both_lists(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = ReportJobs(Graph(load_config(ROOT / "config" / "smoke.yaml")))
    before = {jobs.list_digest(), jobs.digest("table2")}
    write = getattr(report, writer)
    longer = {
        "table_lines": lambda *words: [*write(*words), {}],
        "recipe_columns": lambda *words: write(*words) | {"x": 1},
    }
    monkeypatch.setattr(report, writer, longer[writer])
    assert not before & {jobs.list_digest(), jobs.digest("table2")}


def test_the_rules_of_both_lists_compare_a_digest() -> None:
    text = (ROOT / "workflow" / "rules" / "report.smk").read_text(encoding="utf-8")
    for stage in LISTS:
        rule = text.partition(f"rule {stage}:")[2].partition("\nrule ")[0]
        assert re.search(r"params:\n\s+digest=.*report_jobs\.(list_)?digest\(", rule), stage


@pytest.mark.parametrize("stage", stage_names())
def test_a_stage_lists_nothing_that_no_run_could_load(stage: str) -> None:
    assert not [name for name in listed(stage) if exempt(name)]
    assert all(path.is_file() for path in sources().files(f"stages.{stage}"))


def test_every_module_is_listed_by_a_stage_or_exempt() -> None:
    known = set().union(*(listed(stage) for stage in stage_names()))
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    persons = {name for name in modules if name.startswith(("planning.", "serving."))}  # asked by a person, in no job
    assert not {name for name in modules - known - persons if not exempt(name) and not says_nothing(name)}
    assert modules >= EXEMPT_MODULES | NOT_EXEMPT
    assert {name.split(".")[0] for name in modules} >= EXEMPT - {"__init__"}, "an exempt name that no module has"


def test_lazy_imports_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "budgeted_lora"
    for name, text in {
        "stages/made_up.py": "def run():\n    from budgeted_lora.part import inner\n    import budgeted_lora.c\n",
        "part/__init__.py": "",
        "part/inner.py": "from budgeted_lora.files import x\nfrom budgeted_lora.part.deep import y\n",
        "part/deep.py": "import os\n",
        "c.py": "",
        "files.py": "from budgeted_lora.unseen import z\n",
        "unseen.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    names = {path.relative_to(package).as_posix() for path in Sources(package).files("stages.made_up")}
    assert names == {"stages/made_up.py", "part/__init__.py", "part/inner.py", "part/deep.py", "c.py"}


def test_what_is_read_of_a_checkpoint_is_code_of_the_stages_that_name_it() -> None:
    assert {"config.anatomy"} == {name for name in listed("fetch_teacher") if name.startswith("config")}
    assert "config.anatomy" in listed("compress_cell")


def test_the_word_list_is_code_of_the_stages_that_read_it() -> None:
    readers = {stage for stage in stage_names() if "assets/words.txt" in sources().digests(f"stages.{stage}")}
    assert readers == {stage for stage in stage_names() if "data.probes" in listed(stage)}
    assert {"train_tokenizer", "tokenize_corpus", "evaluate"} <= readers


@pytest.mark.parametrize(
    "statement",
    [
        "from budgeted_lora.workflow import cells, code, graph, options, runs, shards, slots, slurm, targets",
        "from budgeted_lora.config import corpus, files, messages, recipe, rows, scale, sections, types",
        "from budgeted_lora.method import cost, schedule, structure",
        "import budgeted_lora.commands.app",
        "from budgeted_lora.commands import chain, show_costs, status",
        "from budgeted_lora.planning import costs, doctor, start",
    ],
)
def test_the_workflow_and_the_plan_need_no_torch(statement: str) -> None:
    heavy = ("torch", "transformers", "datasets", "pandas", "matplotlib")
    script = f"import sys\n{statement}\nprint([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
