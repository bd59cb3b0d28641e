"""Why other rules do better or worse: loss and removals along the schedule, and each projection's part in them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.contents import BEYOND
from budgeted_lora.reporting.figures.beyond import by_rule, rule_inks
from budgeted_lora.reporting.figures.style import BLACK, SHORT, clip_start, shade_decay, smoothed_loss
from budgeted_lora.reporting.results import FILES, Results
from budgeted_lora.reporting.tables.beyond import ORDERS, PAPER, rules_of

PROJECTION_STARTS = {"zero": "nothing in its place", "svd": "the SVD of W", "activation_svd": "the SVD of outputs"}
SHARES = ("kept_energy", "kept_output_energy")
ORDER_INKS = {"mac": BLACK, "energy": "#D98200", "activation": "#0072B2", "gradient": "#B8548B"}


def beyond_why(results: Results) -> Figure:
    """Loss and what was removed along the schedule, and what each projection's dense path is worth."""
    listed = students(results)
    inks = rule_inks(listed)
    budget = listed.groupby("budget")["rule"].nunique().idxmax()
    mine = listed[(listed["budget"] == budget) & (listed["tokens"] == listed["tokens"].min())]
    projections = modules(results)
    maps = heat_maps(projections)
    figure = plt.figure(figsize=(7.2, 10.2 if maps else 4.4))
    grid = figure.add_gridspec(3 if maps else 1, 1, height_ratios=[1.4, 0.8, 1] if maps else [1])
    above = figure.add_subplot(grid[0])
    draw_losses(above, results, mine, inks=inks, budget=budget)
    if maps:
        draw_removed(figure.add_subplot(grid[1], sharex=above), results, mine, projections)
        below = grid[2].subgridspec(1, len(maps))
        marks = {rule: last_dense(results, mine[mine["rule"] == rule]) for rule in marked(results, mine)}
        for position, (title, values, norm) in enumerate(maps):
            axes = figure.add_subplot(below[position])
            draw_map(axes, values, title=title, norm=norm, marks=marks if position == 0 else {})
    return figure


def heat_maps(projections: pd.DataFrame | None) -> list[tuple[str, pd.Series, Normalize]]:
    """Title, values by projection and colour scale of each heat map that the results allow."""
    if projections is None or not {"kept_output_energy", "zero"} <= set(projections):
        return []
    high = projections[["zero", "activation_svd"]].to_numpy().max()
    scale = SymLogNorm(0.003, vmin=0.0, vmax=high)
    return [
        ("Output energy outside rank r", 1.0 - projections["kept_output_energy"], Normalize(0.0, 1.0)),
        ("Loss rise without it (nats)", projections["zero"], scale),
        ("The same, SVD of outputs there", projections["activation_svd"], scale),
    ]


def draw_losses(axes: Axes, results: Results, mine: pd.DataFrame, *, inks: dict[str, str], budget: float) -> None:
    """Loss over steps, a line per rule (first seed), the stretch of the schedule shaded."""
    for rule, group in by_rule(mine.assign(speedup_vs_dense=0.0)):
        history = results.history(group.sort_values("seed")["cell"].iloc[0])
        if history is None:
            continue
        axes.plot(history["step"], smoothed_loss(history), color=inks[rule], linewidth=1.4, label=rule)
        shade_decay(axes, history, history["step"])
    axes.set_title(f"Training loss at F = {budget:.1f}; grey: dense paths fade", loc="left")
    axes.set_ylabel("Loss (nats)")
    axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.07))
    clip_start(axes)


def draw_removed(axes: Axes, results: Results, mine: pd.DataFrame, projections: pd.DataFrame) -> None:
    """Sum over projections of (1 - d) times what removing that dense path alone costs, a line per order."""
    for order, group in mine.groupby("order"):
        retention = results.retention(group.sort_values("seed")["cell"].iloc[0])
        if retention is None:
            continue
        removed = (1.0 - retention[projections.index]) @ projections["activation_svd"]
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
    """The budgeted students of the table of the scale's shape, each with its `rule`; `order` is `mac` for the paper's.

    Raises:
        BadInput: there is none.
    """
    listed = results.listed(BEYOND)
    listed = listed[(listed["method"] == "budgeted_lora") & listed["student_ffn"].isna()].reset_index(drop=True)
    if listed.empty:
        raise BadInput(f"{results.root}: no budgeted_lora cell of {BEYOND}; expected at least one")
    return listed.assign(rule=rules_of(listed), order=listed["order"].replace("", None).fillna("mac"))


def modules(results: Results) -> pd.DataFrame | None:
    """What is known of each projection of the untrained student, by name; None if nothing is.

    Columns, as far as they were measured: `macs`; `kept_energy` and `kept_output_energy`, shares in [0, 1] within
    rank r; estimated harm per MAC by each order (`mac` is the paper's: the cheapest first); and the increase of the
    student's loss in nats when that dense path alone goes, for every start of `PROJECTION_STARTS`.
    """
    listed = students(results)
    columns: dict[str, pd.Series] = {}
    for row in listed[listed["rank_step"].isna()].sort_values(["tokens", "seed"], kind="stable").itertuples():
        structure = results.json(FILES["compression"].format(cell=row.cell, variant=DEFAULT_VARIANT))
        low_rank = (results.json(FILES["train"].format(cell=row.cell)) or {}).get("low_rank") or {}
        if structure is None or row.order == "mac":
            continue
        names = [module["name"] for module in structure["modules"]]
        columns["macs"] = pd.Series([module["dense_macs"] for module in structure["modules"]], names)
        for name, values in ((row.order, low_rank.get("scores")), *((key, low_rank.get(key)) for key in SHARES)):
            if values is not None and name not in columns:
                columns[name] = pd.Series(values, names)
    if "macs" not in columns:
        return None
    projections = pd.DataFrame(columns | {"mac": columns["macs"]})
    statistics = results.json(f"students/{listed['init'].iloc[0]}/statistics.json") or {}
    removals = statistics.get("removals")
    return projections.join(pd.DataFrame(removals).set_index("name")) if removals else projections


def last_dense(results: Results, group: pd.DataFrame) -> set[str] | None:
    """Projections whose dense path is still there after the last step of a group's first cell; None without one."""
    retention = results.retention(group.sort_values("seed")["cell"].iloc[0]) if len(group) else None
    return None if retention is None else {name for name, d in retention.iloc[-1].items() if d > 0.0}
