"""Beyond the paper: perplexity of every rule against MAC speedup."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from budgeted_lora.reporting.contents import CONTROLS
from budgeted_lora.reporting.figures.style import BLACK, GREY, MARKERS, OTHER, colour
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.tables.beyond import PAPER, REFERENCES, UNDISTILLED, beyond_lines
from budgeted_lora.reporting.tables.controls import SMALLER, control_runs
from budgeted_lora.reporting.uncertainty import lines

INKS = ("#0072B2", "#D55E00", "#00875F", "#B8548B", "#D98200", "#3A9BD9", "#17A2B8", "#6A51A3", "#E7298A", "#66A61E")


def beyond_figure(results: Results) -> Figure:
    """Perplexity against MAC speedup, a line per rule, a band over seeds; controls, KD Full and KD LoRA beside them."""
    frame = beyond_lines(results)
    frame = frame[frame["ppl"].notna()]
    figure, axes = plt.subplots(figsize=(7.2, 6.6))
    longest, shortest = frame["tokens"].max(), frame["tokens"].min()
    budgeted = frame[frame["method"] == "budgeted_lora"]
    inks = rule_inks(budgeted)
    for position, (rule, group) in enumerate(by_rule(budgeted)):
        for tokens, mine in group.groupby("tokens"):
            style, label = ("-", rule) if tokens == shortest else ("--", None)
            look = {"color": inks[rule], "marker": MARKERS[position % len(MARKERS)], "linestyle": style}
            axes.plot(mine["speedup_vs_dense"], mine["ppl"], label=label, **look)
            several = mine[mine["seeds"] > 1]
            ends = several["speedup_vs_dense"], several["ppl_low"], several["ppl_high"]
            axes.vlines(*ends, color=inks[rule], linewidth=7, alpha=0.3)
    dense = frame[(frame["method"] == "kd_full") & frame["student_ffn"].notna()]
    for row in frame[frame["rule"].isin(REFERENCES.values())].itertuples():
        longer, ink = row.tokens != shortest, colour(row.method, row.budget)
        style, label = ("--", None) if longer else (":", row.rule)
        axes.axhline(row.ppl, color=ink, linestyle=style, linewidth=0.9, label=label)
    cut = frame[frame["rule"].str.startswith(UNDISTILLED)]
    axes.plot(cut["speedup_vs_dense"], cut["ppl"], "x", color=GREY, label=UNDISTILLED if len(cut) else None)
    if CONTROLS in results.tables:
        controls = lines(control_runs(results))
        dense = pd.concat([dense, controls[controls["kind"] == SMALLER]])
    dense = dense.drop_duplicates(["student_layers", "student_ffn", "tokens"])
    name = "smaller KD Full" if len(dense) else None
    axes.plot(dense["speedup_vs_dense"], dense["ppl"], "X", color=OTHER, label=name)
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
