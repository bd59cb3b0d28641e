"""A result says which stage function wrote it, and whether its code was in no commit."""

import subprocess
from pathlib import Path

import pytest

from budgeted_lora import provenance
from budgeted_lora.provenance import stage_in_progress


def stage_of(module: str, function: str) -> str | None:
    """What a helper deep below a function of a module would record."""
    space: dict = {"__name__": module, "stage_in_progress": stage_in_progress}
    exec(f"def helper():\n    return stage_in_progress()\ndef {function}():\n    return helper()", space)
    return space[function]()


def test_a_result_names_the_stage_that_wrote_it() -> None:
    assert stage_of("budgeted_lora.stages.evaluate", "evaluate") == "budgeted_lora.stages.evaluate.evaluate"
    assert stage_of("budgeted_lora.stages.dispatch", "run_stage") is None
    assert stage_of("budgeted_lora.evaluation.perplexity", "score") is None


def test_only_code_that_is_in_no_commit_is_uncommitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    def dirty() -> bool | None:
        return provenance.git_state.__wrapped__()["git_dirty"]

    module = tmp_path / "src" / "budgeted_lora" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert dirty() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    assert dirty() is False
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "own.yaml").write_text("extends: mini\n")
    assert dirty() is False, "a scale of one's own"
    for path in (module, module.with_name("new.py"), tmp_path / "Snakefile"):
        before = path.read_text() if path.exists() else None
        path.write_text("x = 2\n")
        assert dirty() is True, path.name
        path.unlink() if before is None else path.write_text(before)
    assert dirty() is False
