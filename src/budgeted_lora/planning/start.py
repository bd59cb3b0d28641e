"""What the workflow asks before its first job: whether its targets are there, whether the machine is large enough."""

import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from budgeted_lora.planning.doctor import refusal
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.targets import limited


def targets_of(graph: Graph) -> list[str]:
    """What a person can ask a scale for by name."""
    ablations = ["ablations"] if graph.ablations() else []
    calibration = ["calibration"] if graph.calibration() else []
    return ["all", "main", "report", "claims", "figure2", "pareto", *calibration, *ablations, *graph.report_tables()]


def refuse_unknown_targets(graph: Graph, rules: Collection[str]) -> None:
    """Ends the process in one line and with status 2 where Snakemake is asked for a name that the scale has not.

    A name is a word without a slash: all files that the workflow makes lie in folders, and what is wrong with a path
    Snakemake says. A dry run asks this too.

    Args:
        rules: names of the workflow's rules.
    """
    there = targets_of(graph)
    named = {name for name in asked_for() if "/" not in name}
    for name in sorted(named):
        empty = name == "ablations" and not graph.ablations()
        if empty or name not in rules:
            lacks = "no rows for" if empty else "no target"
            print(
                f"budgeted-lora: scale {graph.config.scale} has {lacks} {name!r}; expected one of its targets: "
                f"{', '.join(there)}",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(2)


def asked_for() -> list[str]:
    """The targets on Snakemake's command line; none in the process of a job, or where another program runs Snakemake.

    Snakemake itself keeps them from the Snakefile until that is read.
    """
    from snakemake.cli import get_argument_parser

    program = Path(sys.argv[0])
    if program.name != "snakemake" and program.parts[-2:] != ("snakemake", "__main__.py"):
        return []
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)  # what follows it are targets
    words, after = words[:end], words[end + 1 :]
    found, _ = get_argument_parser().parse_known_args(words)
    return [] if found.target_jobs else [*found.targets, *after]


def refuse_what_cannot_fit(graph: Graph, *, targets: Iterable[str] = (), remote: bool) -> None:
    """Ends the process in one line and with status 2 where the machine is too small for the scale by its plan.

    With `fit: warn` the line is a warning. A dry run does not ask this. Asks no network and imports no torch.

    Args:
        targets: what Snakemake was asked for; what other tables would need does not count.
        remote: whether jobs run on other machines, whose GPUs and memory cannot be seen from here.
    """
    line = refusal(limited(graph, targets), remote=remote)
    if line is None:
        return
    warns = graph.config.fit == "warn"
    print(f"budgeted-lora: {'warning: ' if warns else ''}{line}", file=sys.stderr, flush=True)
    if not warns:
        sys.exit(2)
