"""Several processes, one per GPU, that train one student together (`gpus_per_run`).

They give what one process gives, up to the order in which gradients are summed:

- Windows. Each process takes its part of every step's windows, in whole micro-batches, and divides by the valid
  positions of the whole step. DistributedDataParallel averages gradients over processes, so each scales its loss up by
  their number. Clipping comes after that, on the same whole gradient in every process.
- Randomness. Every process goes through the random numbers of the whole step: for what another process computes, it
  draws what dropout would have drawn. So masks are those of one process that cuts its steps the same way, generators
  agree after every step, and the state that the first process saves is that of each.
- Budget. The controller is arithmetic on step numbers, the same in every process. A dense path that is skipped takes no
  trained parameter out of the graph, since W is frozen and the low-rank paths always run: every gradient arrives at
  every step, if in another order. DDP copes with that; it is not told that the graph stays as it is (`static_graph`).
  Where dense paths train until they fade, it looks for those that are out.
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
from budgeted_lora.method.loop import Processes, StatesDiffer
from budgeted_lora.method.projections import BudgetedLinear

BACKEND = {"cpu": "gloo", "cuda": "nccl"}


class ProcessGroup(Processes):
    """Several processes that train one student, joined by torch's default process group (`join`).

    Args:
        number: of this process, from 0; the first one writes files.
        count: how many there are.
    """

    def __init__(self, *, number: int = 0, count: int) -> None:
        self.number, self.count, self.first = number, count, number == 0
        self._replica: nn.Module | None = None

    def attach(self, student: nn.Module, *, step: int) -> None:
        """Waits until every process has restored the student; the first one's weights are given to all.

        Raises:
            StatesDiffer: the processes read states of different steps.
        """
        steps = sorted(set(self.gather(step)))
        if len(steps) > 1:
            raise StatesDiffer(f"the processes read saved states of steps {steps}; expected one step, run again")
        # The ring that sums over three processes or more adds in another order if gradients are laid out in another
        # order, as DDP does after its first step unless it looks for unused ones: a resumed run would differ.
        dense = any(isinstance(module, BudgetedLinear) and module.weight.requires_grad for module in student.modules())
        self._replica = DistributedDataParallel(_Callable(student), find_unused_parameters=self.count > 2 or dense)

    def micro_batches(self, windows: int, *, micro_batch_windows: int) -> Iterator[tuple[slice, bool]]:
        """Micro-batches of equal size, at most `micro_batch_windows`, and a whole number of them per process.

        Raises:
            BadInput: the processes cannot have equal parts.
        """
        share, rest = divmod(windows, self.count)
        if rest:
            raise BadInput(
                f"{self.count} GPUs cannot share the {windows} windows of a step; expected a divisor of them"
            )
        size = math.gcd(micro_batch_windows, share)
        for start in range(0, windows, size):
            yield slice(start, start + size), start // share == self.number

    def skip(self, student: nn.Module, *, windows: int, length: int, device: torch.device) -> None:
        """Draws the random numbers that one forward pass of the student in training draws, and computes nothing."""
        with torch.no_grad():
            for module in student.modules():
                if isinstance(module, BudgetedLinear) and module.dropout:
                    functional.dropout(torch.empty(windows, length, module.d_in, device=device), module.dropout)

    def forward(self, function: Callable[..., Any], student: nn.Module, *arguments: Any, last: bool) -> Any:
        """Gradients are summed over the processes in the backward pass of a step's last micro-batch."""
        with nullcontext() if last else self._replica.no_sync():
            return self._replica(function, *arguments)

    def backward(self, loss: Tensor) -> None:
        """Scales the loss up first, since DDP divides gradients by the number of processes."""
        (loss * self.count).backward()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


def join(number: int, count: int, *, device: torch.device) -> ProcessGroup:
    """Joins the process group that torchrun's environment variables name."""
    distributed.init_process_group(BACKEND[device.type], rank=number, world_size=count)
    return ProcessGroup(number=number, count=count)


def leave() -> NoReturn:
    """Ends this process, all its results written, without taking the process group apart.

    To take a gloo group apart is to wait for its threads while holding the interpreter's lock, which one of them may be
    waiting for (torch 2.13): now and then a process that had done everything never ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Callable(nn.Module):
    """A student whose forward pass is the function it is given: DDP sums gradients of its own forward pass only."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.student, *arguments)
