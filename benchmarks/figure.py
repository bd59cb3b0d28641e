"""The figure of a result: a bar per line that has a goal, with its quartiles, its goal and its aim."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.measures import Measure

COLOURS = {"BEHIND": "#c0392b", "BELOW": "#e0a030", "goal": "#5aa469", "aim": "#2e7d4f", "ahead": "#7f9fbf"}
MEANING = {"BEHIND": "behind its peer", "BELOW": "below its goal", "goal": "goal reached", "aim": "aim reached"}
GOAL, AIM = "#222222", "#888888"
MOST = 3.0  # of the panel where less is better: longer bars are cut


def colour(line: Measure) -> str:
    return next((value for word, value in COLOURS.items() if line.verdict.startswith(word)), "#bbbbbb")


def label(line: Measure) -> str:
    shape = f", {line.shape}" if line.shape else ""
    against = f" / {line.against}" if line.against else ""
    what = line.what.replace("`", "").partition(" (")[0]
    return f"{line.row}  {what}{against}{shape}, {line.threads} thr."


def draw(lines: Sequence[Measure], path: Path) -> None:
    """Two panels: ratios where more is better, and values where less is better, over their goal."""
    shown = [line for line in lines if line.value is not None and line.at_least is not None]
    panels = [[line for line in shown if line.better == better] for better in ("higher", "lower")]
    panels = [own for own in panels if own]
    if not panels:
        path.unlink(missing_ok=True)
        return
    heights = [len(own) + 1.5 for own in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(10, 0.27 * sum(heights) + 1.2), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, own in zip(axes[:, 0], panels, strict=True):
        lower = own[0].better == "lower"
        for place, line in enumerate(own):
            bar(axis, place, line, scale=line.at_least if lower else 1.0)
        axis.set_yticks(range(len(own)), [label(line) for line in own], fontsize=7)
        axis.set_ylim(len(own) - 0.4, -0.6)
        axis.set_xlim(0, MOST if lower else None)
        axis.axvline(1.0, color="#555555", linewidth=0.8, linestyle=":")
        title = "value over its goal (less is better)" if lower else "times as fast (more is better; 1 = as fast)"
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axis.set_axisbelow(True)
    handles = [Patch(color=COLOURS[word], label=text) for word, text in MEANING.items()]
    handles += [Line2D([], [], color=GOAL, linewidth=2, label="at least")]
    handles += [Line2D([], [], color=AIM, linewidth=2, linestyle=":", label="aim")]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def bar(axis: plt.Axes, place: int, line: Measure, *, scale: float) -> None:
    value = line.value / scale
    axis.barh(place, value, color=colour(line), height=0.65)
    if line.q1 is not None and line.q3 is not None:
        axis.plot([line.q1 / scale, line.q3 / scale], [place, place], color="black", linewidth=1)
    ends = place - 0.42, place + 0.42
    axis.plot([line.at_least / scale] * 2, ends, color=GOAL, linewidth=2)
    axis.plot([line.aim / scale] * 2, ends, color=AIM, linewidth=2, linestyle=(0, (1, 1)))
    axis.annotate(
        f"{line.value:.2f}", (0, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6,
        color="white",
    )  # fmt: skip
