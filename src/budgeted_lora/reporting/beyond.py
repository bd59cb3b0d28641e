"""Beyond the paper: other starts, orders and ranks at the paper's MACs, beside its rule, the controls and KD LoRA."""

import re

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from budgeted_lora.reporting.controls import SMALLER, control_runs
from budgeted_lora.reporting.grouping import Settings, caveats
from budgeted_lora.reporting.layout import ABSENT, Table, number
from budgeted_lora.reporting.load import Published, Results
from budgeted_lora.reporting.seeds import (
    Drawn,
    difference_text,
    draw,
    lines,
    ppl_texts,
    runs,
    several_seeds,
)
from budgeted_lora.reporting.style import BLACK, GREY, MARKERS, OTHER, colour

BEYOND = "beyond"
PAPER = "paper's rule"
UNDISTILLED = "no distillation, SVD"
STARTS = {"svd": "SVD of W", "activation_svd": "SVD of outputs"}
ORDERS = {"energy": "order by energy", "activation": "order by outputs", "gradient": "order by gradient"}
INKS = ("#0072B2", "#D55E00", "#00875F", "#B8548B", "#D98200", "#3A9BD9", "#8A6D3B")
PARTS = ("perplexity", "train", "structure", "speed")


def rule_of(row: pd.Series) -> str:
    """What a student does otherwise than the paper's, in words."""
    if row["method"] == "kd_lora":
        return "KD LoRA"
    if str(row.get("undistilled")) == "True":
        return UNDISTILLED
    words = [STARTS.get(row.get("low_rank_init")), ORDERS.get(row.get("order"))]
    words += ["allocated ranks"] if pd.notna(row.get("rank_step")) else []
    return " + ".join(word for word in words if word) or PAPER


def beyond_lines(results: Results, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row a rule, budget and length of training (`seeds.lines`), with its `rule` and ICL composite `icl`.

    Compression settings that truncate the undistilled student make rows of their own: `rule` says by what.
    """
    scores = scored(results)
    frame = lines(results, scores, drawn)
    frame["rule"] = [
        f"{UNDISTILLED} by {'outputs' if 'by-outputs' in row['setting'] else 'weights'}"
        if "undistilled" in row["setting"]
        else rule_of(row)
        for _, row in frame.iterrows()
    ]
    return frame


def scored(results: Results) -> pd.DataFrame:
    """Runs of the table with their in-context composites, NaN where none was measured."""
    scores = runs(results, BEYOND, parts=PARTS)
    whole = [not (row.method == "kd_full" and row.setting == "default") for row in scores.itertuples()]
    scores = scores[whole].reset_index(drop=True)
    cut = (scores["setting"] != "default").to_numpy()  # nobody trains or times what is cut without distillation
    for name in ("train_seconds", "tokens", *(name for name in scores if name.startswith("measured_"))):
        scores[name] = scores[name].astype(float).mask(cut)
    scores["budget"] = scores["budget"].where(~cut, [budget_cut_to(name) for name in scores["setting"]])
    composites = []
    for row in scores.itertuples():
        found = results.json(f"{results.compressed(row.cell)}/icl.json") if row.setting == "default" else None
        composites.append(float("nan") if found is None else found["composite"])
    return scores.assign(icl=composites)


def budget_cut_to(setting: str) -> float:
    """The budget whose MACs a compression setting brings a student to; NaN where it names none."""
    found = re.search(r"macsF([0-9.]+)", setting)
    return float(found[1]) if found else float("nan")


def beyond(results: Results, published: Published, settings: Settings) -> Table:
    """Every rule beside the paper's at the same budget and length: perplexity, paired difference, ICL, speed."""
    drawn = draw(results, scored(results), settings)
    frame = beyond_lines(results, drawn)
    frame = frame.sort_values(["tokens", "budget", "ppl"], na_position="last", kind="stable").reset_index(drop=True)
    paper = {(row.tokens, row.budget): row.runs for row in frame.itertuples() if row.rule == PAPER}
    differences = [
        drawn.difference(row.runs, paper[row.tokens, row.budget])
        if row.rule != PAPER and (row.tokens, row.budget) in paper
        else None
        for row in frame.itertuples()
    ]
    names = ["rule", "method", "budget", "tokens", "seeds", "ppl", "ppl_se", "ppl_sd", "icl", "kept", "svd", "dropped"]
    names += ["macs", "speedup_vs_dense", "measured_modules", "measured_prefill", "measured_decode", "train_seconds"]
    numbers = frame[names].assign(
        to_paper=[entry.value if entry else float("nan") for entry in differences],
        to_paper_se=[entry.standard_error if entry else float("nan") for entry in differences],
        to_paper_sd=[entry.sd if entry else float("nan") for entry in differences],
    )
    shown = pd.DataFrame(
        {
            "Rule": frame["rule"],
            "F": [ABSENT if pd.isna(value) else number(value, 1) for value in frame["budget"]],
            "Tokens": [number(value, 0) for value in frame["tokens"]],
            "PPL": ppl_texts(frame),
            "To the paper's rule": [difference_text(entry) for entry in differences],
            "ICL %": [number(100 * value, 1) for value in frame["icl"]],
            "Kept/svd/dropped": [f"{row.kept:.0f}/{row.svd:.0f}/{row.dropped:.0f}" for row in frame.itertuples()],
            "MAC speedup": [number(value, 2, unit="×") for value in frame["speedup_vs_dense"]],
            "Measured: modules": [number(value, 2, unit="×") for value in frame["measured_modules"]],
            "Measured: prefill": [number(value, 2, unit="×") for value in frame["measured_prefill"]],
        }
    )
    notes = [
        "Rules differ in where the low-rank path starts (the paper: A at random, B at zero), in which dense path goes "
        "first (the paper: the cheapest) and in how ranks are spread (the paper: evenly). Budget, low-rank MACs and "
        "train compute are the paper's; which modules stay dense depends on the order, so MACs differ where it does.",
        "The difference is paired by window and by seed; negative means better than the paper's rule.",
        "No distillation: the untrained student cut by truncated SVD to the same MACs, by weights or by outputs.",
        *several_seeds(frame["seeds"]),
    ]
    return Table(BEYOND, "Beyond the paper: other rules at the same budget", numbers, shown, notes + caveats(results))


def beyond_figure(results: Results) -> Figure:
    """Perplexity against MAC speedup: a line a rule, band over seeds; controls, KD Full and KD LoRA beside them."""
    frame = beyond_lines(results)
    figure, axes = plt.subplots(figsize=(7.2, 5.4))
    longest, shortest = frame["tokens"].max(), frame["tokens"].min()
    budgeted = frame[frame["method"] == "budgeted_lora"]
    for position, (rule, group) in enumerate(by_rule(budgeted)):
        ink = rule_ink(rule, position)
        for tokens, mine in group.groupby("tokens"):
            marker, longer = MARKERS[position % len(MARKERS)], tokens != shortest
            draw_line(axes, mine, ink=ink, marker=marker, dashed=longer, label=rule)
    cut = frame[frame["rule"].str.startswith(UNDISTILLED)]
    axes.plot(cut["speedup_vs_dense"], cut["ppl"], "x", color=GREY, label=UNDISTILLED if len(cut) else None)
    draw_references(axes, results)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="x-small")
    axes.set_xlabel("Speedup of the projections by MAC count (not a timing)")
    axes.set_ylabel("Validation perplexity (log scale, lower is better)")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small")
    if longest != shortest:
        axes.text(
            0.99, 0.02, f"dashed: {longest / shortest:.0f} times the tokens", transform=axes.transAxes, ha="right",
            fontsize="small", color=GREY,
        )  # fmt: skip
    return figure


def by_rule(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Lines by rule, the paper's first, then those tried at most budgets."""
    count = frame["rule"].value_counts()
    names = sorted(count.index, key=lambda rule: (rule != PAPER, -count[rule], rule))
    return [(rule, frame[frame["rule"] == rule].sort_values("speedup_vs_dense")) for rule in names]


def rule_ink(rule: str, position: int) -> str:
    """The colour of a rule that stands at a position of `by_rule`."""
    return BLACK if rule == PAPER else INKS[(position - 1) % len(INKS)]


def draw_line(axes: Axes, group: pd.DataFrame, *, ink: str, marker: str, dashed: bool, label: str) -> None:
    """One rule's points from the dense end to the smallest, with the range of their seeds as a band."""
    x, y = group["speedup_vs_dense"], group["ppl"]
    axes.plot(x, y, color=ink, marker=marker, linestyle="--" if dashed else "-", label=None if dashed else label)
    several = group[group["seeds"] > 1]
    axes.vlines(several["speedup_vs_dense"], several["ppl_low"], several["ppl_high"], color=ink, linewidth=7, alpha=0.3)


def draw_references(axes: Axes, results: Results) -> None:
    """KD Full and KD LoRA as levels, the smaller KD Full students of equal MACs as brown points."""
    own = lines(results, results.scores("table2", parts=["perplexity"]))
    first = own["teacher"].iloc[0]
    for row in own[(own["teacher"] == first) & (own["method"] != "budgeted_lora")].itertuples():
        name = "KD Full" if row.method == "kd_full" else "KD LoRA"
        axes.axhline(row.ppl, color=colour(row.method, row.budget), linestyle=":", linewidth=1.2, label=name)
    if len(results.listed("controls")):
        found = lines(results, control_runs(results))
        smaller = found[found["kind"] == SMALLER]
        axes.plot(smaller["speedup_vs_dense"], smaller["ppl"], "X", color=OTHER, label="control: smaller KD Full")
