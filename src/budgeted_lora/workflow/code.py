"""Which code a stage depends on, found by following its imports; the workflow names digests of it as inputs.

A module's digest is that of its syntax tree without docstrings. So an edit of code reruns the stages that import the
module, directly or not, and an edit of a comment, a docstring or the layout reruns nothing. The digests of a stage
stand in a small file beside the results (`results/<scale>/code/`), which is written again only when one of them
differs: Snakemake compares the file by content, and by its date where it has no record of a result.
"""

import ast
import hashlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file, short_hash, write_json, write_text
from budgeted_lora.workflow.runs import run_folder

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT.name

# Sources that cannot change a result. Configuration names and checks values, and the values are `params:`; only what
# it reads of a checkpoint's config.json is computed with. The others decide where a result is written, what is
# printed, which GPU a job gets, and how its processes start.
EXEMPT = frozenset({"config", "workflow", "commands", "errors", "files", "provenance", "__init__"})
NOT_EXEMPT = frozenset({"config.anatomy"})
EXEMPT_MODULES = frozenset({"stages.dispatch", "stages.arguments", "stages.launch"})

# Data files of the package that a module reads and that decide what it returns.
DATA = {
    "data.probes": ("assets/words.txt",),
    "models.card": ("assets/model_card.md",),
    "reporting.texts": ("reporting/texts.yaml",),
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MEMORY = "known.json"  # beside the digests of a scale's stages
READ_WITH = "BUDGETED_LORA_PACKAGE"  # tells a job the folder of the package that its workflow was read with


class Source(NamedTuple):
    """What matters of a module's text: the digest of its code, and the modules of this package that it names."""

    code: str
    imports: tuple[str, ...]


class Sources:
    """The modules of a package, each read at most once.

    Args:
        root: folder of the package.
        known: what matters of a text, by the text's SHA-256. Parsing takes a second for the whole package, so the
            workflow keeps it in a file; new texts are added.
    """

    def __init__(self, root: Path, known: dict[str, Source] | None = None) -> None:
        self.root = root
        self.known = {} if known is None else known
        self._read: dict[str, Source] = {}

    def __getitem__(self, module: str) -> Source:
        if module not in self._read:
            text = self.path(module).read_bytes()
            key = hashlib.sha256(text).hexdigest()
            if key not in self.known:
                tree = ast.parse(text)
                self.known[key] = Source(hashlib.sha256(canonical(tree).encode()).hexdigest(), named_in(tree))
            code, names = self.known[key]
            self._read[module] = Source(code, tuple(name for name in names if self._counts(name)))
        return self._read[module]

    def _counts(self, name: str) -> bool:
        """Whether an imported name is a module, and one that can change a result."""
        return not exempt(name) and self.path(name).is_file()

    def reached(self, *first: str) -> list[str]:
        """These modules and those that they import, directly or not, without exempt ones; sorted."""
        modules: set[str] = set()
        waiting = list(first)
        while waiting:
            module = waiting.pop()
            if module not in modules:
                modules.add(module)
                waiting += self[module].imports
        return sorted(modules)

    def files(self, *first: str) -> list[Path]:
        """Files of the modules reached from these, and the data files that they read."""
        modules = self.reached(*first)
        return [self.path(module) for module in modules] + [self.root / name for name in data_of(modules)]

    def digests(self, *first: str) -> dict[str, str]:
        """Digest of each module reached from these, and of each data file that they read, by name."""
        modules = self.reached(*first)
        code = {module: self[module].code for module in modules}
        return code | {name: sha256_file(self.root / name) for name in data_of(modules)}

    def path(self, module: str) -> Path:
        """File of a module, or where it would be."""
        path = self.root.joinpath(*module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exempt(module: str) -> bool:
    """Whether the code of a module cannot change a result."""
    return module in EXEMPT_MODULES or (module.partition(".")[0] in EXEMPT and module not in NOT_EXEMPT)


def data_of(modules: Iterable[str]) -> list[str]:
    """Data files of the package that these modules read, relative to its folder."""
    return [name for module in modules for name in DATA.get(module, ())]


def canonical(node: Any) -> str:
    """A syntax tree as text, without docstrings and without what is empty.

    `ast.dump` would do, but prints the same code otherwise in another version of Python.
    """
    if isinstance(node, ast.AST):
        parts = [f"{name}={canonical(value)}" for name, value in fields_of(node)]
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(map(canonical, node))}]"
    return repr(node)


def fields_of(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names and values of a node's fields that hold something; of a body, what follows its docstring."""
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            value = value[1:]
        if value is not None and value != []:
            yield name, value


def named_in(tree: ast.Module) -> tuple[str, ...]:
    """What a module imports from this package, wherever in the file it stands; of an object, its module as well."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(sorted({name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}))


@cache
def sources() -> Sources:
    """The modules of this package as they are on disk."""
    return Sources(ROOT)


def code_digest(stage: str) -> str:
    """Digest of the code of a stage; a saved state is resumed only by the same code."""
    return short_hash(sources().digests(f"stages.{stage}"), digits=64)


class CodeFiles:
    """The digests of the code of a scale's stages, as small files that rules name as inputs."""

    def __init__(self, results: Path | str) -> None:
        self.folder = Path(results) / "code"

    def of(self, stage: str, *more: str) -> list[str]:
        """Paths of the digests of a stage, and of modules that it imports by a name it is given."""
        return [str(self._path(module)) for module in (f"stages.{stage}", *more)]

    def _path(self, module: str) -> Path:
        return self.folder / f"{module}.txt"

    def changed(self, stage: str) -> list[str]:
        """What of a stage's code is other than the digests on disk say; empty where there are none."""
        path = self._path(f"stages.{stage}")
        if not path.is_file():
            return []
        lines = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
        planned = {name: digest for digest, _, name in lines}
        own = sha256_file(__file__)
        today = Sources(ROOT, self._remembered(own)).digests(f"stages.{stage}")
        return sorted(name for name in planned.keys() | today.keys() if planned.get(name) != today.get(name))

    def write(self, modules: Iterable[str], *, missing_only: bool = False) -> None:
        """Writes the digests of the code reached from each module, where they are not the ones on disk.

        A file that was not there gets the date of its newest source: results that lie here without it, and without
        Snakemake's records, are then compared with the sources by date.

        Args:
            missing_only: leave files that are there as they are.

        Raises:
            BadInput: the folder cannot be written.
        """
        own = sha256_file(__file__)  # what is known was found by this very file
        memory = self._remembered(own)
        before = len(memory)
        read = Sources(ROOT, memory)
        try:
            for module in modules:
                path = self._path(module)
                there = path.is_file()
                text = "".join(f"{digest} {name}\n" for name, digest in read.digests(module).items())
                if there and (missing_only or path.read_text(encoding="utf-8") == text):
                    continue
                write_text(path, text)
                if not there:
                    newest = max(file.stat().st_mtime_ns for file in read.files(module))
                    os.utime(path, ns=(newest, newest))
            if len(memory) > before:
                write_json(self.folder / MEMORY, {"by": own, "known": memory})
        except OSError as error:
            raise BadInput(f"{error.filename or self.folder}: {error.strerror}; expected a place to write") from None

    def _remembered(self, own: str) -> dict[str, Source]:
        try:
            memory = read_json(self.folder / MEMORY)
            known = memory["known"] if memory["by"] == own else {}
            return {key: Source(code, tuple(imports)) for key, (code, imports) in known.items()}
        except (BadInput, OSError, KeyError, TypeError, ValueError, AttributeError):
            return {}


def job_prefix() -> str:
    """What Snakemake puts before each shell command: a strict shell, and `budgeted-lora` as this interpreter has it.

    Another `budgeted-lora`, of another checkout or version, may stand earlier on PATH. The prefix takes the place of
    Snakemake's own, without which a stage that fails before a pipe would count as done.
    """
    command = f'exec {shlex.quote(sys.executable)} -P -m budgeted_lora.commands.app "$@"'
    text = f"set -euo pipefail; export {READ_WITH}={shlex.quote(str(ROOT))}; budgeted-lora() ( {command} ); "
    return text.replace("{", "{{").replace("}", "}}")  # Snakemake formats it


def refuse_another_package(checkout: Path | str) -> None:
    """Compares the package that Python imports with the one that lies beside the workflow, if another one does.

    Every module counts: also those that change no result decide what the rules are and what a key means.

    Raises:
        BadInput: their code differs.
    """
    beside = Path(checkout).resolve() / "src" / PACKAGE
    if not beside.is_dir() or beside == ROOT:
        return
    modules = {str(path.relative_to(root)) for root in (beside, ROOT) for path in root.rglob("*.py")}
    for name in sorted(modules.union(*DATA.values())):
        if not _same_code(beside / name, ROOT / name):
            raise BadInput(
                f"{beside}: the workflow is of this checkout, but {sys.executable} imports {ROOT}, whose {name} is "
                "another; expected one (make setup, then . .venv/bin/activate)"
            )


def _same_code(*files: Path) -> bool:
    if not all(file.is_file() for file in files):
        return False
    one, other = (file.read_bytes() for file in files)
    if one == other or files[0].suffix != ".py":
        return one == other
    return canonical(ast.parse(one)) == canonical(ast.parse(other))


def refuse_other_code(stage: str) -> None:
    """Compares the code that a job would run with that its workflow was read with; each job does this first.

    Raises:
        BadInput: it is another package, or it was edited since.
    """
    package, folder = os.environ.get(READ_WITH), run_folder()
    if package and Path(package) != ROOT:
        raise BadInput(f"stage {stage}: would run {ROOT}, but the workflow was read with {package}; expected the same")
    edited = CodeFiles(folder).changed(stage) if folder else []
    if edited:
        more = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
        raise BadInput(
            f"stage {stage}: the code of {edited[0]}{more} was edited since this run was planned; expected the "
            "same code until a run ends (end it, and start it again)"
        )


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
