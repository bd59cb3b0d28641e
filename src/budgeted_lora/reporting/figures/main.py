"""The figures, one function each: from result files to a matplotlib figure (method.md 8)."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.figures.style import (
    BLACK,
    GREY,
    MARKERS,
    METHOD_DASHES,
    SHORT,
    clip_start,
    colour,
    shade_decay,
)
from budgeted_lora.reporting.grouping import (
    groups,
    icl_scores,
    icl_tables,
    method_label,
    method_order,
    one_variant,
    sorted_teachers,
)
from budgeted_lora.reporting.results import Results


def figure2(results: Results) -> Figure:
    """In-context composite by teacher and method; band over runs, smallest teacher's line, chance."""
    scored = icl_scores(results, *icl_tables(results))
    one_variant(scored, "figure2")
    names = sorted_teachers(results, scored)
    figure, axes = plt.subplots(figsize=(6.6, 4.6))
    for position, ((method, budget), group) in enumerate(groups(scored)):
        runs = [seed_composites(group[group["teacher"] == name]) for name in names]
        there = [i for i, values in enumerate(runs) if len(values)]
        if not there:
            continue
        mean, low, high = (np.array([100 * f(runs[i]) for i in there]) for f in (np.mean, np.min, np.max))
        ink, marker = colour(method, budget), MARKERS[position % len(MARKERS)]
        axes.fill_between(there, low, high, color=ink, alpha=0.18, linewidth=0)
        axes.plot(
            there, mean, color=ink, marker=marker, linestyle=METHOD_DASHES[method], label=method_label(method, budget)
        )
    teachers = results.teachers()
    own = teachers[teachers["icl"].notna()] if "icl" in teachers else teachers
    if len(own):
        axes.axhline(100 * own["icl"].iloc[0], color=GREY, linestyle=(0, (6, 2)), label=f"{own['name'].iloc[0]} itself")
        axes.axhline(100 * own["icl_chance"].iloc[0], color=GREY, linestyle=(0, (1, 1.6)), label="chance")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.25, max(len(names) - 0.75, 0.25))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Teacher")
    axes.set_ylabel("ICL composite, exact match (%)")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


def seed_composites(group: pd.DataFrame) -> np.ndarray:
    """Composite of every demonstration seed of every cell of a group, in [0, 1]."""
    values = [np.array(list(icl["per_seed"].values()), dtype=np.float64) for icl in group["icl"] if icl]
    return np.concatenate(values) if values else np.zeros(0)


def retention(results: Results) -> Figure:
    """Dense coefficient d of every module over training, one panel a budget."""
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
        figure.colorbar(image, ax=panels[0].tolist(), label="Dense coefficient d", shrink=0.5, aspect=30)
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
    """One budgeted cell a budget, of the smallest teacher and the first seed, budgets from large to small."""
    listed = results.listed("table2", "table8")
    listed = listed[listed["method"] == "budgeted_lora"]
    if listed.empty:
        raise BadInput(
            f"{results.root / 'cells.csv'}: no budgeted_lora cell in table2 or table8; expected at least one"
        )
    first = sorted_teachers(results, listed)[0]
    mine = method_order(listed[listed["teacher"] == first]).sort_values("seed", kind="stable")
    return method_order(mine.drop_duplicates("budget"))


def gates(results: Results) -> Figure:
    """Distribution of the trained gates of every budget, over all modules."""
    cells = list(budgeted_cells(results).itertuples())
    figure, panels = plt.subplots(len(cells), 1, figsize=(6.4, 1.0 + 1.3 * len(cells)), sharex=True, squeeze=False)
    bins = np.linspace(0, 1, 81)
    for axes, row in zip(panels[:, 0], cells, strict=True):
        values = results.gates(row.cell)
        if values:
            flat = np.concatenate([np.asarray(value, dtype=np.float64) for value in values.values()])
            axes.hist(
                flat,
                bins=bins,
                histtype="stepfilled",
                color=colour(row.method, row.budget),
                label=f"F = {float(row.budget)}",
            )
            spread = f"{flat.size:,} gates, from {flat.min():.3f} to {flat.max():.3f}"
            axes.text(0.02, 0.62, spread, transform=axes.transAxes, fontsize="small", color=GREY)
        axes.text(
            0.02,
            0.8,
            f"F = {float(row.budget)}",
            transform=axes.transAxes,
            color=colour(row.method, row.budget),
            weight="bold",
        )
        threshold = results.rank_threshold(row.cell)
        if threshold is not None:
            axes.axvline(threshold, color=BLACK, linestyle=(0, (4, 2)), linewidth=1.2)
            axes.text(
                threshold + 0.01,
                0.98,
                f"threshold {threshold:g}",
                transform=axes.get_xaxis_transform(),
                va="top",
                fontsize="small",
            )
        axes.set_ylabel("Gates")
    panels[-1, 0].set_xlabel("Trained gate g (a rank stays if it is above the threshold)")
    panels[-1, 0].set_xlim(0, 1)
    return figure


def loss_curves(results: Results) -> Figure:
    """Training loss over tokens, one panel a teacher; the decay of the dense paths is shaded."""
    listed = method_order(results.listed("table2"))
    names = sorted_teachers(results, listed)
    figure, panels = plt.subplots(
        len(names), 1, figsize=(6.6, 0.9 + 2.3 * len(names)), sharex=True, sharey=True, squeeze=False
    )
    for axes, name in zip(panels[:, 0], names, strict=True):
        for (method, budget), group in groups(listed[listed["teacher"] == name]):
            row = group.sort_values("seed").iloc[0]
            history = results.history(row["cell"])
            if history is None:
                continue
            tokens = (history["step"] + 1) / row["steps"] * row["tokens"] / 1e6
            smooth = history["loss"].rolling(max(1, len(history) // 30), min_periods=1, center=True).mean()
            axes.plot(
                tokens,
                smooth,
                color=colour(method, budget),
                linestyle=METHOD_DASHES[method],
                linewidth=1.5,
                label=method_label(method, budget),
            )
            shade_decay(axes, history, tokens)
        axes.set_title(f"Teacher {name}", loc="left")
        axes.set_ylabel("Loss (nats)")
    panels[-1, 0].set_xlabel("Training tokens (millions)")
    handles = {
        label: line for axes in panels[:, 0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, fontsize="small")
    clip_start(panels[0, 0])
    return figure
