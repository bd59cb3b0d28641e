"""How long the jobs of a reader's scale take on this machine, before the scale is written."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from budgeted_lora.commands.plan import costs_of
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


@dataclass(frozen=True)
class Clock:
    """Rates of this machine: of the device table, or measured.

    Attributes:
        step: of a student's training; None where the device's rate counts.
    """

    device: Device
    step: Measured | None = None

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
        step = next(iter(costs.measured.values()))  # students differ in their budgets alone
        return cls(forward_measured(costs, threads=draft.config.threads.evaluation), step)

    def costs(self, scale: YourScale) -> ScaleCosts:
        """The costs of all jobs of a scale."""
        graph = drafted(scale)
        keys = {calibration_key(graph.recipe_of(cell)) for cell in graph.cells}
        return ScaleCosts(graph, self.device, measured=dict.fromkeys(keys, self.step) if self.step else None)

    def seconds(self, scale: YourScale, *, cores: int) -> float:
        """Of all jobs of a scale, on so many cores."""
        return self.costs(scale).wall_seconds(slots_of(scale, cores=cores))
