"""Numbers for what the page says of other rules than the paper's; the sentences stand in beyond.html.j2."""

from typing import Any

import pandas as pd

from budgeted_lora.reporting.contents import CONTROLS
from budgeted_lora.reporting.figures.beyond_why import PROJECTION_STARTS, modules, students
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Record
from budgeted_lora.reporting.tables.beyond import ORDERS, PAPER, REFERENCES, UNDISTILLED
from budgeted_lora.reporting.tables.controls import NEAR, SMALLER, control_runs
from budgeted_lora.reporting.uncertainty import lines


def findings(results: Results, numbers: pd.DataFrame) -> dict[str, Any] | None:
    """What beyond.html.j2 shows, from the numbers of the table `beyond`; None if no budgeted student was scored."""
    scored = numbers[numbers["ppl"].notna()]
    budgeted = scored[(scored["method"] == "budgeted_lora") & scored["student_ffn"].isna()]
    if budgeted.empty:
        return None
    usual = budgeted["tokens"].min()
    winners = [
        winner(budgeted, group.loc[group["ppl"].idxmin()].to_dict())
        for _, group in budgeted[budgeted["tokens"] == usual].groupby("budget", sort=True)
    ][::-1]
    best = {one["best"]["budget"]: one["best"] for one in winners}
    return {
        "paper_rule": PAPER,
        "winners": winners,
        "longer": [row for budget in best for row in longer_runs(budgeted, budget, usual)],
        "references": reference_runs(scored, usual),
        "undistilled": undistilled(scored, best),
        "controls": control_pairs(results, list(best.values())),
        "reasons": reasons(results),
    }


def winner(budgeted: pd.DataFrame, best: Record) -> Record:
    """The lowest rule of one budget, the paper's and the next, and how many were tried."""
    rivals = budgeted[(budgeted["budget"] == best["budget"]) & (budgeted["tokens"] == best["tokens"])]
    others = rivals[~rivals["rule"].isin([best["rule"], PAPER])]
    second = others.loc[others["ppl"].idxmin()].to_dict() if len(others) else None
    paper = at(budgeted, PAPER, best["budget"], best["tokens"])
    return {"best": best, "paper": paper, "second": second, "rivals": len(rivals)}


def longer_runs(budgeted: pd.DataFrame, budget: float, usual: float) -> list[Record]:
    """First seeds of the paper's rule and of another, at the usual and at more tokens."""
    longer = budgeted[(budgeted["budget"] == budget) & (budgeted["tokens"] > usual) & (budgeted["rule"] != PAPER)]
    rows = []
    for row in longer.to_dict("records"):
        before, paper = at(budgeted, row["rule"], budget, usual), at(budgeted, PAPER, budget, usual)
        paper_after = at(budgeted, PAPER, budget, row["tokens"])
        if before and paper and paper_after:
            ppl = [one["ppl_first_seed"] for one in (paper, paper_after, before, row)]
            times = row["tokens"] / usual
            rows.append({"budget": budget, "rule": row["rule"], "times": times, "ppl": ppl})
    return rows


def reference_runs(scored: pd.DataFrame, usual: float) -> list[Record]:
    """KD Full and KD LoRA at the usual and at more tokens: the level that a gap would close on."""
    rows = []
    for name in REFERENCES.values():
        mine = scored[scored["rule"] == name].sort_values("tokens").to_dict("records")
        first = [row for row in mine if row["tokens"] == usual]
        longer = [row | {"times": row["tokens"] / usual} for row in mine if row["tokens"] > usual]
        if first:
            rows.append({"rule": name, "first": first[0], "longer": longer})
    return rows


def undistilled(scored: pd.DataFrame, best: dict[float, Record]) -> list[Record]:
    """The same MACs cut from the untrained student: what distillation buys."""
    cut = scored[scored["rule"].str.startswith(UNDISTILLED)]
    return [
        {
            "budget": budget,
            "cut": [row | {"by": row["rule"].removeprefix(UNDISTILLED).strip()} for row in group.to_dict("records")],
            "best": best.get(budget),
        }
        for budget, group in cut.groupby("budget", sort=False)
    ]


def control_pairs(results: Results, best: list[Record]) -> list[Record]:
    """A smaller KD Full student beside the best rule of nearly the same MACs: what a reader would do instead."""
    if CONTROLS not in results.tables:
        return []
    controls = lines(control_runs(results))
    rows = []
    for control in controls[(controls["kind"] == SMALLER) & controls["ppl"].notna()].to_dict("records"):
        near = min(best, key=lambda row: abs(row["macs"] / control["macs"] - 1.0))
        if abs(near["macs"] / control["macs"] - 1.0) < NEAR:
            rows.append({"control": control, "best": near, "macs": near["macs"] / control["macs"]})
    return rows


def reasons(results: Results) -> dict[str, Any] | None:
    """What a low-rank path can hold, what each removal alone costs, and how well each order foresees that."""
    projections = modules(results)
    if projections is None:
        return None
    why: dict[str, Any] = {"energy": None, "starts": [], "orders": [], "sums": None}
    if {"kept_energy", "kept_output_energy"} <= set(projections):
        weights, outputs = projections["kept_energy"], projections["kept_output_energy"]
        why["energy"] = {
            "weights": weights.mean(), "outputs": outputs.mean(), "least": outputs.min(), "most": outputs.max(),
        }  # fmt: skip
    starts = [name for name in PROJECTION_STARTS if name in projections]
    if starts:
        dearest = projections["zero"].idxmax()
        why["starts"] = [(projections[name].mean(), PROJECTION_STARTS[name]) for name in starts]
        why["dearest"] = {
            "name": dearest.removeprefix("model.layers."),
            "zero": projections["zero"].max(),
            "svd": projections["activation_svd"][dearest],
        }
        why["orders"], why["count"] = order_agreement(projections), len(projections)
        why["sums"] = removal_sums(results, projections)
    return why


def removal_sums(results: Results, projections: pd.DataFrame) -> dict[str, Any] | None:
    """What the removals of each order cost one by one, summed, at the budget with most orders; cheapest first."""
    listed = students(results)
    budget = listed.groupby("budget")["order"].nunique().idxmax()
    ends = []
    for order, group in listed[listed["budget"] == budget].groupby("order"):
        retention = results.retention(group.sort_values(["tokens", "seed"])["cell"].iloc[0])
        if retention is not None:
            cost = (1.0 - retention.iloc[-1][projections.index]) @ projections["activation_svd"]
            ends.append((cost, ORDERS.get(order, "order by MACs")))
    return {"budget": budget, "ends": sorted(ends)} if ends else None


def order_agreement(projections: pd.DataFrame) -> list[tuple[float, str]]:
    """How well each order agrees with the loss that removals really cost per MAC, by rank correlation."""
    ranks = projections.rank()
    cost = projections["activation_svd"].div(projections["macs"]).rank()
    orders = {"MACs, the paper's": "mac", "energy": "energy", "outputs": "activation", "gradient": "gradient"}
    return [(ranks[key].corr(cost), name) for name, key in orders.items() if key in projections]


def at(frame: pd.DataFrame, rule: str, budget: float, tokens: float) -> Record | None:
    """One line of the table, None where it was not run."""
    rows = frame[(frame["rule"] == rule) & (frame["budget"] == budget) & (frame["tokens"] == tokens)]
    return None if rows.empty else rows.iloc[0].to_dict()
