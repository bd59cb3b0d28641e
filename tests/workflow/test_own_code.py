"""Jobs run the code that their workflow was read with, or refuse."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import budgeted_lora
from budgeted_lora.errors import BadInput
from budgeted_lora.workflow.code import (
    READ_WITH,
    ROOT,
    CodeFiles,
    job_prefix,
    refuse_another_package,
    refuse_other_code,
)
from budgeted_lora.workflow.runs import VARIABLE

STAGE = "train_cell"


def test_another_command_earlier_on_path_is_not_run(tmp_path: Path) -> None:
    other = tmp_path / "budgeted-lora"
    other.write_text("#!/bin/sh\necho another checkout\n")
    other.chmod(0o755)
    (tmp_path / "budgeted_lora").mkdir()  # in the working folder, which Python must not import from
    (tmp_path / "budgeted_lora" / "__init__.py").write_text('__version__ = "another"\n')
    where = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    where["PYTHONPATH"] = str(ROOT.parent)
    command = job_prefix().replace("{{", "{").replace("}}", "}") + f'budgeted-lora --version; echo "${READ_WITH}"'
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=where, check=True)
    version, package = ran.stdout.splitlines()
    assert version.startswith(f"budgeted-lora {budgeted_lora.__version__}")
    assert package == str(ROOT)


def test_the_prefix_names_this_interpreter_and_keeps_a_failure_before_a_pipe() -> None:
    assert sys.executable in job_prefix()
    ran = subprocess.run(["bash", "-c", job_prefix() + "false | cat"], check=False)
    assert ran.returncode == 1


@pytest.mark.parametrize("where", ["/elsewhere/src/budgeted_lora", str(ROOT)])
def test_a_job_compares_its_package(run, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv(READ_WITH, where)
    outcome = run("stage", "list_table", "--table=t", "--out=o", "--config={}")
    line = outcome.refusal()
    assert ("was read with /elsewhere" in line) == (where != str(ROOT))


def test_a_job_compares_its_code_with_that_its_run_was_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"id {tmp_path}")
    refuse_other_code(STAGE)  # a run of an earlier version, which wrote no digests
    code = CodeFiles(tmp_path)
    code.write([f"stages.{STAGE}"])
    refuse_other_code(STAGE)
    [path] = map(Path, code.of(STAGE))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join("0" * 64 + line[64:] if line.endswith(" method.loss\n") else line for line in lines))
    with pytest.raises(BadInput, match=r"the code of method\.loss was edited since this run was planned"):
        refuse_other_code(STAGE)
    monkeypatch.delenv(VARIABLE)
    refuse_other_code(STAGE)  # by hand


@pytest.mark.parametrize("module", ["models/card.py", "config/sections.py", "workflow/options.py"])
@pytest.mark.parametrize(
    ("edit", "refused"),
    [(lambda text: text, False), (lambda text: text + "# x\n", False), (lambda text: text + "X = 1\n", True)],
    ids=["the same", "a comment", "code"],
)  # fmt: skip
def test_a_workflow_is_not_read_with_another_package(
    tmp_path: Path, edit: Callable[[str], str], module: str, *, refused: bool
) -> None:
    beside = tmp_path / "src" / "budgeted_lora"
    shutil.copytree(ROOT, beside, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    file = beside / module
    file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")
    if refused:
        with pytest.raises(
            BadInput, match=rf"the workflow is of this checkout, but .* imports .*{module} is another; expected one"
        ):
            refuse_another_package(tmp_path)
    else:
        refuse_another_package(tmp_path)


@pytest.mark.parametrize("name", ["config/more.py", "assets/words.txt"])
def test_a_package_with_a_file_more_or_other_words_is_another(tmp_path: Path, name: str) -> None:
    beside = tmp_path / "src" / "budgeted_lora"
    shutil.copytree(ROOT, beside, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    with (beside / name).open("a", encoding="utf-8") as file:
        file.write("# more\n")
    with pytest.raises(BadInput, match=f"whose {name} is another"):
        refuse_another_package(tmp_path)


def test_a_workflow_without_sources_beside_it_is_read_with_what_is_installed(tmp_path: Path) -> None:
    refuse_another_package(tmp_path)
