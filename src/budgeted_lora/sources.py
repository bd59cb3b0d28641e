"""Which source files a stage depends on, found by following its imports; the workflow lists them as inputs.

Snakemake compares these small files by checksum, so an edit reruns the stages that import the file, directly or
not, and `touch` or a branch switch and back reruns nothing.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT.name

# What cannot change a result: what a value is called or checked against (the values themselves are `params:`),
# where a result is written, what is printed, which device slot a job waits for, who starts its processes, and who else
# is at work.
EXEMPT = frozenset(
    {
        "cli",
        "stages",
        "config",
        "strict",
        "rows",
        "consistency",
        "corpus_settings",
        "scale_file",
        "wording",
        "grid",
        "recipe",
        "graph",
        "errors",
        "files",
        "provenance",
        "ranks",
        "runs",
        "slots",
        "slurm",
        "sources",
        "memory",
        "shards",
        "__init__",
    }
)

STAGES = {
    "collect": "data.collect",
    "tokenizer": "data.tokenizer",
    "tokenize": "data.tokenize",
    "fetch-shard": "data.shard_fetch",
    "tokenize-shard": "data.shard",
    "join-shards": "data.join",
    "fetch": "models.fetch",
    "pretrain": "models.teacher",
    "student": "models.student",
    "statistics": "training.statistics",
    "cache": "training.cache_stage",
    "train": "training.stage",
    "compress": "compression.compress",
    "evaluate": "evaluation.evaluate",
    "speed": "evaluation.speed",
    "calibrate": "evaluation.calibration",
    "report": "reporting.build",
}


# Data files of the package that a module reads and that decide what it returns.
DATA = {"data.probes": ("assets/words.txt",)}


def source_files(stage: str) -> tuple[str, ...]:
    """Paths of the package's files that a stage imports, sorted, and of the data files that these read.

    Relative to the working folder if they lie in it.
    """
    modules = _modules(stage)
    paths = [_path(module) for module in modules] + [ROOT / name for module in modules for name in DATA.get(module, ())]
    return tuple(str(_from_here(path)) for path in paths)


@cache
def _modules(stage: str) -> tuple[str, ...]:
    """The modules that a stage imports, directly or not."""
    found: set[str] = set()
    waiting = [STAGES[stage]]
    while waiting:
        module = waiting.pop()
        if module in found or module.split(".")[0] in EXEMPT:
            continue
        found.add(module)
        waiting += imports(module)
    return tuple(sorted(found))


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
