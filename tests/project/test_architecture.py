"""The plan of the package: who may import whom, what stays free of torch, and how large a file may be.

A linter of imports (import-linter) would hold the arrows as well, but it does not tell an import at the top of a file
from one inside a function, and the latter is how a stage takes its GPU before it loads torch.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import budgeted_lora

ROOT = Path(budgeted_lora.__file__).parent
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_OF_THE_PACKAGE = 400, 70, 18_000

# What each package may import, low to high: a line names lines above it only, so no arrow points upwards.
# A name with a dot is a module: only that module.
PLAN = {
    "errors": [],
    "files": ["errors"],
    "provenance": ["files"],
    "config": ["errors"],
    "method": ["errors", "config.recipe"],
    "beyond": ["errors", "files", "config.recipe", "method"],
    "data": ["errors", "files", "config"],
    "models": ["errors", "files", "config", "method"],
    "training": ["errors", "files", "config", "method", "beyond", "data"],
    "evaluation": ["errors", "method", "data", "models"],
    "serving": ["errors", "files", "config", "data.tokenizer", "models"],
    "reporting": ["errors", "files", "config"],
    "workflow": [
        "errors",
        "files",
        "config",
        "method",
        "data.probes",
        "data.readers",
        "reporting.contents",
        "reporting.standing",
    ],
    "stages": [
        *["errors", "files", "provenance", "config", "method", "beyond", "data", "models", "training", "evaluation"],
        *["reporting", "workflow"],
    ],
    "planning": [
        *["errors", "files", "config", "method", "beyond.elastic", "data", "models", "training"],
        *["reporting.contents", "workflow"],
    ],
    "commands": [
        *["errors", "files", "provenance", "config", "method", "training.state", "reporting", "workflow", "stages"],
        *["planning", "serving"],
    ],
}
LOOSE = {"errors", "files", "provenance"}  # modules beside the packages

LIGHT = ("config", "workflow", "planning", "reporting.contents")  # what Snakemake and `plan` import: quick to start
HEAVY = {"torch", "pandas", "transformers", "pyarrow"}
MEASURING = {"planning.measure", "planning.memory"}  # these two run a model

# Stages of which a scale runs many short jobs. Importing transformers takes longer than all else that they import.
LEAN = {"stages.evaluate"}

# What is not yet so. A line that is no longer needed fails the test.
EXCEPTIONS: set[str] = {"the package is over 18000 lines"}


@cache
def modules() -> dict[str, ast.Module]:
    """Syntax tree by name below the package: `method.loop`; a package's own file has the package's name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(ROOT.rglob("*.py"))
    }


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Names imported at the top of a file, and inside its functions if `lazy`; ours begin with `budgeted_lora.`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, lazy=lazy)


@cache
def neighbours(module: str, *, lazy: bool) -> frozenset[str]:
    """Modules of ours that a module imports; the root, which holds the version alone, is left out."""
    names = set()
    for name in imports(modules()[module], lazy=lazy):
        if name.startswith("budgeted_lora."):
            parts = name.split(".")[1:]
            names |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & modules().keys()
    longest = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    return frozenset(longest - {module, ""})


def package(module: str) -> str:
    return module.partition(".")[0]


def unplanned() -> Iterator[str]:
    for module in modules():
        allowed = PLAN.get(package(module), [])
        for other in neighbours(module, lazy=True):
            if package(other) != package(module) and other not in allowed and package(other) not in allowed:
                yield f"{module} imports {other}"


def circles() -> Iterator[str]:
    """Neighbours that reach each other."""
    for module in modules():
        for other in neighbours(module, lazy=True):
            if module in reached(other, lazy=True):
                yield "{} and {} import each other".format(*sorted([module, other]))


@cache
def reached(module: str, *, lazy: bool) -> frozenset[str]:
    """Modules loaded with a module: what it imports, what these import, and the packages they lie in."""
    seen, pending = set(), [module]
    while pending:
        for name in neighbours(pending.pop(), lazy=lazy) - seen:
            seen.add(name)
            pending.append(name)
    return frozenset(seen)


def heavy() -> Iterator[str]:
    for module in modules():
        if module.startswith(LIGHT) and module not in MEASURING:
            for other in {module, *reached(module, lazy=False)}:
                loaded = {name.partition(".")[0] for name in imports(modules()[other], lazy=False)}
                yield from (f"{module} loads {name}" for name in loaded & HEAVY)


def lean() -> Iterator[str]:
    for module in sorted(LEAN):
        for other in {module, *reached(module, lazy=False)}:
            if any(name.split(".")[0] == "transformers" for name in imports(modules()[other], lazy=False)):
                yield f"{module} loads transformers by {other}"


def loose() -> Iterator[str]:
    files = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    yield from (f"{name} lies beside the packages" for name in files - LOOSE)
    yield from (f"package {name} is not in the plan" for name in folders - PLAN.keys())


def large() -> Iterator[str]:
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        if len(text.splitlines()) > LINES_OF_A_FILE:
            yield f"{name} is over {LINES_OF_A_FILE} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LINES_OF_A_FUNCTION:
                yield f"{name}: {node.name} is over {LINES_OF_A_FUNCTION} lines"

    size = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py"))
    if size > LINES_OF_THE_PACKAGE:
        yield f"the package is over {LINES_OF_THE_PACKAGE} lines"


def unused() -> Iterator[str]:
    """Arrows of the plan that no import needs."""
    used = {(package(module), other) for module in modules() for other in neighbours(module, lazy=True)}
    used |= {(name, package(other)) for name, other in used}
    for name, allowed in PLAN.items():
        yield from (f"{name} may import {other} and does not" for other in allowed if (name, other) not in used)


RULES = {
    "arrows": unplanned,
    "circles": circles,
    "heavy": heavy,
    "lean": lean,
    "loose": loose,
    "large": large,
    "unused": unused,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_plan_holds(rule: str) -> None:
    assert sorted(set(RULES[rule]()) - EXCEPTIONS) == []


def test_exceptions_are_still_needed() -> None:
    needed = {fault for faults in RULES.values() for fault in faults()}
    assert sorted(EXCEPTIONS - needed) == []


def test_plan_has_no_arrow_upwards() -> None:
    lines = list(PLAN)
    assert PLAN.keys() >= LOOSE
    for place, (name, allowed) in enumerate(PLAN.items()):
        assert {package(other) for other in allowed} <= set(lines[:place]), name


@pytest.mark.parametrize(
    ("text", "lazy", "names"),
    [
        ("import a.b, c", False, ["a.b", "c"]),
        ("from a import b\ntry:\n    import c\nexcept ImportError:\n    pass", False, ["a.b", "c"]),
        ("def f():\n    import a", False, []),
        ("class A:\n    def f(self):\n        if self:\n            import a", True, ["a"]),
        ("if TYPE_CHECKING:\n    import a", True, []),
    ],
)
def test_imports_are_read(text: str, lazy: bool, names: list[str]) -> None:
    assert list(imports(ast.parse(text), lazy=lazy)) == names
