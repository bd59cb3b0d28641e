"""Jobs beside each other on a machine's devices, and a training that takes several of them (`gpus_per_run`)."""

import math
from dataclasses import dataclass

from budgeted_lora.recipe import Recipe

EFFICIENCY = 0.9  # assumed, of GPUs that train one student together: gradients are summed, dropout is drawn for all


@dataclass(frozen=True)
class Slots:
    """Devices of a machine: a training takes `a_run` of them, any other job takes one."""

    count: int
    a_run: int = 1

    @property
    def trainings(self) -> int:
        """Trainings that run at once at most; one where there are too few devices, which then does not start."""
        return max(1, self.count // self.a_run)

    def wall_seconds(self, *, trainings: float, others: float) -> float:
        """The time below which no order of jobs gets: of trainings by themselves, and of all jobs on all devices.

        Args:
            trainings, others: seconds of all jobs of that kind, one after another.
        """
        return max(trainings / self.trainings, (trainings * self.a_run + others) / self.count)

    def memory(self, *, training: int, other: int, jobs: int | None = None) -> int:
        """Most memory of the machine that jobs beside each other hold, of bytes that one of each kind takes.

        Args:
            jobs: how many run at most; as many as there are devices for when None.
        """
        jobs = self.count if jobs is None else jobs
        mixes = [(n, min(jobs - n, self.count - n * self.a_run)) for n in range(min(self.trainings, jobs) + 1)]
        return max(n * training + max(0, rest) * other for n, rest in mixes)

    def jobs_within(self, have: int, *, training: int, other: int) -> int:
        """Jobs beside each other that always fit into `have` bytes, whichever they are; 0 if one does not."""
        fitting = (n for n in range(self.count, 0, -1) if self.memory(training=training, other=other, jobs=n) <= have)
        return next(fitting, 0)


def of_one_rank(recipe: Recipe, *, ranks: int) -> Recipe:
    """What one of `ranks` processes does of every step, in micro-batches as `training.distributed` cuts them."""
    if ranks == 1:
        return recipe
    windows = recipe.batch_windows // ranks
    micro = math.gcd(recipe.micro_batch_windows, windows)
    return recipe.model_copy(update={"batch_windows": windows, "micro_batch_windows": micro})
