"""Peak memory of one call beyond what was there before it: every allocation that torch makes, in order of time.

On a CPU torch's profiler records each allocation and release of its allocator; their running sum gives the peak, and
nothing that Python or the C library keeps is counted. On a GPU it is `max_memory_allocated` over what was in use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak, bytes still held at the end, and the sizes of all allocations (none on a GPU)."""

    peak: int
    kept: int
    sizes: tuple[int, ...]


def peak_of(run: Callable[[], Any], *, device: str) -> Peak:
    """Runs `run` once. What it returns is held until the end, so that it counts as kept."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        held = run()
        torch.cuda.synchronize()
        found = Peak(torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before, ())
        del held
        return found
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = run()
    sizes = [size for _, size in sorted(allocations(profiler), key=lambda pair: pair[0])]
    total = peak = 0
    for size in sizes:
        total += size
        peak = max(peak, total)
    del held
    return Peak(peak, total, tuple(size for size in sizes if size > 0))


def allocations(profiler: Any) -> list[tuple[int, int]]:
    """Time and size of every allocation (positive) and release (negative)."""
    found, pending = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return found
