"""Numbers and tables as text for a terminal."""

from collections.abc import Sequence


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] in ("B", "kB") else f"{value:.1f} {units[0]}"


def columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cells padded to their column's width, but for the last column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[*(cell.ljust(width) for cell, width in zip(row, widths[:-1], strict=False)), row[-1]] for row in rows]
