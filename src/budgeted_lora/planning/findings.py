"""What a check found: one line each, with what to do about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "short", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of `budgeted-lora doctor`.

    Attributes:
        state: ok; short: there, but less than the scale needs; missing.
        remedy: what to do; empty where all is well.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        return f"{self.detail}{f'; {self.remedy}' if self.remedy else ''}"


def ok(name: str, detail: str) -> Finding:
    return Finding(name, "ok", detail)


def troubles(found: Sequence[Finding]) -> list[Finding]:
    """Those that keep a scale from running."""
    return [finding for finding in found if finding.state != "ok"]
