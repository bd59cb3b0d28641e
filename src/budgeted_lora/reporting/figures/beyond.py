"""Why other rules do better or worse: loss and removals along the schedule, and each projection's part in them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.figures.style import (
    BLACK,
    GREY,
    MARKERS,
    OTHER,
    SHORT,
    clip_start,
    colour,
    shade_decay,
)
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.tables.beyond import (
    BEYOND,
    ORDERS,
    PAPER,
    REFERENCES,
    UNDISTILLED,
    beyond_lines,
    rules_of,
)
from budgeted_lora.reporting.tables.controls import SMALLER, control_runs
from budgeted_lora.reporting.uncertainty import lines

BEYOND_WHY = "beyond_why"
PROJECTION_STARTS = {"zero": "nothing in its place", "svd": "the SVD of W", "activation_svd": "the SVD of outputs"}
SHARES = ("kept_energy", "kept_output_energy")
ORDER_INKS = {"mac": BLACK, "energy": "#D98200", "activation": "#0072B2", "gradient": "#B8548B"}


def beyond_why(results: Results) -> Figure:
    """Loss and what was removed along the schedule, and what each projection's dense path is worth."""
    listed = students(results)
    inks = rule_inks(listed)
    budget = listed.groupby("budget")["rule"].nunique().idxmax()
    mine = listed[(listed["budget"] == budget) & (listed["tokens"] == listed["tokens"].min())]
    found = modules(results)
    maps = heat_maps(found)
    figure = plt.figure(figsize=(7.2, 10.2 if maps else 4.4))
    grid = figure.add_gridspec(3 if maps else 1, 1, height_ratios=[1.4, 0.8, 1] if maps else [1])
    above = figure.add_subplot(grid[0])
    draw_losses(above, results, mine, inks=inks, budget=budget)
    if maps:
        draw_removed(figure.add_subplot(grid[1], sharex=above), results, mine, found)
        below = grid[2].subgridspec(1, len(maps))
        marks = {rule: last_dense(results, mine[mine["rule"] == rule]) for rule in marked(results, mine)}
        for position, (title, values, norm) in enumerate(maps):
            axes = figure.add_subplot(below[position])
            draw_map(axes, values, title=title, norm=norm, marks=marks if position == 0 else {})
    return figure


def heat_maps(found: pd.DataFrame | None) -> list[tuple[str, pd.Series, Normalize]]:
    """Title, values by projection and colour scale of each heat map that the results allow."""
    if found is None or not {"kept_output_energy", "zero"} <= set(found):
        return []
    high = found[["zero", "activation_svd"]].to_numpy().max()
    scale = SymLogNorm(0.003, vmin=0.0, vmax=high)
    return [
        ("Output energy outside rank r", 1.0 - found["kept_output_energy"], Normalize(0.0, 1.0)),
        ("Loss rise without it (nats)", found["zero"], scale),
        ("The same, SVD of outputs there", found["activation_svd"], scale),
    ]


def draw_losses(axes: Axes, results: Results, mine: pd.DataFrame, *, inks: dict[str, str], budget: float) -> None:
    """Loss over steps, a line a rule (first seed), the stretch of the schedule shaded."""
    for rule, group in by_rule(mine.assign(speedup_vs_dense=0.0)):
        history = results.history(group.sort_values("seed")["cell"].iloc[0])
        if history is None:
            continue
        smooth = history["loss"].rolling(max(1, len(history) // 30), min_periods=1, center=True).mean()
        axes.plot(history["step"], smooth, color=inks[rule], linewidth=1.4, label=rule)
        shade_decay(axes, history, history["step"])
    axes.set_title(f"Training loss at F = {budget:.1f}; grey: dense paths fade", loc="left")
    axes.set_ylabel("Loss (nats)")
    axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.07))
    clip_start(axes)


def draw_removed(axes: Axes, results: Results, mine: pd.DataFrame, found: pd.DataFrame) -> None:
    """Sum over projections of (1 - d) times what removing that dense path alone costs, a line an order."""
    for order, group in mine.groupby("order"):
        retention = results.retention(group.sort_values("seed")["cell"].iloc[0])
        if retention is None:
            continue
        removed = (1.0 - retention[found.index]) @ found["activation_svd"]
        label = ORDERS.get(order, "order by MACs, the paper's")
        axes.plot(retention.index, removed, color=ORDER_INKS[order], linewidth=1.4, label=label)
    axes.set_title("Sum of what each removal so far costs alone, the SVD of outputs in its place", loc="left")
    axes.set_xlabel("Step")
    axes.set_ylabel("Loss (nats)")
    axes.legend(fontsize="x-small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.3))


def draw_map(axes: Axes, values: pd.Series, *, title: str, norm: Normalize, marks: dict[str, set[str] | None]) -> None:
    """Heat map, layers down and projections across; marks show which dense paths stay to the end under a rule."""
    names = list(values.index)
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    image = axes.imshow(values.to_numpy().reshape(-1, len(kinds)), cmap="cividis", norm=norm, aspect="auto")
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03).ax.tick_params(labelsize="x-small")
    axes.set_xticks(range(len(kinds)), [SHORT.get(kind, kind) for kind in kinds], fontsize="x-small", rotation=60)
    axes.set_yticks(range(len(names) // len(kinds)))
    axes.set_ylabel("Layer", fontsize="small")
    for offset, marker, face, (rule, dense) in zip(
        (-0.2, 0.2), "o^", ("white", "#FF6A4D"), marks.items(), strict=False
    ):
        spots = [divmod(names.index(name), len(kinds)) for name in sorted(dense or ())]
        if spots:
            rows, columns = np.array(spots).T
            axes.scatter(
                columns + offset, rows, s=16, marker=marker, color=face, edgecolor=BLACK, linewidth=0.6, label=rule
            )
    axes.set_title(title, loc="left", fontsize="x-small")
    axes.spines[:].set_visible(False)
    if marks:
        axes.figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="x-small",
            title="left map: still dense at the end under", title_fontsize="x-small",
        )  # fmt: skip


def marked(results: Results, mine: pd.DataFrame) -> list[str]:
    """The paper's rule, and the one with an order of its own that trained to the lowest loss."""
    last = {}
    for rule, group in mine[mine["order"] != "mac"].groupby("rule"):
        history = results.history(group.sort_values("seed")["cell"].iloc[0])
        if history is not None:
            last[rule] = history["loss"].tail(5).mean()
    return [PAPER, *([min(last, key=last.__getitem__)] if last else [])]


def students(results: Results) -> pd.DataFrame:
    """The budgeted students of the table, each with its `rule`; `order` is `mac` for the paper's.

    Raises:
        BadInput: there is none.
    """
    listed = results.listed(BEYOND)
    listed = listed[listed["method"] == "budgeted_lora"].reset_index(drop=True)
    if listed.empty:
        raise BadInput(f"{results.root / 'cells.csv'}: no budgeted_lora cell of {BEYOND}; expected at least one")
    return listed.assign(rule=rules_of(listed, results), order=listed["order"].replace("", None).fillna("mac"))


def modules(results: Results) -> pd.DataFrame | None:
    """What is known of each projection of the untrained student, by name; None if nothing is.

    Columns, as far as they were measured: `macs`; `kept_energy` and `kept_output_energy`, shares in [0, 1] within
    rank r; estimated harm per MAC by each order (`mac` is the paper's: the cheapest first); and the increase of the
    student's loss in nats when that dense path alone goes, for every start of `PROJECTION_STARTS`.
    """
    listed = students(results)
    columns: dict[str, pd.Series] = {}
    for row in listed[listed["rank_step"].isna()].sort_values(["tokens", "seed"], kind="stable").itertuples():
        structure = results.json(f"{results.compressed(row.cell)}/compression.json")
        about = (results.json(f"cells/{row.cell}/train.json") or {}).get("low_rank") or {}
        if structure is None or row.order == "mac":
            continue
        names = [module["name"] for module in structure["modules"]]
        columns["macs"] = pd.Series([module["dense_macs"] for module in structure["modules"]], names)
        for name, values in ((row.order, about.get("scores")), *((key, about.get(key)) for key in SHARES)):
            if values is not None and name not in columns:
                columns[name] = pd.Series(values, names)
    if "macs" not in columns:
        return None
    columns["mac"] = columns["macs"]
    statistics = results.json(f"students/{listed['init'].iloc[0]}/statistics.json") or {}
    removals = pd.DataFrame(statistics.get("removals", [])).set_index("name") if statistics.get("removals") else None
    found = pd.DataFrame(columns)
    return found if removals is None else found.join(removals)


def last_dense(results: Results, group: pd.DataFrame) -> set[str] | None:
    """Projections whose dense path is still there after the last step of a group's first cell; None without one."""
    retention = results.retention(group.sort_values("seed")["cell"].iloc[0]) if len(group) else None
    return None if retention is None else {name for name, d in retention.iloc[-1].items() if d > 0.0}


INKS = ("#0072B2", "#D55E00", "#00875F", "#B8548B", "#D98200", "#3A9BD9", "#17A2B8", "#6A51A3", "#E7298A", "#66A61E")


def beyond_figure(results: Results) -> Figure:
    """Perplexity against MAC speedup: a line a rule, band over seeds; controls, KD Full and KD LoRA beside them."""
    frame = beyond_lines(results)
    figure, axes = plt.subplots(figsize=(7.2, 6.6))
    longest, shortest = frame["tokens"].max(), frame["tokens"].min()
    budgeted = frame[frame["method"] == "budgeted_lora"]
    inks = rule_inks(budgeted)
    for position, (rule, group) in enumerate(by_rule(budgeted)):
        ink = inks[rule]
        for tokens, mine in group.groupby("tokens"):
            marker, longer = MARKERS[position % len(MARKERS)], tokens != shortest
            draw_line(axes, mine, ink=ink, marker=marker, dashed=longer, label=rule)
    for row in frame[frame["rule"].isin(REFERENCES.values())].itertuples():
        longer, ink = row.tokens != shortest, colour(row.method, row.budget)
        style, label = ("--", None) if longer else (":", row.rule)
        axes.axhline(row.ppl, color=ink, linestyle=style, linewidth=0.9, label=label)
    cut = frame[frame["rule"].str.startswith(UNDISTILLED)]
    axes.plot(cut["speedup_vs_dense"], cut["ppl"], "x", color=GREY, label=UNDISTILLED if len(cut) else None)
    if len(results.listed("controls")):
        found = lines(results, control_runs(results))
        smaller = found[found["kind"] == SMALLER]
        axes.plot(smaller["speedup_vs_dense"], smaller["ppl"], "X", color=OTHER, label="control: smaller KD Full")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="small")
    axes.set_xlabel("Speedup of the projections by MAC count (not a timing)")
    axes.set_ylabel("Validation perplexity (log scale, lower is better)")
    if longest != shortest:
        axes.plot([], [], "--", color=GREY, label=f"dashed: {longest / shortest:.0f} times the tokens")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def by_rule(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Lines by rule, the paper's first, then those tried at most budgets."""
    count = frame["rule"].value_counts()
    names = sorted(count.index, key=lambda rule: (rule != PAPER, -count[rule], rule))
    return [(rule, frame[frame["rule"] == rule].sort_values("speedup_vs_dense")) for rule in names]


def rule_inks(frame: pd.DataFrame) -> dict[str, str]:
    """The colour of each rule, the same in every figure of the same cells: by the order in which they are listed."""
    others = [rule for rule in dict.fromkeys(frame["rule"]) if rule != PAPER]
    return {PAPER: BLACK} | {rule: INKS[position % len(INKS)] for position, rule in enumerate(others)}


def draw_line(axes: Axes, group: pd.DataFrame, *, ink: str, marker: str, dashed: bool, label: str) -> None:
    """One rule's points from the dense end to the smallest, with the range of their seeds as a band."""
    x, y = group["speedup_vs_dense"], group["ppl"]
    axes.plot(x, y, color=ink, marker=marker, linestyle="--" if dashed else "-", label=None if dashed else label)
    several = group[group["seeds"] > 1]
    axes.vlines(several["speedup_vs_dense"], several["ppl_low"], several["ppl_high"], color=ink, linewidth=7, alpha=0.3)
