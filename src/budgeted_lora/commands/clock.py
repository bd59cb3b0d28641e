"""How long the jobs of a reader's scale take on this machine, before the scale is written."""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from budgeted_lora.commands.plan import costs_of
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.your_scale import YourScale
from budgeted_lora.planning.costs import Measured, ScaleCosts, calibration_key
from budgeted_lora.planning.devices import Device, Slots, matching, named_device
from budgeted_lora.planning.machine import gpus
from budgeted_lora.workflow.graph import Graph, load_graph


def drafted(scale: YourScale) -> Graph:
    """The jobs of a scale that is not written yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{scale.name}.yaml"
        path.write_text(scale.text(), encoding="utf-8")
        return load_graph(path)


def slots_of(scale: YourScale, *, cores: int) -> Slots:
    """How many jobs run side by side."""
    return Slots(max(1, len(gpus()) if scale.on_gpu else cores // scale.threads))


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
    def measured(cls, draft: Graph) -> "Clock":
        """The rates after a few training steps and a forward pass; of the table where a step would take too long."""
        from budgeted_lora.planning.measure import forward_measured  # imports torch

        print("measuring a few training steps ...", file=sys.stderr, flush=True)
        costs = costs_of(draft, device=None, utilisation=None, calibrate=True)
        if not costs.measured:
            return cls(costs.device)
        recipes = [draft.recipe_of(cell) for cell in draft.cells]
        found = {kind_of(recipe): costs.measured.get(calibration_key(recipe)) for recipe in recipes}
        steps = {kind: step for kind, step in found.items() if step is not None}
        return cls(forward_measured(costs, threads=draft.config.threads.evaluation), steps)

    def costs(self, scale: YourScale) -> ScaleCosts:
        """The costs of all jobs of a scale."""
        graph = drafted(scale)
        recipes = [graph.recipe_of(cell) for cell in graph.cells]
        known = {calibration_key(one): self.steps[kind_of(one)] for one in recipes if kind_of(one) in self.steps}
        return ScaleCosts(graph, self.device, measured=known or None)

    def seconds(self, scale: YourScale, *, cores: int) -> float:
        """Of all jobs of a scale, on so many cores."""
        return self.costs(scale).wall_seconds(slots_of(scale, cores=cores))
