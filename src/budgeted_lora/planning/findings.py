"""Findings of a check: one line each, with what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "short", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of `budgeted-lora doctor`.

    Attributes:
        state: ok; short: present, but less than the scale needs; missing.
        remedy: what to do; empty for ok.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    def line(self) -> str:
        return f"{self.detail}{f'; {self.remedy}' if self.remedy else ''}"


def ok(name: str, detail: str) -> Finding:
    return Finding(name, "ok", detail)


def short(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, "short", detail, remedy)


def missing(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, "missing", detail, remedy)


def troubles(findings: Sequence[Finding]) -> list[Finding]:
    """Those that keep a scale from running."""
    return [finding for finding in findings if finding.state != "ok"]


def gib(count: float) -> str:
    """Memory, in the unit that cards are sold by."""
    return f"{count / 2**30:.1f} GiB"


def gb(count: float) -> str:
    """Disk space, in the unit that disks are sold by."""
    return f"{count / 1e9:.1f} GB"
