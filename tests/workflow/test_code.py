"""What an edit of the sources costs: a comment nothing, a change of code what is made with it."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.checkout import checkout
from fixtures.snakemake_runs import count_all_as_done, edited, pending

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.workflow.code import MEMORY, CodeFiles, Sources, sources
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.stage_command import stage_names

LOSS = "src/budgeted_lora/method/loss.py"
TRAINED = {"train_cell", "compress_cell", "evaluate_cell", "score_cell"}
REPORT = {"make_table", "make_figure", "make_index", "make_contents", "judge_claims", "judge_all_claims"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which every job of the smallest scale counts as done."""
    folder = checkout(tmp_path_factory.mktemp("done"))
    count_all_as_done(folder)
    return folder


def remarked(text: str) -> str:
    """A module with a longer docstring, a comment above its code and one below."""
    assert text.startswith('"""')
    return '# A first remark.\n"""Said otherwise. ' + text.removeprefix('"""') + "\n# A last remark.\n"


def test_comments_and_docstrings_of_every_module_plan_nothing(done: Path) -> None:
    files = [path for path in (done / "src").rglob("*.py") if path.read_text(encoding="utf-8").startswith('"""')]
    assert len(files) > 100
    before = {path: path.read_text(encoding="utf-8") for path in files}
    try:
        for path, text in before.items():
            path.write_text(remarked(text), encoding="utf-8")
        assert pending(done) == {}
    finally:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")


def test_an_edit_of_code_plans_every_training_and_nothing_before(done: Path) -> None:
    with edited(done / LOSS, lambda text: remarked(text) + "NEW = 1\n"):
        found = pending(done)
    assert set(found.values()) == TRAINED | REPORT
    cells = Graph(load_config(done / "config" / "smoke.yaml")).cells
    assert sum(name.endswith("train.json") for name in found) == len(cells) > 0
    assert pending(done) == {}, "the edit taken back"


def test_an_edit_with_an_old_date_is_seen(done: Path) -> None:
    with edited(done / LOSS, lambda text: text + "NEW = 1\n"):
        os.utime(done / LOSS, (0, 0))
        assert "train_cell" in pending(done).values()


def test_an_edit_of_a_word_list_is_an_edit_of_code(done: Path) -> None:
    with edited(done / "src/budgeted_lora/assets/words.txt", lambda text: text + "# newword\n"):
        assert "collect_corpus" not in (found := set(pending(done).values()))
    assert {"train_tokenizer", "tokenize_corpus", "train_cell"} <= found


@pytest.mark.parametrize(
    ("change", "expected"), [(remarked, set()), (lambda text: text + "NEW = 1\n", TRAINED | REPORT)]
)
def test_results_copied_without_records_are_compared_by_their_code(
    done: Path, tmp_path: Path, change: Callable[[str], str], expected: set[str]
) -> None:
    """The digests come along with the results; the edited source is newer than both."""
    assert pending(done) == {}, "so that its digests are those of its sources"
    other = checkout(tmp_path / "other")
    for name in ("results", "reports"):
        shutil.copytree(done / name, other / name)
    now = time.time()
    for path in [*(other / "results").rglob("*"), *(other / "reports").rglob("*")]:
        os.utime(path, (now, now))  # made up in no order, see `count_all_as_done`
    (other / LOSS).write_text(change((other / LOSS).read_text(encoding="utf-8")), encoding="utf-8")
    assert set(pending(other).values()) == expected


# --- the digest of a module


def digest(folder: Path, text: str) -> str:
    (folder / "module.py").write_text(text, encoding="utf-8")
    return Sources(folder)["module"].code


CODE = '''"""Module."""

class A:
    """A class."""

    x = 1

    def f(self):
        """A method."""
        return "a"
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Module."""', "# remark", True),
        ('"""A method."""\n        ', "", True),
        ('"""A class."""', '"""Another\n    class."""', True),
        ("x = 1", "x   =   (1)  # one", True),
        ('return "a"', "return ('a')", True),
        ("x = 1", "x = 2", False),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ('return "a"', 'return "b"', False),
        ('return "a"', 'return b"a"', False),
        ('return "a"', "return None", False),
        ('return "a"', 'return f"{self}"', False),
        ('return "a"', 'return f"{self!r}"', False),
        ("x = 1", "x: int = 1", False),
        ("def f(self)", "def f(self, /)", False),
        ("def f(self)", "async def f(self)", False),
        ("def f(self)", "@property\n    def f(self)", False),
        ('        return "a"\n', '        return "a"\n\n    """not a docstring"""\n', False),
    ],
)
def test_what_the_digest_sees(tmp_path: Path, old: str, new: str, *, same: bool) -> None:
    assert old in CODE
    assert (digest(tmp_path, CODE) == digest(tmp_path, CODE.replace(old, new))) is same


def test_modules_that_differ_have_other_digests() -> None:
    modules = [module for stage in stage_names() for module in sources().reached(f"stages.{stage}")]
    modules = [module for module in modules if sources().path(module).name != "__init__.py"]
    codes = {module: sources()[module].code for module in modules}
    assert len(codes) > 60
    texts = {module: sources().path(module).read_bytes() for module in codes}
    assert len(set(codes.values())) == len(set(texts.values()))


# --- the files of a scale


def test_a_digest_is_written_when_it_differs_and_else_left_alone(tmp_path: Path) -> None:
    code = CodeFiles(tmp_path)
    [path] = map(Path, code.of("train_cell"))
    code.write(["stages.train_cell"])
    text, first = path.read_text(), path.stat().st_mtime_ns
    assert "method.loss\n" in text
    assert first == max(file.stat().st_mtime_ns for file in sources().files("stages.train_cell")), "as old as its code"
    code.write(["stages.train_cell"])
    assert path.stat().st_mtime_ns == first
    path.write_text("another\n")
    code.write(["stages.train_cell"], missing_only=True)
    assert path.read_text() == "another\n"
    code.write(["stages.train_cell"])
    assert path.read_text() == text
    assert path.stat().st_mtime_ns > first


@pytest.mark.parametrize("content", ["", "[]", '{"by": "x"}', '{"by": 1, "known": {"a": 1}}', "\x00"])
def test_a_damaged_memory_of_digests_is_made_anew(tmp_path: Path, content: str) -> None:
    code = CodeFiles(tmp_path)
    code.write(["stages.train_cell"])
    [path] = map(Path, code.of("train_cell"))
    text, memory = path.read_text(), code.folder / MEMORY
    memory.write_text(content)
    path.unlink()
    code.write(["stages.train_cell"])
    assert path.read_text() == text
    assert '"known"' in memory.read_text()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("a file where the folder should be")
    with pytest.raises(BadInput, match="expected a place to write"):
        CodeFiles(tmp_path).write(["stages.train_cell"])
