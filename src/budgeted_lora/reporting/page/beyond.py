"""What the page says of other rules than the paper's: which is lowest at each budget, by how much, at what cost."""

import pandas as pd

from budgeted_lora.reporting.figures.beyond import PROJECTION_STARTS, modules, students
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import number
from budgeted_lora.reporting.tables.beyond import (
    ORDERS,
    PAPER,
    REFERENCES,
    UNDISTILLED,
)
from budgeted_lora.reporting.tables.controls import SMALLER, control_runs
from budgeted_lora.reporting.uncertainty import lines

CHOSEN = (
    "The lowest of several rules is named here on the text that all of them are scored on, which favours it a little; "
    "seeds change the order of the training windows and, where low-rank paths start at zero, the draw of A."
)
UNTESTED = (
    "Not tested: any of this at the paper's width, on its corpus, or over billions of tokens. Whether the distance is "
    "still there after 2.55 billion tokens, only a run at that scale can show; config/recommended.yaml has the keys."
)
NOTICEABLE = 1.05  # ratio of perplexities after and before compression that a sentence is worth


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
    budgets = sorted(best, reverse=True)
    found = [winner_text(budgeted, best[budget]) for budget in budgets]
    found += [text for budget in budgets for text in use_texts(budgeted, best[budget])]
    found += [text for budget in budgets for text in longer_texts(budgeted, budget, usual)]
    found += reference_texts(there, usual) + undistilled_texts(there, best) + control_texts(results, best)
    return [*found, *reasons(results), CHOSEN, UNTESTED]


def winner_text(budgeted: pd.DataFrame, best: pd.Series) -> str:
    """The lowest rule of one budget, beside the paper's and the next."""
    rivals = budgeted[(budgeted["budget"] == best["budget"]) & (budgeted["tokens"] == best["tokens"])]
    paper = at(budgeted, PAPER, best["budget"], best["tokens"])
    head = f"F = {best['budget']:.1f}, {number(best['tokens'], 0)} tokens: "
    if paper is None:
        return (
            f"{head}{best['rule']} is lowest of {len(rivals)} rules, {perplexity(best)}; the paper's was not run there."
        )
    if best["rule"] == PAPER:
        return f"{head}no rule that was tried is below the paper's, {perplexity(paper)}."
    text = (
        f"{head}{best['rule']} is lowest of {len(rivals)} rules, {perplexity(best)}, against "
        f"{perplexity(paper)} of the paper's (paired: {apart(best, 'to_paper')}), with "
        f"{best['macs'] / paper['macs']:.2f} times its multiply-accumulates and "
        f"{best['executed_compute'] / paper['executed_compute']:.2f} times its training compute."
    )
    if paper["ppl"] > NOTICEABLE * paper["ppl_uncompressed"]:
        text += (
            f" Much of that is compression: before it the paper's rule has {number(paper['ppl_uncompressed'], 1)}, "
            f"{best['rule']} {number(best['ppl_uncompressed'], 1)}."
        )
    others = rivals[~rivals["rule"].isin([best["rule"], PAPER])]
    if len(others):
        second = others.loc[others["ppl"].idxmin()]
        told = "" if second["to_lowest_clear"] else ", not told apart"
        text += f" Next: {second['rule']}, {perplexity(second)} ({apart(second, 'to_lowest')}{told})."
    return text


def apart(row: pd.Series, name: str) -> str:
    """A difference of the table with its spread, and what the spread is: +0.6 ± 0.1 over seeds."""
    over_seeds = pd.notna(row[f"{name}_sd"])
    kind = "over shared seeds" if over_seeds else "over windows, one seed"
    spread = row[f"{name}_sd" if over_seeds else f"{name}_se"]
    return f"{row[name]:+.1f} ± {number(spread, 1)} {kind}"


def use_texts(budgeted: pd.DataFrame, best: pd.Series) -> list[str]:
    """What the lowest rule of a budget does in context and on a clock, beside the paper's."""
    paper = at(budgeted, PAPER, best["budget"], best["tokens"])
    if paper is None or best["rule"] == PAPER:
        return []
    parts = []
    if pd.notna(best["icl"]) and pd.notna(paper["icl"]):
        chance = best["icl_chance"]
        guessing = "both below guessing" if max(best["icl"], paper["icl"]) < chance else "guessing has"
        parts.append(
            f"in context {100 * best['icl']:.1f} %, {100 * paper['icl']:.1f} % with the paper's rule, {guessing} "
            f"{100 * chance:.1f} %"
        )
    if pd.notna(best["measured_prefill"]) and pd.notna(paper["measured_prefill"]):
        parts.append(
            f"measured against the dense student {best['measured_prefill']:.2f}\N{MULTIPLICATION SIGN} in prefill and "
            f"{best['measured_decode']:.2f}\N{MULTIPLICATION SIGN} in decoding, with the paper's rule "
            f"{paper['measured_prefill']:.2f}\N{MULTIPLICATION SIGN} and "
            f"{paper['measured_decode']:.2f}\N{MULTIPLICATION SIGN}"
        )
    return [f"F = {best['budget']:.1f}, {best['rule']}: " + "; ".join(parts) + "."] if parts else []


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
            f"F = {budget:.1f} with {row.tokens / usual:.0f} times the tokens, first seed: the paper's rule goes from "
            f"{number(paper['ppl_first_seed'], 1)} to {number(paper_after['ppl_first_seed'], 1)}, {row.rule} from "
            f"{number(before['ppl_first_seed'], 1)} to {number(row.ppl_first_seed, 1)}; the ratio of the two was "
            f"{paper['ppl_first_seed'] / before['ppl_first_seed']:.2f} and is then "
            f"{paper_after['ppl_first_seed'] / row.ppl_first_seed:.2f}."
        )
    return texts


def reference_texts(there: pd.DataFrame, usual: float) -> list[str]:
    """Where KD Full and KD LoRA stand, at the usual and at more tokens: the level that a gap would close on."""
    texts = []
    for name in REFERENCES.values():
        mine = there[there["rule"] == name].sort_values("tokens")
        if usual in set(mine["tokens"]):
            others = [
                f"{number(row.ppl, 1)} with {row.tokens / usual:.0f} times the tokens"
                for row in mine[mine["tokens"] > usual].itertuples()
            ]
            first = mine[mine["tokens"] == usual].iloc[0]
            texts.append(f"{name}, without any budget: " + ", ".join([perplexity(first), *others]) + ".")
    return texts


def undistilled_texts(there: pd.DataFrame, best: dict[float, pd.Series]) -> list[str]:
    """What distillation buys: the same MACs cut from the untrained student."""
    cut = there[there["rule"].str.startswith(UNDISTILLED)]
    return [
        f"Without distillation, every projection cut to the share of MACs that F = {budget:.1f} leaves: "
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
                f"A smaller KD Full student of nearly the same MACs (at F = {near['budget']:.1f} the best rule has "
                f"{near['macs'] / row.macs:.2f} times as many) has {number(row.ppl, 1)}: the best rule there is "
                f"{'below' if near['ppl'] < row.ppl else 'above'} it, {number(near['ppl'], 1)}."
            )
    return texts


def reasons(results: Results) -> list[str]:
    """Why: what a low-rank path can hold, what each removal alone costs, and how well each order foresees that."""
    found = modules(results)
    if found is None:
        return []
    texts = []
    if {"kept_energy", "kept_output_energy"} <= set(found):
        weights, outputs = found["kept_energy"], found["kept_output_energy"]
        texts.append(
            f"Why: at the rank of the low-rank paths the best approximation holds {100 * weights.mean():.0f} % of the "
            f"energy of a weight matrix on average, but {100 * outputs.mean():.0f} % of that of its outputs, from "
            f"{100 * outputs.min():.0f} to {100 * outputs.max():.0f} % depending on the projection."
        )
    starts = {name: found[name] for name in PROJECTION_STARTS if name in found}
    if starts:
        worst = starts["zero"].idxmax().removeprefix("model.layers.")
        each = ", ".join(
            f"{number(values.mean(), 3)} nats with {PROJECTION_STARTS[name]}" for name, values in starts.items()
        )
        texts.append(
            "Taking one dense path alone out of the untrained student raises its loss, averaged over projections, by "
            f"{each}; the dearest is {worst}, {number(starts['zero'].max(), 2)} nats with nothing in its place and "
            f"{number(starts['activation_svd'][starts['zero'].idxmax()], 2)} with the SVD of outputs."
        )
        texts += order_texts(found) + sum_texts(results, found)
    return texts


def sum_texts(results: Results, found: pd.DataFrame) -> list[str]:
    """What the removals of each order cost one by one, summed, at the budget with most orders."""
    listed = students(results)
    budget = listed.groupby("budget")["order"].nunique().idxmax()
    ends = {}
    for order, group in listed[listed["budget"] == budget].groupby("order"):
        retention = results.retention(group.sort_values(["tokens", "seed"])["cell"].iloc[0])
        if retention is not None:
            ends[ORDERS.get(order, "order by MACs")] = (1.0 - retention.iloc[-1][found.index]) @ found["activation_svd"]
    each = ", ".join(
        f"{number(value, 2)} for the {name}" for name, value in sorted(ends.items(), key=lambda item: item[1])
    )
    return [f"Over all that is removed at F = {budget:.1f} these losses sum to, in nats: {each}."] if ends else []


def order_texts(found: pd.DataFrame) -> list[str]:
    """How well each order agrees with the loss that removals really cost per MAC, by rank correlation."""
    ranks = found.rank()
    cost = found["activation_svd"].div(found["macs"]).rank()
    orders = {"MACs, the paper's": "mac", "energy": "energy", "outputs": "activation", "gradient": "gradient"}
    agreed = [f"{ranks[key].corr(cost):.2f} by {name}" for name, key in orders.items() if key in found]
    return [
        "How each order agrees with that loss per multiply-accumulate, the SVD of outputs in place (rank correlation "
        f"over {len(found)} projections, 1 is the same order): {', '.join(agreed)}."
    ]


def at(frame: pd.DataFrame, rule: str, budget: float, tokens: float) -> pd.Series | None:
    """One line of the table, None where it was not run."""
    found = frame[(frame["rule"] == rule) & (frame["budget"] == budget) & (frame["tokens"] == tokens)]
    return None if found.empty else found.iloc[0]


def perplexity(row: pd.Series) -> str:
    """A perplexity with the number of its seeds: 31.7 (3 seeds)."""
    seeds = f"{row['seeds']:.0f} seeds" if row["seeds"] > 1 else "one seed"
    return f"{number(row['ppl'], 1)} ({seeds})"
