"""Checks before the first job of a run: targets and files from outside exist, and the machine is large enough."""

import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.planning.checks import corpus_files
from budgeted_lora.planning.doctor import refusal
from budgeted_lora.planning.findings import troubles
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs
from budgeted_lora.workflow.runs import is_at_work
from budgeted_lora.workflow.targets import limited


def targets_of(graph: Graph) -> list[str]:
    """The targets of a scale."""
    jobs = ReportJobs(graph)
    ablations = ["ablations"] if jobs.names("ablations") else []
    calibration = ["calibration"] if graph.calibration() else []
    return ["all", "main", "report", "claims", "figure2", "pareto", *calibration, *ablations, *jobs.tables]


def no_target(graph: Graph, problem: str) -> str:
    """A line for a word that is no target of the scale."""
    return f"scale {graph.config.scale} has {problem}; expected one of its targets: {', '.join(targets_of(graph))}"


def known_targets(graph: Graph, names: Iterable[str]) -> list[str]:
    """The names as they are; those of files, which have a slash, are not checked.

    Raises:
        BadInput: one of them is no target of the scale.
    """
    names, known = list(names), targets_of(graph)
    for name in names:
        if "/" not in name and name not in known:
            raise BadInput(no_target(graph, f"no target {name!r}"))
    return names


def refuse_unknown_targets(graph: Graph, rules: Collection[str]) -> None:
    """Exit with status 2 and a one-line message if a requested target does not exist; also in a dry run.

    Only words without a slash are checked. All files that the workflow makes are in folders, and Snakemake itself
    reports a wrong path.

    Args:
        rules: names of the workflow's rules.
    """
    for name in sorted(name for name in requested_targets() if "/" not in name):
        empty = name == "ablations" and not ReportJobs(graph).names("ablations")
        if empty or name not in rules:
            problem = no_target(graph, f"{'no rows for' if empty else 'no target'} {name!r}")
            print(f"budgeted-lora: {problem}", file=sys.stderr, flush=True)
            sys.exit(2)


def requested_targets() -> list[str]:
    """The targets on Snakemake's command line; empty in the process of a job, or if another program runs Snakemake.

    Snakemake does not tell the Snakefile its targets, so its command line is parsed again.
    """
    from snakemake.cli import get_argument_parser

    program = Path(sys.argv[0])
    if program.name != "snakemake" and program.parts[-2:] != ("snakemake", "__main__.py"):
        return []
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)  # targets follow it
    words, after = words[:end], words[end + 1 :]
    options, _ = get_argument_parser().parse_known_args(words)
    return [] if options.target_jobs else [*options.targets, *after]


def refuse_missing_corpus(graph: Graph) -> None:
    """Exit with status 2 and a one-line message if files or packages of the corpus are missing.

    Also in a dry run: Snakemake knows only the files that are there. Where the corpus has been read already, the line
    is a warning, since jobs that do not need it can run.
    """
    if is_at_work(graph.results):
        return
    troubled = troubles(list(corpus_files(graph)))
    if not troubled:
        return
    was_read = (Path(graph.results) / "data/manifest.json").is_file()
    line = f"{'warning: ' if was_read else ''}{troubled[0].line()}"
    print(f"budgeted-lora: {line}", file=sys.stderr, flush=True)
    if not was_read:
        sys.exit(2)


def refuse_what_cannot_fit(graph: Graph, *, targets: Iterable[str] = (), remote: bool) -> None:
    """Exit with status 2 and a one-line message if the machine is too small for the scale by its plan.

    With `fit: warn` the line is a warning. Not called in a dry run. Uses no network and does not import torch.

    Args:
        targets: Snakemake's targets; other tables do not count.
        remote: whether jobs run on other machines, whose GPUs and memory are not visible here.
    """
    line = refusal(limited(graph, targets), remote=remote)
    if line is None:
        return
    warns = graph.config.fit == "warn"
    print(f"budgeted-lora: {'warning: ' if warns else ''}{line}", file=sys.stderr, flush=True)
    if not warns:
        sys.exit(2)
