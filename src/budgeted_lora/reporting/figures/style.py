"""One look for all figures: colours that the colour-blind tell apart, labels without overlaps, bytes that repeat."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_with
from budgeted_lora.reporting.contents import Shown
from budgeted_lora.reporting.results import Results

# Okabe and Ito's colours, dark enough on white.
BLACK, GREY = "#222222", "#777777"
METHOD_COLOURS = {
    ("kd_full", ""): BLACK,
    ("kd_lora", ""): "#D98200",
    ("budgeted_lora", "0.8"): "#B8548B",
    ("budgeted_lora", "0.6"): "#D55E00",
    ("budgeted_lora", "0.4"): "#0072B2",
    ("budgeted_lora", "0.2"): "#3A9BD9",
    ("budgeted_lora", "0.0"): "#00875F",
}
OTHER = "#8A6D3B"
OWN_RULE = "#B8548B"  # where F = 0.8 is not shown
METHOD_DASHES = {"kd_full": "-", "kd_lora": (0, (5, 1.5)), "budgeted_lora": "-"}
MARKERS = ("o", "s", "D", "^", "v", "P")
RC = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), BLACK),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "lines.linewidth": 1.8,
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
    "svg.hashsalt": "budgeted-lora",
}
METADATA = {  # nothing that differs from run to run
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
SHORT = {f"{name}_proj": name for name in ("q", "k", "v", "o", "gate", "up", "down")}
TOLERANCE = 1e-9
THIN = {"linewidth": 0.6, "alpha": 0.7, "zorder": 1}


@contextmanager
def context() -> Iterator[None]:
    """The settings every figure is drawn and saved under; those of a user's matplotlibrc have no part in them."""
    matplotlib.use("Agg")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def colour(method: str, budget: float) -> str:
    """The colour of a method; budgets without one of their own share brown."""
    return METHOD_COLOURS.get((method, "" if pd.isna(budget) else str(float(budget))), OTHER)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write <folder>/<name>.png, .svg and .pdf; a figure gives the same bytes each time: no date, fixed ids."""
    figure.canvas.draw()
    figure.set_layout_engine("none")  # laid out once for all forms
    paths = []
    for ending, metadata in METADATA.items():
        path = folder / f"{name}.{ending}"
        write_with(path, lambda temporary, e=ending, m=metadata: figure.savefig(temporary, format=e, metadata=m))
        paths.append(path)
    return paths


def write_figure(shown: Shown, results: Results, folder: Path) -> list[Path]:
    """Draw a figure and write it in all its forms. Raises BadInput if no result of it is there yet."""
    with context():
        figure = shown.make()(results.of(shown))
        try:
            if any(axes.get_yscale() == "log" and not np.isfinite(axes.dataLim.minposy) for axes in figure.axes):
                raise BadInput(f"{shown.name}: none of its results is there yet")
            return save(figure, folder, shown.name)
        finally:
            plt.close(figure)


def label_points(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], *, lines: Sequence[np.ndarray] = (), size: float = 8.5
) -> list[Annotation]:
    """Write a text beside each point where it covers no other text, point or line, and stays inside the axes.

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
    placed, texts = [], []
    for (x, y, text, ink), centre in zip(points, centres, strict=True):
        note = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=ink, va="center"
        )
        note.set_path_effects([Stroke(linewidth=2.5, foreground="white"), Normal()])
        box = note.get_window_extent(renderer)
        offset = best_offset(centre, box, taken, texts, frame, scale=scale)
        note.set_position(tuple(offset / scale))
        low = centre + offset - [0, box.height / 2]
        text_box = around(low, low + np.array([box.width, box.height]), 1)
        taken.append(text_box)
        texts.append(text_box)
        strokes = leader(centre, text_box, 12 * scale)
        if len(strokes):
            axes.plot(*axes.transData.inverted().transform(strokes).T, **THIN, color=ink, scalex=False, scaley=False)
            taken += [around(place, place, 1) for place in strokes[1:-1]]
        placed.append(note)
    return placed


def leader(point: np.ndarray, box: Bbox, shortest: float) -> np.ndarray:
    """Places [n, 2] on the way from a point to a box, in pixels; none if the way is short."""
    way = np.clip(point, box.min, box.max) - point  # to the nearest place of the box
    return point + np.linspace(0, 1, 12)[:, None] * way if np.hypot(*way) > shortest else np.zeros((0, 2))


def around(first: np.ndarray, second: np.ndarray, margin: float) -> Bbox:
    """The box that two corners span, widened on all sides."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    return Bbox([low - margin, high + margin])


def best_offset(
    centre: np.ndarray, text: Bbox, taken: Sequence[Bbox], texts: Sequence[Bbox], frame: Bbox, *, scale: float
) -> np.ndarray:
    """Offset (pixels) of a text's left middle from its point: the nearest free place, else the least covered.

    Args:
        centre: the point, pixels. text: a box of the text's size. taken: boxes to keep clear of.
        texts: those of them that a leading line may not cross either. frame: the axes.
        scale: pixels of a typographic point.
    """
    width, height = text.width, text.height
    best, least = np.zeros(2), float("inf")
    for distance in (8, 13, 19, 26, 34, 44, 56, 70):
        for angle in np.deg2rad([0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90]):
            dx, dy = distance * scale * np.cos(angle), distance * scale * np.sin(angle)
            left = dx if np.cos(angle) > 0.1 else dx - width if np.cos(angle) < -0.1 else -width / 2
            box = Bbox.from_bounds(centre[0] + left, centre[1] + dy - height / 2, width, height)
            outside = box.width * box.height - overlap(box, frame)
            covered = sum(overlap(box, other) for other in taken) + 10 * outside
            way = leader(centre, box, 12 * scale)[4:-1]  # past the point's own surroundings
            covered += 100 * sum(other.contains(*place) for place in way for other in texts)
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


def shade_decay(axes: Axes, history: pd.DataFrame, tokens: pd.Series) -> None:
    """Shade, once per panel, the stretch in which the target fraction falls."""
    falling = tokens[history["target_fraction"].diff().shift(-1) < -TOLERANCE]
    if len(falling) and not axes.patches:
        axes.axvspan(falling.min(), falling.max(), color=GREY, alpha=0.13, linewidth=0)


def smoothed_loss(history: pd.DataFrame) -> pd.Series:
    """Loss by logged step, averaged over a thirtieth of the run."""
    return history["loss"].rolling(max(1, len(history) // 30), min_periods=1, center=True).mean()


def clip_start(axes: Axes) -> None:
    """Cut the first steps' high losses off, so that the methods can be told apart."""
    tails = [line.get_ydata()[len(line.get_ydata()) // 20 :] for line in axes.get_lines()]
    if tails:
        low, high = min(tail.min() for tail in tails), max(np.quantile(tail, 0.985) for tail in tails)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
