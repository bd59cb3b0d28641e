"""Peak memory of one call, beyond what was there before it and what it returns.

On a CPU torch's profiler records each allocation and release of torch's allocator with its address. Their running sum,
without the tensors that the call returns, gives the peak; what Python or the C library keeps does not count. On a GPU
it is `max_memory_allocated` less what is still held at the end, which can be less than the true peak.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak without the tensors returned, and the sizes of all other allocations (none on a GPU)."""

    extra: int
    sizes: tuple[int, ...]


def peak_of(run: Callable[[], list[Tensor]], *, device: str) -> Peak:
    """Runs `run` once; the tensors it returns do not count."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        returned = run()
        torch.cuda.synchronize()
        found = Peak(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated(), ())
        del returned
        return found
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        returned = run()
    events = allocations(profiler)
    for tensor in returned:
        own = [place for place, (_, address, size) in enumerate(events) if address == tensor.data_ptr() and size > 0]
        del events[own[-1]]  # an earlier tensor may have had the same address
    total = extra = 0
    for _, _, size in events:
        total += size
        extra = max(extra, total)
    return Peak(extra, tuple(size for _, _, size in events if size > 0))


def allocations(profiler: Any) -> list[tuple[int, int, int]]:
    """Time, address and size of every allocation (positive) and release (negative), in order of time."""
    found, pending = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            about = event.extra_fields
            found.append((event.start_time_ns, about.ptr, about.alloc_size))
    return sorted(found, key=lambda event: event[0])
