"""Perplexity against training tokens, with the fitted power laws and their continuation."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from budgeted_lora.reporting.figures.style import GREY, MARKERS, OTHER, OWN_RULE, colour
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import millions
from budgeted_lora.reporting.tables.tokens import LengthCurve, length_curves

LONG_LABEL = 48  # characters from which two labels do not fit beside each other
BEYOND_LONGEST = 16  # how many times the longest run the fitted curves are drawn


def tokens_figure(results: Results) -> Figure:
    """The students of the table `tokens` (`lengths_figure`)."""
    teacher = results.teachers().iloc[0]
    return lengths_figure(length_curves(results), teacher=teacher["name"], teacher_ppl=teacher["ppl"])


def lengths_figure(curves: Sequence[LengthCurve], *, teacher: str, teacher_ppl: float) -> Figure:
    """A curve per student: measured points with standard errors, the fitted law between them, dashed beyond."""
    figure, axes = plt.subplots(figsize=(7.2, 5.4))
    longest = max(curve.points["tokens"].max() for curve in curves)
    for position, curve in enumerate(curves):
        draw_curve(axes, curve, marker=MARKERS[position % len(MARKERS)], longest=float(longest))
    axes.axhline(teacher_ppl, color=GREY, linestyle=":", linewidth=0.9, label=f"teacher {teacher}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    lengths = sorted({int(tokens) for curve in curves for tokens in curve.points["tokens"]})
    axes.set_xticks([*lengths, BEYOND_LONGEST * lengths[-1]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: millions(value))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="small")
    axes.set_xlabel("Training tokens of a student (log scale)")
    axes.set_ylabel("Validation perplexity (log scale, lower is better)")
    if any(curve.law for curve in curves):
        axes.plot([], [], color=GREY, linestyle="--", linewidth=1.2, label="a fitted law, continued")
    handles, labels = axes.get_legend_handles_labels()
    side_by_side = 2 if max(map(len, labels)) <= LONG_LABEL else 1
    figure.legend(handles, labels, loc="outside upper center", ncols=side_by_side, fontsize="small")
    return figure


def draw_curve(axes: plt.Axes, curve: LengthCurve, *, marker: str, longest: float) -> None:
    """One student: points, and its law up to and beyond the longest run."""
    points = curve.points
    ink = ink_of(curve)
    x, y = points["tokens"].to_numpy(float), points["ppl"].to_numpy(float)
    style = "-" if curve.law is None else "none"
    axes.errorbar(x, y, yerr=points["ppl_se"], color=ink, marker=marker, linestyle=style, capsize=2, label=curve.label)
    if curve.law is None:
        return
    for ends, dashes in (((x[0], x[-1]), "-"), ((x[-1], BEYOND_LONGEST * longest), "--")):
        places = np.geomspace(*ends, 60)
        values = [curve.law.perplexity(place) for place in places]
        axes.plot(places, values, color=ink, linestyle=dashes, linewidth=1.2)


def ink_of(curve: LengthCurve) -> str:
    """The method's colour; smaller students have one of their own, and so have other rules than the paper's."""
    first = curve.points.iloc[0]
    if pd.notna(first["student_ffn"]) and first["method"] == "kd_full":
        return OTHER
    return OWN_RULE if ":" in curve.label else colour(first["method"], first["budget"])
