"""Which source files a stage depends on, found by following its imports; the workflow lists them as inputs.

Snakemake compares these small files by checksum, so an edit reruns the stages that import the file, directly or
not, and `touch` or a branch switch and back reruns nothing.
"""

import ast
from functools import cache
from pathlib import Path

from budgeted_lora.files import sha256_file, short_hash

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT.name

# Sources that cannot change a result. Configuration only names and checks values, and the values are `params:`. The
# others decide where a result is written, what is printed, which GPU a job gets, and how its processes start.
EXEMPT = frozenset({"config", "workflow", "commands", "errors", "files", "provenance", "__init__"})
EXEMPT_MODULES = frozenset({"stages.dispatch", "stages.arguments", "stages.launch"})

# Data files of the package that a module reads and that decide what it returns.
DATA = {
    "data.probes": ("assets/words.txt",),
    "models.card": ("assets/model_card.md",),
    "reporting.texts": ("reporting/texts.yaml",),
}


def source_files(stage: str, *more: str) -> tuple[str, ...]:
    """Paths of the files that a stage imports, and of the data files that these read; relative to the working folder.

    Args:
        more: modules that the stage imports by a name it is given.
    """
    modules = _modules(f"stages.{stage}", *more)
    paths = [_path(module) for module in modules] + [ROOT / name for module in modules for name in DATA.get(module, ())]
    return tuple(str(_from_here(path)) for path in paths)


@cache
def _modules(*first: str) -> tuple[str, ...]:
    """These modules and those that they import, directly or not."""
    modules: set[str] = set()
    waiting = list(first)
    while waiting:
        module = waiting.pop()
        if module in modules or module.split(".")[0] in EXEMPT or module in EXEMPT_MODULES:
            continue
        modules.add(module)
        waiting += imports(module)
    return tuple(sorted(modules))


def shipped_files(folder: str, *names: str) -> list[str]:
    """Those of the named files that ship in a folder of the package's assets."""
    paths = [ROOT / "assets" / folder / name for name in names]
    return [str(_from_here(path)) for path in paths if path.is_file()]


def source_folder(package: str) -> Path:
    """Folder of one of the package's parts; relative to the working folder where it lies in it."""
    return _from_here(ROOT / package)


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def imports(module: str) -> list[str]:
    """Modules of this package that a module names in its imports, wherever in the file they stand."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = (name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}."))
    return [name for name in inside if _path(name).is_file()]


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def code_digest(stage: str) -> str:
    """Digest of the sources of a stage; a saved state is resumed only by the same code."""
    return short_hash([sha256_file(file) for file in source_files(stage)], digits=64)
