"""Numbers and tables as text for a terminal."""

from collections.abc import Sequence

WIDTH = 100  # characters of a line


def size(count: float) -> str:
    """Bytes, in a unit with few digits."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] in ("B", "kB") else f"{value:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """A time, in a unit with few digits."""
    for unit, length, most in (("s", 1, 60), ("min", 60, 60)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def columns(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> list[list[str]]:
    """Cells padded to the width of their column; `numbers` are the columns that are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [cell.rjust(widths[at]) if at in numbers else cell.ljust(widths[at]) for at, cell in enumerate(row)]
        for row in rows
    ]


def table(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> list[str]:
    """One line per row, in columns."""
    return ["  ".join(row).rstrip() for row in columns(rows, numbers=numbers)]
