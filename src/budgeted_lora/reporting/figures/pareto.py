"""Perplexity against cost: the students, the controls at equal MACs, and the frontier (method.md 8)."""

import itertools
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from budgeted_lora.config.scale import MAIN_CELLS
from budgeted_lora.reporting.contents import CONTROLS
from budgeted_lora.reporting.figures.style import BLACK, GREY, MARKERS, OTHER, colour, label_points
from budgeted_lora.reporting.grouping import method_label, method_order, sorted_teachers
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import number
from budgeted_lora.reporting.tables.controls import SMALLER, TRUNCATED, control_runs
from budgeted_lora.reporting.uncertainty import lines

CONTROL_MARKERS = {SMALLER: "X", TRUNCATED: "*"}
CONTROL_SIZES = {SMALLER: 8, TRUNCATED: 11}
VISIBLE = 1.01  # seeds whose perplexities are closer show no band
SPREAD = {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "butt"}
FRONTIER = {"color": GREY, "linewidth": 5, "alpha": 0.3, "solid_capstyle": "butt"}
FAR = 10.0  # a perplexity this many times the lowest is drawn at the upper edge, or the others could not be told apart


@dataclass(frozen=True)
class Cost:
    """The horizontal axis of a Pareto plot: a column of the results and its title."""

    column: str
    title: str
    larger_is_better: bool


TRAIN_COMPUTE = Cost("train_compute", "Train compute, relative to KD Full (counted MACs)", False)
MAC_SPEEDUP = Cost("speedup_vs_dense", "Speedup of the projections by MAC count (not a timing)", True)
MEASURED_SPEEDUP = Cost("measured_modules", "Measured speedup of the projections (wall clock)", True)


def pareto(results: Results, cost: Cost) -> Figure:
    """Perplexity against one cost: a point per student, its uncertainty, and the frontier nothing beats on both."""
    points = brought_near(pareto_points(results, cost))
    figure, axes = plt.subplots(figsize=(6.8, 5.2))
    if points.empty:
        return figure
    names = sorted_teachers(results, points[points["kind"] == ""])
    x, y = points[cost.column].to_numpy(), points["ppl"].to_numpy()
    axes.set_yscale("log")  # a student without its dense paths may lie a decade above one that keeps them
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    rough = np.round(x / x.max(), 2)  # costs a hundredth apart count as equal
    shown = np.flatnonzero(points["far"].isna())
    best = shown[frontier((-rough if cost.larger_is_better else rough)[shown], y[shown])]
    strokes = draw_frontier(axes, x[best], y[best])
    strokes += [draw_point(axes, row, getattr(row, cost.column), names) for row in points.itertuples()]
    teachers = results.teachers()
    if len(teachers) and pd.notna(teachers["ppl"].iloc[0]):
        level = teachers["ppl"].iloc[0]
        axes.axhline(level, color=GREY, linestyle=(0, (1, 1.6)), linewidth=1.2, zorder=0)
        strokes.append(np.array([[x.min() - np.ptp(x), level], [x.max() + np.ptp(x), level]]))
    axes.margins(x=0.16, y=0.12)
    if len(shown) < len(points):
        axes.set_ylim(top=1.1 * y.max())  # no tick above the points brought there
    axes.set_xlabel(cost.title)
    axes.set_ylabel("Validation perplexity (log scale, lower is better)")
    figure.legend(handles=pareto_legend(names, teachers, points), loc="outside upper center", ncols=3, fontsize="small")
    labels = [
        (getattr(row, cost.column), row.ppl, label(row), ink(row.method, row.budget, row.kind))
        for row in named_points(points).itertuples()
    ]
    label_points(axes, labels, lines=strokes)
    return figure


train_compute = partial(pareto, cost=TRAIN_COMPUTE)
mac_speedup = partial(pareto, cost=MAC_SPEEDUP)
measured_speedup = partial(pareto, cost=MEASURED_SPEEDUP)


def pareto_points(results: Results, cost: Cost) -> pd.DataFrame:
    """One row per point: the lines of the main tables and, where their cost is known, of the controls.

    A further column `kind` is empty for a student that is no control.
    """
    scores = method_order(results.scores(*MAIN_CELLS))
    if cost is MAC_SPEEDUP:
        scores.loc[scores["method"] != "budgeted_lora", cost.column] = 1.0  # merged or full: the dense student
    points = lines(scores).assign(kind="", share=float("nan"))
    if cost is not MEASURED_SPEEDUP and CONTROLS in results.tables:  # controls are not timed
        points = pd.concat([points, lines(control_runs(results))], ignore_index=True)
    return points.dropna(subset=["ppl", cost.column]).reset_index(drop=True)


def brought_near(points: pd.DataFrame) -> pd.DataFrame:
    """The points with those far above the others brought to the upper edge; a column `far` has their perplexity."""
    far = points["ppl"] > FAR * points["ppl"].min()
    edge = 1.3 * points.loc[~far, "ppl"].max()
    near = points.assign(far=points["ppl"].where(far), ppl=points["ppl"].mask(far, edge))
    for name in ("ppl_se", "ppl_sd"):
        near[name] = near[name].mask(far, 0.0)
    for name in ("ppl_low", "ppl_high"):
        near[name] = near[name].mask(far, edge)
    return near


def named_points(points: pd.DataFrame) -> pd.DataFrame:
    """The points that get a name: controls, those off the scale, and of each method's others the one in the middle."""
    own = points[(points["kind"] != "") | points["far"].notna()]
    others = points.drop(own.index).sort_values("ppl")
    groups = others.groupby(["method", "budget", "controller"], dropna=False, sort=False)
    middle = [group.index[(len(group) - 1) // 2] for _, group in groups]
    return points.loc[sorted([*own.index, *middle])]


def draw_point(axes: Axes, row: object, x: float, names: list[str]) -> np.ndarray:
    """A point with its standard error over windows and, wide and pale, the range of its seeds.

    Returns:
        the stroke of its bars [2, 2], data coordinates.
    """
    paint = ink(row.method, row.budget, row.kind)
    marker = CONTROL_MARKERS.get(row.kind) or MARKERS[names.index(row.teacher) % len(MARKERS)]
    marker = "^" if pd.notna(row.far) else marker
    face = "white" if row.controller == "uniform" else paint
    axes.errorbar(
        x, row.ppl, yerr=row.ppl_se, color=paint, marker=marker, markerfacecolor=face,
        markersize=CONTROL_SIZES.get(row.kind, 6), elinewidth=0.8, zorder=3,
    )  # fmt: skip
    low, high = row.ppl - row.ppl_se, row.ppl + row.ppl_se
    if row.seeds > 1:
        axes.plot([x, x], [row.ppl_low, row.ppl_high], color=paint, zorder=2, **SPREAD)
        low, high = min(low, row.ppl_low), max(high, row.ppl_high)
    return np.array([[x, low], [x, high]])


def ink(method: str, budget: float, kind: str) -> str:
    """Colour of a point; controls share one."""
    return OTHER if kind else colour(method, budget)


def label(row: object) -> str:
    """Short name beside a point: KD LoRA, F=0.0 uniform; a control says its share of MACs.

    Markers tell teachers and kinds of controls, but off the scale all are alike.
    """
    above = f": {row.far:,.0f}, off the scale" if pd.notna(row.far) else ""
    if row.kind:
        return f"{f'{row.kind}, ' if above else ''}{number(row.share, 2)} of MACs{above}"
    method = method_label(row.method, row.budget).removeprefix("Budgeted LoRA, ")
    teacher = f" · {row.teacher}" if above else ""
    return f"{method}{' uniform' if row.controller == 'uniform' else ''}{teacher}{above}"


def frontier(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point beats on both, by ascending cost (both: lower is better)."""
    order = np.lexsort((loss, cost))
    kept, best = [], float("inf")
    for index in order:
        if loss[index] < best:
            kept.append(index)
            best = loss[index]
    return np.array(kept, dtype=int)


def draw_frontier(axes: Axes, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The frontier as steps, cheapest first: up to the next point, the last one is the best to be had.

    The uprights are thin: a point that lies on one is not on the frontier.

    Returns:
        its level and upright strokes, each [2, 2], data coordinates.
    """
    corners = [corner for i in range(len(x)) for corner in ([[x[i], y[i - 1]]] if i else []) + [[x[i], y[i]]]]
    strokes = [np.array(pair) for pair in itertools.pairwise(corners)]
    for place, stroke in enumerate(strokes):
        looks = FRONTIER if place % 2 == 0 else FRONTIER | {"linewidth": 1}
        axes.plot(*stroke.T, **looks, zorder=1)
    return strokes


def pareto_legend(names: list[str], teachers: pd.DataFrame, points: pd.DataFrame) -> list[Line2D]:
    """Markers of teachers and controls (methods are named at their points), the frontier, the band, the teacher."""
    shapes = [
        Line2D([], [], color=BLACK, marker=MARKERS[i % len(MARKERS)], linestyle="", label=f"teacher {name}")
        for i, name in enumerate(names)
    ]
    for kind, marker in CONTROL_MARKERS.items():
        if ((points["kind"] == kind) & points["far"].isna()).any():
            looks = {"color": OTHER, "marker": marker, "markersize": CONTROL_SIZES[kind], "linestyle": ""}
            shapes.append(Line2D([], [], label=f"control: {kind}", **looks))
    strokes = [Line2D([], [], label="Pareto frontier", **FRONTIER)]
    if (points["ppl_high"] > VISIBLE * points["ppl_low"]).any():
        strokes.append(Line2D([], [], color=BLACK, label="range over seeds", **SPREAD))
    if len(teachers):
        name = teachers["name"].iloc[0]
        strokes.append(Line2D([], [], color=GREY, linestyle=(0, (1, 1.6)), linewidth=1.2, label=f"{name} itself"))
    return [*shapes, *strokes]
