"""The files a stage lists as its code are those it loads when it really runs; the workflow itself needs no torch."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import budgeted_lora
from budgeted_lora.workflow import code as sources
from budgeted_lora.workflow.code import EXEMPT, STAGES, source_files

PACKAGE = Path(budgeted_lora.__file__).parent
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


def listed(stage: str) -> set[str]:
    """Names of the modules whose files a stage lists."""
    paths = [Path(path).resolve().relative_to(PACKAGE) for path in source_files(stage) if path.endswith(".py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}


def says_nothing(module: str) -> bool:
    """Whether a module is the `__init__.py` of a folder and holds no more than a sentence."""
    path = PACKAGE.joinpath(*module.split("."), "__init__.py")
    return path.is_file() and len(ast.parse(path.read_text(encoding="utf-8")).body) <= 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["import", "run"])
def test_a_stage_loads_nothing_that_it_does_not_list(loaded: dict[str, list[str]], stage: str, how: str) -> None:
    found = set(loaded[f"{how} {stage}"])
    assert STAGES[stage] in found
    unlisted = {name for name in found - listed(stage) - EXEMPT if not says_nothing(name)}
    assert not unlisted, f"{stage} loads {sorted(unlisted)}, of which an edit would rerun nothing"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_nothing_that_no_run_could_load(stage: str) -> None:
    assert not listed(stage) & EXEMPT
    for path in source_files(stage):
        assert Path(path).is_file()
        assert Path(path).stat().st_size < 1_000_000, "Snakemake compares larger files by date"


def test_every_module_is_listed_by_a_stage_or_exempt() -> None:
    maintainers = {"models.ship", "config_docs", "budget.report", "reporting.readme"}
    commands = {"archive", "archive_format", "chain", "metadata", "prune", "render", "status"}  # a person's, no stage's
    commands |= {f"planning.{path.stem}" for path in (PACKAGE / "planning").glob("*.py")}
    known = set().union(*(listed(stage) for stage in STAGES)) | EXEMPT | maintainers | commands
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    assert not {name for name in modules - known if not says_nothing(name)}
    assert EXEMPT - {"__init__"} <= modules, "an exempt name that no module has"


def test_lazy_imports_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "budgeted_lora"
    for name, text in {
        "a.py": "def run():\n    from budgeted_lora.part import inner\n    import budgeted_lora.c\n",
        "part/__init__.py": "",
        "part/inner.py": "from budgeted_lora.files import x\nfrom budgeted_lora.part.deep import y\n",
        "part/deep.py": "import os\n",
        "c.py": "",
        "files.py": "from budgeted_lora.unseen import z\n",
        "unseen.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(sources, "ROOT", package)
    monkeypatch.setitem(sources.STAGES, "made-up", "a")
    names = {Path(path).relative_to(package).as_posix() for path in source_files("made-up")}
    assert names == {"a.py", "part/__init__.py", "part/inner.py", "part/deep.py", "c.py"}


def test_the_word_list_is_code_of_the_stages_that_read_it() -> None:
    readers = {stage for stage in STAGES if any(path.endswith("words.txt") for path in source_files(stage))}
    assert readers == {stage for stage in STAGES if "data.probes" in listed(stage)}
    assert {"tokenizer", "tokenize", "evaluate"} <= readers


@pytest.mark.parametrize(
    "statement",
    [
        "from budgeted_lora import config, graph, grid, sources",
        "from budgeted_lora.budget import plan, report",
        "import budgeted_lora.commands.app",
        "from budgeted_lora.planning import show, start",
    ],
)
def test_the_workflow_and_the_plan_need_no_torch(statement: str) -> None:
    heavy = ("torch", "transformers", "datasets", "pandas", "matplotlib")
    script = f"import sys\n{statement}\nprint([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
