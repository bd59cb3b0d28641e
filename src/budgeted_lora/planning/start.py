"""What the workflow asks before its first job; a dry run does not ask it."""

import sys

from budgeted_lora.graph import Graph
from budgeted_lora.planning.doctor import refusal


def refuse_what_cannot_fit(graph: Graph, *, remote: bool) -> None:
    """Ends the process in one line and with status 2 where the machine is too small for the scale by its plan.

    With `fit: warn` the line is a warning. Asks no network and imports no torch.

    Args:
        remote: whether jobs run on other machines, whose GPUs and memory cannot be seen from here.
    """
    line = refusal(graph, remote=remote)
    if line is None:
        return
    warns = graph.config.fit == "warn"
    print(f"budgeted-lora: {'warning: ' if warns else ''}{line}", file=sys.stderr, flush=True)
    if not warns:
        sys.exit(2)
