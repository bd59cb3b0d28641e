"""Along the training: what is kept of the dense paths, the gates, the loss."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.figures.style import (
    BLACK,
    GREY,
    METHOD_DASHES,
    SHORT,
    clip_start,
    colour,
    shade_decay,
    smoothed_loss,
)
from budgeted_lora.reporting.grouping import groups, method_label, method_order, sorted_teachers
from budgeted_lora.reporting.results import Results


def retention(results: Results) -> Figure:
    """Retention d of every module over training, one panel per budget."""
    cells = budgeted_cells(results)
    frames = [(row, results.retention(row.cell)) for row in cells.itertuples()]
    frames = [(row, frame) for row, frame in frames if frame is not None]
    figure, panels = plt.subplots(
        1, max(len(frames), 1), figsize=(2.6 + 1.35 * max(len(frames), 1), 7.4), sharey=True, squeeze=False
    )
    image = None
    for axes, (row, frame) in zip(panels[0], frames, strict=False):
        steps = frame.index.to_numpy(dtype=float)
        edges = np.append(0.0, steps)  # a row stands for the steps since the one before
        rows = np.arange(frame.shape[1] + 1)
        image = axes.pcolormesh(edges, rows, frame.to_numpy().T, cmap="cividis", vmin=0, vmax=1, rasterized=True)
        axes.set_title(f"F = {float(row.budget)}")
        axes.set_xlabel("Step")
        axes.locator_params(axis="x", nbins=2)
        module_axis(axes, list(frame.columns))
    if image is not None:
        panels[0][0].invert_yaxis()
        figure.colorbar(image, ax=panels[0].tolist(), label="Retention d", shrink=0.5, aspect=30)
    return figure


def module_axis(axes: Axes, names: list[str]) -> None:
    """Names the modules on the vertical axis and parts the layers with white lines."""
    layers = [name.split(".")[2] if name.count(".") >= 3 else "" for name in names]
    parts = [SHORT.get(name.rsplit(".", 1)[-1], name) for name in names]
    first = [i == 0 or layers[i] != layers[i - 1] for i in range(len(names))]
    labels = [
        f"layer {layer}  {part}" if opens else part for layer, part, opens in zip(layers, parts, first, strict=True)
    ]
    axes.set_yticks(np.arange(len(names)) + 0.5, labels, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    for position, opens in enumerate(first):
        if opens and position:
            axes.axhline(position, color="white", linewidth=1.4)


def budgeted_cells(results: Results) -> pd.DataFrame:
    """One budgeted cell per budget, of the smallest teacher and the first seed, budgets from large to small."""
    listed = results.listed("table2", "table8")
    listed = listed[listed["method"] == "budgeted_lora"]
    if listed.empty:
        raise BadInput(f"{results.root}: no budgeted_lora cell in table2 or table8; expected at least one")
    first = sorted_teachers(results, listed)[0]
    mine = method_order(listed[listed["teacher"] == first]).sort_values("seed", kind="stable")
    return method_order(mine.drop_duplicates("budget"))


def gates(results: Results) -> Figure:
    """Distribution of the trained gates of every budget, over all modules."""
    cells = budgeted_cells(results)
    thresholds = results.of_tables("table2", "table8").drop_duplicates("cell").set_index("cell")["rank_threshold"]
    figure, panels = plt.subplots(len(cells), 1, figsize=(6.4, 1.0 + 1.3 * len(cells)), sharex=True, squeeze=False)
    for axes, row in zip(panels[:, 0], cells.itertuples(), strict=True):
        ink, label = colour(row.method, row.budget), f"F = {float(row.budget)}"
        values = results.gates(row.cell)
        if values:
            flat = np.concatenate([np.asarray(value, dtype=np.float64) for value in values.values()])
            axes.hist(flat, bins=np.linspace(0, 1, 81), histtype="stepfilled", color=ink, label=label)
            spread = f"{flat.size:,} gates, from {flat.min():.3f} to {flat.max():.3f}"
            axes.text(0.02, 0.62, spread, transform=axes.transAxes, fontsize="small", color=GREY)
        axes.text(0.02, 0.8, label, transform=axes.transAxes, color=ink, weight="bold")
        threshold = float(thresholds[row.cell])  # the gate at or below which a rank is cut
        axes.axvline(threshold, color=BLACK, linestyle=(0, (4, 2)), linewidth=1.2)
        place = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": "small"}
        axes.text(threshold + 0.01, 0.98, f"threshold {threshold:g}", **place)
        axes.set_ylabel("Gates")
    panels[-1, 0].set_xlabel("Trained gate g (a rank stays if it is above the threshold)")
    panels[-1, 0].set_xlim(0, 1)
    return figure


def loss_curves(results: Results) -> Figure:
    """Training loss over tokens, one panel per teacher; the decay of the dense paths is shaded."""
    listed = method_order(results.listed("table2"))
    names = sorted_teachers(results, listed)
    size = (6.6, 0.9 + 2.3 * len(names))
    figure, panels = plt.subplots(len(names), 1, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(panels[:, 0], names, strict=True):
        for (method, budget), group in groups(listed[listed["teacher"] == name]):
            row = group.sort_values("seed").iloc[0]
            history = results.history(row["cell"])
            if history is None:
                continue
            tokens = (history["step"] + 1) / row["steps"] * row["tokens"] / 1e6
            ink, label = colour(method, budget), method_label(method, budget)
            dashes = METHOD_DASHES[method]
            axes.plot(tokens, smoothed_loss(history), color=ink, linestyle=dashes, linewidth=1.5, label=label)
            shade_decay(axes, history, tokens)
        axes.set_title(f"Teacher {name}", loc="left")
        axes.set_ylabel("Loss (nats)")
    panels[-1, 0].set_xlabel("Training tokens (millions)")
    lines = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels[:, 0]]
    handles = {label: line for pairs in lines for line, label in pairs}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, fontsize="small")
    clip_start(panels[0, 0])
    return figure
