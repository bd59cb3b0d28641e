"""What the page says of other rules than the paper's: which is lowest at each budget, by how much, at what cost."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.beyond import BEYOND, PAPER, UNDISTILLED, by_rule, rule_ink, rule_of
from budgeted_lora.reporting.controls import SMALLER, control_runs
from budgeted_lora.reporting.layout import number
from budgeted_lora.reporting.load import Results
from budgeted_lora.reporting.seeds import lines
from budgeted_lora.reporting.style import BLACK, SHORT, clip_start, shade_decay

BEYOND_WHY = "beyond_why"
UNTESTED = (
    "Not tested: any of this at the paper's width, on its corpus, or over billions of tokens. Whether the distance is "
    "still there after 2.55 billion tokens, only a run at that scale can show; config/recommended.yaml has the keys."
)


def findings(results: Results, numbers: pd.DataFrame) -> list[str]:
    """Sentences for the page, each from the numbers of the table `beyond`; none for what was not run."""
    there = numbers[numbers["ppl"].notna()]
    budgeted = there[there["method"] == "budgeted_lora"]
    if budgeted.empty:
        return []
    usual = budgeted["tokens"].min()
    best = {
        budget: group.loc[group["ppl"].idxmin()]
        for budget, group in budgeted[budgeted["tokens"] == usual].groupby("budget", sort=True)
    }
    found = [winner_text(budgeted, row) for _, row in sorted(best.items(), reverse=True)]
    found += [text for budget in sorted(best, reverse=True) for text in longer_texts(budgeted, budget, usual)]
    found += undistilled_texts(there, best)
    found += control_texts(results, best)
    return [*found, *energy_texts(results), UNTESTED]


def winner_text(budgeted: pd.DataFrame, best: pd.Series) -> str:
    """The lowest rule of one budget beside the paper's."""
    paper = at(budgeted, PAPER, best["budget"], best["tokens"])
    head = f"F = {best['budget']:.1f}: "
    if paper is None:
        return f"{head}{best['rule']} is lowest, {perplexity(best)}; the paper's rule was not run there."
    if best["rule"] == PAPER:
        return f"{head}no rule that was tried is below the paper's, {perplexity(paper)}."
    over_seeds = pd.notna(best["to_paper_sd"])
    spread = best["to_paper_sd"] if over_seeds else best["to_paper_se"]
    kind = "standard deviation over shared seeds" if over_seeds else "standard error over windows, one seed"
    return (
        f"{head}{best['rule']} is lowest, {perplexity(best)} against {perplexity(paper)} of the paper's rule "
        f"({number(best['to_paper'], 1)}, {kind} {number(spread, 1)}), with "
        f"{best['macs'] / paper['macs']:.2f} times its multiply-accumulates and "
        f"{best['train_seconds'] / paper['train_seconds']:.2f} times its seconds of training."
    )


def longer_texts(budgeted: pd.DataFrame, budget: float, usual: float) -> list[str]:
    """What more tokens do to the distance between the paper's rule and the others."""
    texts = []
    longer = budgeted[(budgeted["budget"] == budget) & (budgeted["tokens"] > usual) & (budgeted["rule"] != PAPER)]
    for row in longer.itertuples():
        before, paper = at(budgeted, row.rule, budget, usual), at(budgeted, PAPER, budget, usual)
        paper_after = at(budgeted, PAPER, budget, row.tokens)
        if before is None or paper is None or paper_after is None:
            continue
        texts.append(
            f"F = {budget:.1f} with {row.tokens / usual:.0f} times the tokens: the paper's rule goes from "
            f"{number(paper['ppl'], 1)} to {number(paper_after['ppl'], 1)}, {row.rule} from "
            f"{number(before['ppl'], 1)} to {number(row.ppl, 1)}; the ratio of the two was "
            f"{paper['ppl'] / before['ppl']:.2f} and is then {paper_after['ppl'] / row.ppl:.2f}."
        )
    return texts


def undistilled_texts(there: pd.DataFrame, best: dict[float, pd.Series]) -> list[str]:
    """What distillation buys: the same MACs cut from the untrained student."""
    cut = there[there["rule"].str.startswith(UNDISTILLED)]
    return [
        f"Without distillation, cut to the MACs of F = {budget:.1f}: "
        + " and ".join(
            f"{number(row.ppl, 0)} {row.rule.removeprefix(UNDISTILLED).strip()}" for row in group.itertuples()
        )
        + (f"; the best distilled one has {number(best[budget]['ppl'], 1)}." if budget in best else ".")
        for budget, group in cut.groupby("budget", sort=False)
    ]


def control_texts(results: Results, best: dict[float, pd.Series]) -> list[str]:
    """Beside them, what a reader would do instead: a smaller student without any of this, at the same MACs."""
    if not len(results.listed("controls")):
        return []
    found = lines(results, control_runs(results))
    texts = []
    for row in found[(found["kind"] == SMALLER) & found["ppl"].notna()].itertuples():
        near = min(best.values(), key=lambda entry: abs(entry["macs"] / row.macs - 1.0))
        if abs(near["macs"] / row.macs - 1.0) < 0.1:
            texts.append(
                f"A smaller KD Full student of nearly the same MACs ({near['macs'] / row.macs:.2f} times fewer than at "
                f"F = {near['budget']:.1f}) has {number(row.ppl, 1)}: the best rule there is "
                f"{'below' if near['ppl'] < row.ppl else 'above'} it, {number(near['ppl'], 1)}."
            )
    return texts


def energy_texts(results: Results) -> list[str]:
    """Why: what a low-rank path can hold of weights and of outputs."""
    record = decided(results)
    if record is None:
        return []
    about = record[1]
    ranks = about["ranks"]
    rank = f"rank {ranks[0]}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
    return [
        f"Why: at {rank} the best approximation holds {100 * np.mean(about['kept_energy']):.0f} % of the energy of a "
        f"weight matrix on average, but {100 * np.mean(about['kept_output_energy']):.0f} % of that of its outputs, and "
        f"between {100 * min(about['kept_output_energy']):.0f} and {100 * max(about['kept_output_energy']):.0f} % "
        "of it depending on the projection, which is what the order goes by."
    ]


def beyond_why(results: Results) -> Figure:
    """Training loss of the rules along the schedule, and what rank r leaves out of each projection."""
    listed = students(results)
    budget = listed.groupby("budget")["rule"].nunique().idxmax()
    mine = listed[(listed["budget"] == budget) & (listed["tokens"] == listed["tokens"].min())]
    record = decided(results, budget=budget)
    figure = plt.figure(figsize=(7.2, 7.4 if record else 3.8))
    grid = figure.add_gridspec(2 if record else 1, 2, height_ratios=[1.25, 1] if record else [1])
    draw_losses(figure.add_subplot(grid[0, :]), results, mine, budget=budget)
    if record:
        row, about = record
        names = list(results.retention(row.cell).columns)
        marks = {rule: last_dense(results, mine[mine["rule"] == rule]) for rule in (PAPER, row.rule)}
        for position, (key, title) in enumerate((("kept_energy", "weights"), ("kept_output_energy", "outputs"))):
            axes = figure.add_subplot(grid[1, position])
            draw_left_out(axes, names, 1.0 - np.array(about[key]), title=title, marks=marks)
    return figure


def draw_losses(axes: Axes, results: Results, mine: pd.DataFrame, *, budget: float) -> None:
    """Loss over steps, a line a rule (first seed), the stretch of the schedule shaded."""
    for position, (rule, group) in enumerate(by_rule(mine.assign(speedup_vs_dense=0.0))):
        history = results.history(group.sort_values("seed")["cell"].iloc[0])
        if history is None:
            continue
        smooth = history["loss"].rolling(max(1, len(history) // 30), min_periods=1, center=True).mean()
        axes.plot(history["step"], smooth, color=rule_ink(rule, position), linewidth=1.4, label=rule)
        shade_decay(axes, history, history["step"])
    axes.set_title(f"Training loss at F = {budget:.1f}; grey: dense paths fade", loc="left")
    axes.set_xlabel("Step")
    axes.set_ylabel("Loss (nats)")
    axes.legend(fontsize="x-small", ncols=2, loc="upper right")
    clip_start(axes)


def draw_left_out(
    axes: Axes, names: list[str], left_out: np.ndarray, *, title: str, marks: dict[str, set[str] | None]
) -> None:
    """Heat map, layers down and projections across, of the energy outside the first r directions, in [0, 1]."""
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    values = left_out.reshape(-1, len(kinds))
    image = axes.imshow(values, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    axes.set_xticks(range(len(kinds)), [SHORT.get(kind, kind) for kind in kinds], fontsize="small")
    axes.set_yticks(range(len(values)))
    axes.set_ylabel("Layer")
    for offset, marker, (rule, dense) in zip((-0.2, 0.2), ("o", "^"), marks.items(), strict=False):
        spots = [divmod(names.index(name), len(kinds)) for name in sorted(dense or ())]
        if spots:
            rows, columns = np.array(spots).T
            face = "white" if rule == PAPER else "#FF6A4D"
            axes.scatter(
                columns + offset, rows, s=26, marker=marker, color=face, edgecolor=BLACK, linewidth=0.7, label=rule
            )
    axes.set_title(f"Energy of {title} outside rank r", loc="left", fontsize="small")
    axes.spines[:].set_visible(False)
    if title == "outputs":
        axes.figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="x-small",
            title="still dense at the end under", title_fontsize="x-small",
        )  # fmt: skip


def students(results: Results) -> pd.DataFrame:
    """The budgeted students of the table, each with its `rule`.

    Raises:
        BadInput: there is none.
    """
    listed = results.listed(BEYOND)
    listed = listed[listed["method"] == "budgeted_lora"].reset_index(drop=True)
    if listed.empty:
        raise BadInput(f"{results.root / 'cells.csv'}: no budgeted_lora cell of {BEYOND}; expected at least one")
    return listed.assign(rule=[rule_of(row) for _, row in listed.iterrows()])


def decided(results: Results, *, budget: float | None = None) -> tuple[Any, dict[str, Any]] | None:
    """The first student (a row of `students`) whose order came from its outputs, and its record of the start."""
    for row in students(results).sort_values(["tokens", "seed"], kind="stable").itertuples():
        if pd.isna(row.order) or pd.notna(row.rank_step) or (budget is not None and row.budget != budget):
            continue
        about = (results.json(f"cells/{row.cell}/train.json") or {}).get("low_rank") or {}
        if about.get("kept_output_energy"):
            return row, about
    return None


def at(frame: pd.DataFrame, rule: str, budget: float, tokens: float) -> pd.Series | None:
    """One line of the table, None where it was not run."""
    found = frame[(frame["rule"] == rule) & (frame["budget"] == budget) & (frame["tokens"] == tokens)]
    return None if found.empty else found.iloc[0]


def perplexity(row: pd.Series) -> str:
    """A perplexity with the number of its seeds: 31.7 (3 seeds)."""
    seeds = f"{row['seeds']:.0f} seeds" if row["seeds"] > 1 else "one seed"
    return f"{number(row['ppl'], 1)} ({seeds})"


def last_dense(results: Results, group: pd.DataFrame) -> set[str] | None:
    """Projections whose dense path is still there after the last step of a group's first cell; None without one."""
    retention = results.retention(group.sort_values("seed")["cell"].iloc[0]) if len(group) else None
    return None if retention is None else {name for name, d in retention.iloc[-1].items() if d > 0.0}
