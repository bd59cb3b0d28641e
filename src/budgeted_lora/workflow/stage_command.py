"""The stages and their arguments, read from the files of stages/ without importing them, and the command of a rule.

A stage is a file of stages/ that defines a function of its own name. Rules call it by that name.
"""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from budgeted_lora.errors import BadInput

FOLDER = Path(__file__).resolve().parents[1] / "stages"
OPTIONS = "options"  # several arguments as one JSON object
GPUS = "gpus"  # how many GPUs train together; the dispatcher makes the argument TOGETHER of it
TOGETHER = "together"


@cache
def stage_names() -> tuple[str, ...]:
    """Every stage, by name."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py") if _function(path) is not None))


@cache
def stage_arguments(stage: str) -> dict[str, bool]:
    """The arguments of a stage on the command line, in the order of its signature, and whether each is required.

    Raises:
        BadInput: there is no such stage.
    """
    if stage not in stage_names():
        raise BadInput(f"stage {stage}: no such stage; expected one of {', '.join(stage_names())}")
    arguments = _function(FOLDER / f"{stage}.py").args
    required = {
        argument.arg: default is None
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    return {GPUS if name == TOGETHER else name: value for name, value in required.items()}


def stage_description(stage: str) -> str:
    """The docstring of a stage's function."""
    return ast.get_docstring(_function(FOLDER / f"{stage}.py")) or ""


def _function(path: Path) -> ast.FunctionDef | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == path.stem), None)


def check_arguments(stage: str, names: Iterable[str], *, partly: bool = False) -> None:
    """Raises BadInput if an argument is unknown, or a required one missing; `partly` if the rest is in `--options`."""
    given, arguments = set(names), stage_arguments(stage)
    unknown = given - arguments.keys() - {OPTIONS}
    if unknown:
        known = ", ".join(map(flag, arguments))
        raise BadInput(f"stage {stage}: unknown argument {flag(min(unknown))}; expected {known}")
    missing = [name for name, required in arguments.items() if required and name not in given]
    if missing and not partly:
        raise BadInput(f"stage {stage}: {', '.join(map(flag, missing))} missing")


def flag(name: str) -> str:
    """An argument's name on the command line."""
    return f"--{name.replace('_', '-')}"


def stage_command(
    stage: str,
    *,
    wildcards: Iterable[str] = (),
    input: Iterable[str] = (),
    output: Iterable[str] = (),
    params: Iterable[str] = (),
) -> str:
    """The shell command of a rule that runs a stage: each argument comes from the rule's entry of the same name.

    An entry that is empty in a job is no argument there. `params.options` holds further arguments as one JSON object.

    Args:
        stage: name of the stage.
        wildcards, input, output, params: names of the rule's entries that the stage gets.

    Raises:
        BadInput: an entry is no argument of the stage, or a required argument has no entry.
    """
    kinds = {"wildcards": wildcards, "input": input, "output": output, "params": params}
    sources = {name: kind for kind, names in kinds.items() for name in names}
    check_arguments(stage, sources, partly=OPTIONS in sources)
    words = [f"{flag(name)} {{{kind}.{name}:q}}" for name, kind in sources.items()]
    return " ".join(["budgeted-lora stage", stage, *words, "2>&1 | tee {log}"])
