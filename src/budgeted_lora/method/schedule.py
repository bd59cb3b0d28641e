"""The dense fraction over the course of training: 1, then a cosine down to the budget (paper, section 3)."""

import math

from budgeted_lora.errors import BadInput


def target_fraction(t: float, *, budget: float, start: float, end: float) -> float:
    """F(t): fraction of dense MACs to keep when the share `t` of training is done.

    With start = end there is no cosine: the fraction falls to the budget at `start` (schedule "none" has both at 0).

    Raises:
        BadInput: budget, start or end lies outside [0, 1], or start is after end.
    """
    check_schedule(budget=budget, start=start, end=end)
    if t < start:
        return 1.0
    if t >= end:
        return budget
    cosine = (1.0 + math.cos(math.pi * (t - start) / (end - start))) / 2.0
    return budget + (1.0 - budget) * cosine


def mean_fraction(*, budget: float, start: float, end: float) -> float:
    """rho: the mean of F(t) over training, exact (the cosine's mean is half of its span).

    Raises:
        BadInput: as `target_fraction`.
    """
    check_schedule(budget=budget, start=start, end=end)
    return start + (end - start) * (1.0 + budget) / 2.0 + (1.0 - end) * budget


def check_schedule(*, budget: float, start: float, end: float) -> None:
    """Refuses a schedule that is none.

    Raises:
        BadInput: see `target_fraction`.
    """
    if not 0.0 <= budget <= 1.0:
        raise BadInput(f"budget is {budget}; expected a fraction between 0 and 1")
    if not 0.0 <= start <= end <= 1.0:
        raise BadInput(f"schedule runs from {start} to {end}; expected 0 <= start <= end <= 1")
