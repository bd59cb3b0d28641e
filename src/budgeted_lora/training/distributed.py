"""Several processes, one a GPU, that train one student together (`gpus_per_run`), beside the loop that each runs.

What makes them equal to one process, up to the order in which gradients are summed:

- Windows. Each rank takes its part of every step's windows, in whole micro-batches, and divides by the valid positions
  of the whole step. DistributedDataParallel averages gradients over ranks, so a rank's loss is scaled up by their
  number. Clipping comes after that, on every rank the same whole gradient.
- Randomness. Every rank goes through the random numbers of the whole step: where another rank computes, it draws
  what dropout would have drawn. So masks are those of one process that cuts its steps the same way, generators agree
  on all ranks after every step, and the state that the first rank saves is that of each.
- Budget. The controller is arithmetic on step numbers, the same on every rank. A dense path that is skipped takes no
  trained parameter out of the graph, since W is frozen and the low-rank paths always run: every gradient arrives at
  every step, if in another order. DDP copes with that; it is not told that the graph stays as it is (`static_graph`).
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from budgeted_lora.errors import BadInput
from budgeted_lora.method.projections import BudgetedLinear

BACKEND = {"cpu": "gloo", "cuda": "nccl"}


class Ranks:
    """The processes that train one student, as one of them sees them; by default one process alone.

    Args:
        rank: number of this process, from 0; the first one writes files.
        count: how many there are. Above 1, torch's default process group joins them already (`join`).
    """

    def __init__(self, *, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._replica: nn.Module | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def attach(self, student: nn.Module) -> None:
        """Makes ready to sum gradients of the student; waits until every rank has come here.

        Restore it first: the first rank's weights are given to all.
        """
        if self.count > 1:
            # The ring that sums over three ranks or more adds in another order where gradients are laid out in another
            # one, as DDP does after its first step unless it looks for unused ones: a resumed run would differ.
            self._replica = DistributedDataParallel(_Callable(student), find_unused_parameters=self.count > 2)

    def micro_batches(self, windows: int, *, micro_batch_windows: int) -> Iterator[tuple[slice, bool]]:
        """All micro-batches of a step of `windows` windows in order, and whether this rank computes them.

        Of equal size, if there are several ranks: at most `micro_batch_windows`, and a whole number of them a rank.

        Raises:
            BadInput: the ranks cannot have equal parts.
        """
        share, rest = divmod(windows, self.count)
        if rest:
            raise BadInput(
                f"{self.count} GPUs cannot share the {windows} windows of a step; expected a divisor of them"
            )
        size = micro_batch_windows if self.count == 1 else math.gcd(micro_batch_windows, share)
        for start in range(0, windows, size):
            yield slice(start, start + size), start // share == self.rank

    def forward(self, function: Callable[..., Any], student: nn.Module, *arguments: Any, last: bool) -> Any:
        """function(student, *arguments), with gradients summed over ranks in the backward pass of a step's last one."""
        if self._replica is None:
            return function(student, *arguments)
        with nullcontext() if last else self._replica.no_sync():
            return self._replica(function, *arguments)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's share of a loss; DDP will divide it by the number of ranks."""
        (loss if self.count == 1 else loss * self.count).backward()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, in their order; small and JSON-like."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found


def join(rank: int, count: int, *, device: torch.device) -> Ranks:
    """Joins the process group that torchrun's environment variables name."""
    distributed.init_process_group(BACKEND[device.type], rank=rank, world_size=count)
    return Ranks(rank=rank, count=count)


def leave() -> NoReturn:
    """Ends this process, all its results written, without taking the process group apart.

    To take a gloo group apart is to wait for its threads while holding the interpreter's lock, which one of them may be
    waiting for (torch 2.13): now and then a rank that had done everything never ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def draw_dropout(student: nn.Module, *, windows: int, length: int, device: torch.device) -> None:
    """Draws the random numbers that one forward pass of the student in training draws, and nothing else."""
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, BudgetedLinear) and module.dropout:
                functional.dropout(torch.empty(windows, length, module.d_in, device=device), module.dropout)


class _Callable(nn.Module):
    """A student whose forward pass is whatever function it is given: DDP sums gradients of its own forward only."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.student, *arguments)
