"""One look for all figures: colours that the colour-blind tell apart, labels without overlaps, bytes that repeat."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from budgeted_lora.files import write_with

# Okabe and Ito's colours, dark enough on white.
BLACK, ORANGE, BLUE, GREEN, PURPLE, VERMILION, SKY = (
    "#222222",
    "#D98200",
    "#0072B2",
    "#009E73",
    "#B8548B",
    "#D55E00",
    "#56B4E9",
)
GREY = "#777777"
SPARE = (VERMILION, SKY, PURPLE)
METHOD_COLOURS = {
    ("kd_full", ""): BLACK,
    ("kd_lora", ""): ORANGE,
    ("budgeted_lora", "0.8"): PURPLE,
    ("budgeted_lora", "0.4"): BLUE,
    ("budgeted_lora", "0.0"): GREEN,
}
METHOD_DASHES = {"kd_full": "-", "kd_lora": (0, (5, 1.5)), "budgeted_lora": "-"}
MARKERS = ("o", "s", "D", "^", "v", "P")
RC = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
    "svg.hashsalt": "budgeted-lora",
}
METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def context() -> matplotlib.RcParams:
    """The settings every figure is drawn and saved under, for a `with` statement."""
    matplotlib.use("Agg")
    return matplotlib.rc_context(seaborn.axes_style("ticks") | RC)


def colour(method: str, budget: float) -> str:
    """The colour of a method; a budget the paper does not use takes a spare one, always the same."""
    key = (method, "" if pd.isna(budget) else str(float(budget)))
    return METHOD_COLOURS.get(key) or SPARE[round(100 * float(budget)) % len(SPARE)]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes <folder>/<name>.png, .svg and .pdf; a figure gives the same bytes each time: no date, fixed ids."""
    figure.canvas.draw()
    figure.set_layout_engine("none")  # laid out once, not anew for each form
    paths = []
    for ending, metadata in METADATA.items():
        path = folder / f"{name}.{ending}"
        write_with(path, lambda temporary, e=ending, m=metadata: figure.savefig(temporary, format=e, metadata=m))
        paths.append(path)
    return paths


def label_points(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], *, lines: Sequence[np.ndarray] = (), size: float = 8.5
) -> list[Annotation]:
    """Writes a text beside each point where it covers no other text, point or line, and stays inside the axes.

    Greedy: places around the point are tried from near to far, and the first free one is taken; where none is free,
    the one that covers least. A thin line leads from a point to a text that had to move away.

    Args:
        points: (x, y, text, colour) in data coordinates. Axis limits must be final.
        lines: level or upright strokes to keep clear of, each [2, 2] (two ends, data coordinates).
    """
    figure = axes.figure
    figure.canvas.draw()  # settles the layout, so that pixels are final
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72.0
    frame = axes.get_window_extent(renderer)
    centres = axes.transData.transform([(x, y) for x, y, _, _ in points])
    taken = [around(centre, centre, 5 * scale) for centre in centres]
    taken += [around(*axes.transData.transform(line), 2 * scale) for line in lines]
    placed = []
    for (x, y, text, ink), centre in zip(points, centres, strict=True):
        note = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=ink, va="center"
        )
        note.set_path_effects([Stroke(linewidth=2.5, foreground="white"), Normal()])
        box = note.get_window_extent(renderer)
        offset = best_offset(centre, box.width, box.height, taken, frame, scale)
        note.set_position(tuple(offset / scale))
        low = centre + offset - [0, box.height / 2]
        taken.append(around(low, low + np.array([box.width, box.height]), 1))
        if np.hypot(*(nearest(centre, taken[-1]))) > 12 * scale:
            end = centre + nearest(centre, taken[-1])
            leader = axes.transData.inverted().transform([centre, end])
            axes.plot(*leader.T, color=ink, linewidth=0.6, alpha=0.7, zorder=1, scalex=False, scaley=False)
        placed.append(note)
    return placed


def around(first: np.ndarray, second: np.ndarray, margin: float) -> Bbox:
    """The box that two corners span, widened on all sides."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    return Bbox([low - margin, high + margin])


def best_offset(
    centre: np.ndarray, width: float, height: float, taken: Sequence[Bbox], frame: Bbox, scale: float
) -> np.ndarray:
    """Offset (pixels) of a text's left middle from its point: the nearest free place, else the least covered."""
    best, least = np.zeros(2), float("inf")
    for distance in (8, 13, 19, 26, 34, 44, 56, 70):
        for angle in np.deg2rad([0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90]):
            dx, dy = distance * scale * np.cos(angle), distance * scale * np.sin(angle)
            left = dx if np.cos(angle) > 0.1 else dx - width if np.cos(angle) < -0.1 else -width / 2
            box = Bbox.from_bounds(centre[0] + left, centre[1] + dy - height / 2, width, height)
            outside = box.width * box.height - overlap(box, frame)
            covered = sum(overlap(box, other) for other in taken) + 10 * outside
            if covered < 1e-6:
                return np.array([left, dy])
            if covered < least:
                best, least = np.array([left, dy]), covered
    return best


def overlap(first: Bbox, second: Bbox) -> float:
    """Common area of two boxes, square pixels."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(0.0, width) * max(0.0, height)


def nearest(point: np.ndarray, box: Bbox) -> np.ndarray:
    """Vector from a point to the nearest place of a box, zero inside it."""
    return np.clip(point, box.min, box.max) - point
