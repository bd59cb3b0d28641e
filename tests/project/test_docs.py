"""What README.md, CONTRIBUTING.md and docs/ name exists: paths, links, commands, make's targets and tests."""

import re
from pathlib import Path

import pytest
import typer

from budgeted_lora.commands.app import app
from budgeted_lora.workflow.stage_command import stage_names

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "budgeted_lora"
PAGES = [
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "*/README.md", "docs/*.md")
    for path in sorted(ROOT.glob(pattern))
]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
COMPUTED = re.compile(r"[<>*{}$,]|\.\.\.|[A-Z]{3,}")  # placeholders, and what only a run writes

pages = pytest.mark.parametrize("page", NAMES)


def code(page: str) -> list[str]:
    """The page's code: text between backticks, and lines of blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*re.findall(r"`([^`\n]+)`", inline), *(line for block in blocks for line in block.splitlines())]


def exists(path: str) -> bool:
    """Whether a path lies in the repository or in the package; `tests/x` may also be given without its folder."""
    return any((folder / path).exists() for folder in (ROOT, PACKAGE))


@pages
def test_paths_exist(page: str) -> None:
    folders = {path.name for folder in (ROOT, PACKAGE) for path in folder.iterdir() if path.is_dir()}
    words = [word.strip(".,;:()") for text in code(page) for word in re.split(r"[\s'\"=]+", text)]
    paths = {word.partition("::")[0] for word in words if "/" in word and not COMPUTED.search(word)}
    paths = {path for path in paths if path.partition("/")[0] in folders - {"results", "reports"}}
    assert {path for path in paths if not exists(path)} == set()


@pages
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()] == []


@pages
def test_commands_exist(page: str) -> None:
    commands = set(typer.main.get_command(app).commands)
    named = {name for text in code(page) for name in re.findall(r"(?<![\w/-])budgeted-lora ([a-z][a-z-]*)", text)}
    assert named - commands == set()
    stages = {name for text in code(page) for name in re.findall(r"budgeted-lora stage ([a-z_]+)", text)}
    assert stages - set(stage_names()) == set()


@pages
def test_targets_of_make_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z.]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for text in code(page) for name in re.findall(r"(?:^|&& )make ([a-z.]+)", text)}
    assert named - targets == set()


@pages
def test_tests_exist(page: str) -> None:
    """A test is named by its file, alone or as `file::name`; a name that is cut ends with three dots."""
    files = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py")}
    missing = []
    for file, name in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", (ROOT / page).read_text(encoding="utf-8")):
        if file not in files or (name and f"def {name}" not in files[file]):
            missing.append(f"{file}::{name}")
    assert missing == []


def test_tree_of_the_map_is_the_packages() -> None:
    """Every package stands in the tree, with all files of `method/`, and what the tree names exists."""
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    tree = re.search(r"^```\n(Snakefile.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    named, folders = set(), [ROOT]
    for line in tree.splitlines():
        names, depth = re.split(r"\s{3,}", line.strip())[0].split(), (len(line) - len(line.lstrip())) // 2
        named |= {folders[depth] / name for name in names}
        folders[depth + 1 :] = [folders[depth] / names[-1]]
    assert {path for path in named if not path.exists()} == set()
    assert {path.parent for path in PACKAGE.glob("*/__init__.py")} <= named
    assert set((PACKAGE / "method").glob("[a-z]*.py")) <= named
