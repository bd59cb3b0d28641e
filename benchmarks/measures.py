"""One line of the table: a ratio between arms that took turns, its spread, its goal, and a verdict."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a line should reach; `at_least` and `aim` are upper limits where lower is better."""

    at_least: float
    aim: float
    better: Better = "higher"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One line of the table.

    Attributes:
        row: number in the table of goals.
        what: what was measured.
        against: the peer or reference that `value` compares with; empty where `value` stands alone.
        shape: mini, paper or 1B; empty where none applies.
        threads: CPU threads of every arm.
        value, q1, q3: median and quartiles; None if skipped.
        unit: "x" for a ratio, "s" for seconds.
        digits: after the point, in print.
        better: whether more or less is better; a peer's line is a ratio where more is better.
        peer: whether `against` is another implementation of the same work, so that a value on the wrong side of 1
            means that ours falls behind.
        skipped: why there is no value.
        arms: samples and medians by arm.
        notes: short facts for the last column, in order.
    """

    row: int
    what: str
    against: str = ""
    shape: str = ""
    threads: int = 1
    value: float | None = None
    q1: float | None = None
    q3: float | None = None
    unit: str = "x"
    digits: int = 2
    better: Better = "higher"
    at_least: float | None = None
    aim: float | None = None
    peer: bool = False
    skipped: str | None = None
    arms: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Where the line stands, worst news first. A line is behind its peer if its upper quartile is, too."""
        if self.value is None:
            return "not measured"
        behind = self.peer and round(self.value, 2) < 1.0
        if behind and (self.q3 is None or round(self.q3, 2) < 1.0):
            return "BEHIND ITS PEER"
        if self.at_least is None:
            return "level with its peer" if behind else "ahead of its peer" if self.peer else ""
        if self._worse_than(self.at_least):
            return "BELOW ITS GOAL"
        return "goal reached" if self._worse_than(self.aim) else "aim reached"

    def _worse_than(self, limit: float) -> bool:
        return self.value < limit if self.better == "higher" else self.value > limit

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    q1, _, q3 = quantiles(samples, n=4, method="inclusive")
    return median(samples), q1, q3


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within a round, where both arms ran under the same load."""
    value, q1, q3 = spread([a / b for a, b in zip(above, below, strict=True)])
    return {"value": value, "q1": q1, "q3": q3}


def arm(samples: Sequence[float], **about: Any) -> dict[str, Any]:
    """Seconds of one arm."""
    value, q1, q3 = spread(samples)
    return {"median_s": value, "q1_s": q1, "q3_s": q3, "samples_s": list(samples), **about}


def limits(goal: Goal | None) -> dict[str, Any]:
    """Keywords of a `Measure` with this goal."""
    return asdict(goal) if goal else {}


def take_turns(arms: dict[str, Callable[[], float]], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each arm, a sample per round; each round starts with another arm than the last."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for turn in range(-warm_up, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds = arms[name]()
            if turn >= 0:
                samples[name].append(seconds)
    return samples


def say(text: str) -> None:
    """Progress, on standard error: standard output carries results."""
    print(text, file=sys.stderr, flush=True)


def send(value: Any) -> None:
    """One line of JSON to whoever started this process."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
