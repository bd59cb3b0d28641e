"""Beyond the paper: perplexity at every budget of one training, beside students trained for one budget."""

from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from budgeted_lora.reporting.figures.style import MARKERS, METHOD_COLOURS
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import millions
from budgeted_lora.reporting.tables.elastic import elastic_lines, remarks

INK = METHOD_COLOURS["budgeted_lora", "0.4"]
DASHES = ("-", "--", ":")


def elastic_figure(results: Results) -> Figure:
    """Perplexity against F: a curve per elastic training, points of students for one F, strokes over their seeds."""
    frame = elastic_lines(results)
    frame = frame.assign(remark=remarks(frame)).sort_values(["elastic", "tokens"], kind="stable")
    figure, axes = plt.subplots(figsize=(7.2, 4.8))
    styles = cycle(DASHES)
    for position, (_, mine) in enumerate(frame.groupby("training", sort=False)):
        elastic, tokens, remark = mine[["elastic", "tokens", "remark"]].iloc[0]
        ink, marker = INK if elastic else METHOD_COLOURS["kd_lora", ""], MARKERS[position % len(MARKERS)]
        look = {"linestyle": next(styles)} if elastic else {"linestyle": "none", "markersize": 10, "fillstyle": "none"}
        trained = "one training for every F" if elastic else "a training for this F"
        label = f"{trained}, {millions(tokens)} tokens{remark}"
        axes.plot(mine["budget"], mine["ppl"], color=ink, marker=marker, label=label, **look)
        several = mine[mine["seeds"] > 1]
        axes.vlines(several["budget"], several["ppl_low"], several["ppl_high"], color=ink, linewidth=7, alpha=0.3)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="small")
    axes.set_xlabel("F: share of the dense multiply-accumulates that is kept")
    axes.set_ylabel("Validation perplexity (log scale, lower is better)")
    columns = 1 if frame["remark"].any() else 2  # long labels do not fit beside each other
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, fontsize="small")
    return figure
