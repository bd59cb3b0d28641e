"""How long the jobs of a reader's scale take on this machine, before the scale is written."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgeted_lora.commands.plan import costs_of
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.your_scale import YourScale
from budgeted_lora.planning.costs import Measured, ScaleCosts, calibration_key
from budgeted_lora.planning.devices import Device, Slots, matching, named_device
from budgeted_lora.planning.machine import gpus
from budgeted_lora.workflow.graph import Graph, load_graph

MOST_WAIT = 120.0  # seconds for another process to start


def drafted(scale: YourScale) -> Graph:
    """The jobs of a scale that is not written yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{scale.name}.yaml"
        path.write_text(scale.text(), encoding="utf-8")
        return load_graph(path)


def slots_of(scale: YourScale, *, cores: int) -> Slots:
    """How many jobs run side by side."""
    return Slots(max(1, len(gpus()) if scale.on_gpu else cores // scale.threads))


@contextmanager
def others_at_work(scale: YourScale, *, count: int) -> Iterator[None]:
    """Meanwhile `count` processes time the steps of a scale over and over."""
    context = multiprocessing.get_context("spawn")
    begun = [context.Event() for _ in range(count)]
    others = [context.Process(target=_time_steps, args=(scale, event), daemon=True) for event in begun]
    try:
        for other in others:
            other.start()
        for event in begun:
            event.wait(MOST_WAIT)
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def _time_steps(scale: YourScale, begun: Any) -> None:
    """Times steps until it is killed; what it has to say the process beside it says."""
    from budgeted_lora.planning import measure  # noqa: F401 (imports torch before the work begins)

    with open(os.devnull, "w") as nothing, redirect_stderr(nothing):
        draft = drafted(scale)
        begun.set()
        while True:
            costs_of(draft, device=None, utilisation=None, calibrate=True)


Kind = tuple[str, int, int | None]


def kind_of(recipe: Recipe) -> Kind:
    """What a step's time depends on besides its windows, within one scale: method, layers, feed-forwards."""
    return recipe.method, recipe.student_layers, recipe.student_ffn


@dataclass(frozen=True)
class Clock:
    """Rates of this machine: of the device table, or measured.

    Attributes:
        steps: of the trainings that were measured, by kind; the device's rate counts for others.
    """

    device: Device
    steps: Mapping[Kind, Measured] = field(default_factory=dict)

    @classmethod
    def assumed(cls, draft: Graph) -> "Clock":
        """The rates of the device table."""
        here = gpus()
        return cls(matching(here[0].name) if here else named_device("cpu", draft.config))

    @classmethod
    def measured(cls, scale: YourScale, *, cores: int) -> "Clock":
        """The rates after a few training steps and a forward pass; of the table where a step would take too long.

        On a CPU as many processes compute meanwhile as will in the run: jobs side by side share memory and caches.
        """
        from budgeted_lora.planning.measure import forward_measured  # imports torch

        print("measuring a few training steps ...", file=sys.stderr, flush=True)
        draft = drafted(scale)
        beside = 0 if scale.on_gpu else min(slots_of(scale, cores=cores).count, len(draft.cells)) - 1
        with others_at_work(scale, count=beside):
            costs = costs_of(draft, device=None, utilisation=None, calibrate=True)
            if not costs.measured:
                return cls(costs.device)
            device = forward_measured(costs, threads=draft.config.threads.evaluation)
        recipes = [draft.recipe_of(cell) for cell in draft.cells]
        found = {kind_of(recipe): costs.measured.get(calibration_key(recipe)) for recipe in recipes}
        steps = {kind: step for kind, step in found.items() if step is not None}
        return cls(device, steps)

    def costs(self, scale: YourScale) -> ScaleCosts:
        """The costs of all jobs of a scale."""
        graph = drafted(scale)
        recipes = [graph.recipe_of(cell) for cell in graph.cells]
        known = {calibration_key(one): self.steps[kind_of(one)] for one in recipes if kind_of(one) in self.steps}
        return ScaleCosts(graph, self.device, measured=known or None)

    def seconds(self, scale: YourScale, *, cores: int) -> float:
        """Of all jobs of a scale, on so many cores."""
        return self.costs(scale).wall_seconds(slots_of(scale, cores=cores))
