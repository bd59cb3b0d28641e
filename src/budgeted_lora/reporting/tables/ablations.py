"""Tables 3 to 7, the LoRA construction sweep, and any other table of the configuration: one line per recipe.

A perplexity measured at another scale does not compare with a printed one, but an order does, and so does a distance
to the best row in per cent: these stand beside the paper's. At the paper's own scale its perplexities stand there too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import isqrt, nan
from typing import Any

import pandas as pd

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.grouping import METHODS
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import FILES, RECIPE, Results
from budgeted_lora.reporting.standing import PAPER_HIDDEN
from budgeted_lora.reporting.table import ABSENT, Column, Record, Table, csv_only, number
from budgeted_lora.reporting.tables.structure import average_rank
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import PPL, Bootstrap, Drawn, add_differences, difference_text, draw, lines

HEADINGS = {
    "method": "Method", "teacher": "Teacher", "init": "Start", "temperature": "T", "kd_weight": "a", "rank": "r",
    "alpha": "alpha", "budget": "F", "schedule": "Schedule", "controller": "Controller", "tokens": "Tokens",
    "student_layers": "Layers", "student_ffn": "FFN", "setting": "Compression", "elastic_budgets": "Trained for F of",
}  # fmt: skip
# What follows from another column, or only says how a run was cut into jobs.
FOLLOWS = {
    "steps", "schedule_start", "schedule_end", "batch_windows", "micro_batch_windows", "statistics_windows",
    "importance_windows",
}  # fmt: skip
# Words of a recipe in the order they are shown; numbers ascend.
WORDS = ("mixed", "middle", "last", "first", "scratch", "none", "short", "long")


@dataclass(frozen=True)
class Ablation:
    """What one ablation table is made from.

    Attributes:
        frame: its lines, sorted, with what `lines` gives, the distance to the best and the published values.
        keys: columns that tell its lines apart.
        drawn: bootstrap draws of its runs.
        printed: whether published values are in the frame.
    """

    results: Results
    frame: pd.DataFrame
    keys: list[str]
    drawn: Drawn
    printed: bool

    def table(self, more: pd.DataFrame | None = None, columns: Sequence[Column] = (), **values: Any) -> Table:
        """The table, with further values of each line and their columns; `values` choose between notes."""
        frame = self.frame if more is None else self.frame.join(more)
        counts = frame["tokens"].unique()
        if self.printed:
            values |= agreement(frame, self.drawn) | {"printed": True}
        values["tokens"] = int(counts[0]) if len(counts) == 1 else None
        return tabulate(self.results, rows=frame, columns=[*self.columns(), *columns], **values)

    def columns(self) -> list[Column]:
        """Columns that every ablation table has, in order."""

        def to_best(row: Record) -> str:
            return "best" if row["is_best"] else difference_text(row["to_best_difference"])

        columns = [Column(name, HEADINGS.get(name, name), text=partial(recipe_text, name)) for name in self.keys]
        columns += [] if "tokens" in self.keys else [Column("tokens")]
        columns += [*PPL, Column("to_best", "To the best", text=to_best)]
        columns += csv_only("to_best_se", "to_best_low", "to_best_high", "to_best_sd")
        columns += [percent("above_best_pct", "In %")]
        columns += [percent("above_best_pct_published", "In %, published", csv=False)] if self.printed else []
        columns += [Column("order", "Order", 0)]
        if self.printed:
            columns += [Column("", "Order, published", text=lambda row: number(row["order_published"], 0))]
            students = self.results.standing.students
            columns += [Column("ppl_published", "PPL, published", 2)] if students else []
            columns += csv_only("above_best_pct_published", "order_published")
        return columns


def measured(results: Results, published: Published, bootstrap: Bootstrap, *keys: str, source: str = "") -> Ablation:
    """Lines of an ablation table.

    Args:
        keys: columns that name a line; others in which the lines differ follow by themselves.
        source: where the paper prints its perplexities; without it nothing published is shown.
    """
    scores = results.runs()
    drawn = draw(results, scores, bootstrap)
    frame = lines(scores, drawn).rename(columns={"variant": "setting"})
    names = [*keys, *(name for name in varying(frame) if name not in keys)]
    frame = frame.sort_values(names, key=shown_order, kind="stable", ignore_index=True)
    best = frame["ppl"].idxmin() if frame["ppl"].notna().any() else None
    base = frame.loc[best, "runs"] if best is not None else None
    frame = add_differences(frame, "to_best", drawn, [base] * len(frame))
    frame["is_best"] = frame.index == best
    frame["above_best_pct"] = 100 * (frame["ppl"] / frame["ppl"].min() - 1)
    frame["order"] = frame["ppl"].rank(method="min")
    if source:
        scale = scale_to_paper(results, frame) if "rank" in keys else pd.Series(1.0, frame.index)
        rows = frame.to_dict("records")
        settings = [printed_setting(row, keys, factor) for row, factor in zip(rows, scale, strict=True)]
        ppl = [
            published.value(source, "ppl", row["method"], teacher=row["teacher"], setting=setting)
            for row, setting in zip(rows, settings, strict=True)
        ]
        frame["ppl_published"] = pd.Series(ppl, frame.index, dtype="float64")
        frame["above_best_pct_published"] = 100 * (frame["ppl_published"] / frame["ppl_published"].min() - 1)
        frame["order_published"] = frame["ppl_published"].rank(method="min")
        frame["printed_setting"] = settings
    return Ablation(results, frame, names, drawn, bool(source))


def printed_setting(row: Record, keys: Sequence[str], scale: float) -> str:
    """A line as the column `setting` of published.csv names it; ranks are scaled to the paper's width."""
    words = {
        "init": f"init={row['init']}", "temperature": f"T={row['temperature']}", "kd_weight": f"a={row['kd_weight']}",
        "budget": f"F={float(row['budget'])}", "schedule": f"schedule={row['schedule']}",
    }  # fmt: skip
    if "rank" in keys:
        words["rank"] = f"r={row['rank'] * scale:.0f} alpha={row['alpha'] * scale:.0f}"
    order = ("init", "temperature", "kd_weight", "rank", "budget", "schedule")
    return " ".join(words[name] for name in order if name in keys)


def sweep(
    results: Results, published: Published, bootstrap: Bootstrap, *, keys: tuple[str, ...], source: str = ""
) -> Table:
    """A table without further columns, see `measured`."""
    return measured(results, published, bootstrap, *keys, source=source).table()


table3 = partial(sweep, keys=("temperature", "kd_weight", "init"), source="Table 3")
table4 = partial(sweep, keys=("init",), source="Table 4")
table5 = partial(sweep, keys=("temperature", "kd_weight", "init"), source="Table 5")
lora_construction = partial(sweep, keys=("init",), source="Section C.2")
any_table = partial(sweep, keys=("method", "budget"))  # with whatever else the rows of the configuration differ in


def table6(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Rank of KD LoRA; a row is paired with the published one of the same rank over width."""
    ablation = measured(results, published, bootstrap, "rank", source="Table 6")
    paper_rank = ablation.frame["rank"] * scale_to_paper(results, ablation.frame)
    more = pd.DataFrame({"rank_over_hidden": paper_rank / PAPER_HIDDEN, "rank_published": paper_rank})
    columns = (Column("rank_over_hidden"), Column("rank_published", "r, published", 0))
    return ablation.table(more, columns, ranks_paired=True)


def table7(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Schedules of the budget: perplexity, train compute as scheduled and as executed, final average rank."""
    ablation = measured(results, published, bootstrap, "budget", "schedule", source="Table 7")
    more: dict[str, list[float]] = {"train_compute_published": [], "avg_rank_published": []}
    for row in ablation.frame.to_dict("records"):
        method, setting = row["method"], row["printed_setting"]
        compute = published.value("Table 7", "train_compute", method, setting=setting)
        rank = published.value("Section C.3", "avg_rank", method, teacher=row["teacher"], setting=setting)
        more["train_compute_published"].append(compute)
        more["avg_rank_published"].append(rank)
    columns = (
        Column("train_compute", "Train compute, scheduled", 2),
        Column("train_compute_executed", "Executed", 2),
        Column("avg_rank"),
        Column("train_compute_published", "Train compute, published", 2),
        Column("", "Avg. rank (of r)", text=average_rank),
        Column("avg_rank_published", "Avg. rank, published (of 128)", 0),
    )
    values = pd.DataFrame(more).assign(train_compute_executed=ablation.frame["executed_compute"])
    return ablation.table(values, columns, schedules=True)


def scale_to_paper(results: Results, frame: pd.DataFrame) -> pd.Series:
    """The paper's width over that of each line's student, which its query projections tell."""
    widths = []
    for cell in frame["cell"]:
        record = results.json(FILES["compression"].format(cell=cell, variant=DEFAULT_VARIANT)) or {"modules": []}
        sizes = [module["dense_macs"] for module in record["modules"] if module["name"].endswith("q_proj")]
        widths.append(float(isqrt(sizes[0])) if sizes else nan)
    return PAPER_HIDDEN / pd.Series(widths, frame.index)


def shown_order(column: pd.Series) -> pd.Series:
    """Sort key of a column of the recipe: numbers as they are, words as `WORDS` has them, others as they come."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    others = [word for word in column.unique() if word not in WORDS]
    return column.map({word: place for place, word in enumerate([*WORDS, *others])})


def varying(frame: pd.DataFrame) -> list[str]:
    """Columns of the recipe in which lines of one method differ, and the method and setting where they do."""
    names = [name for name in ("method", "teacher", "setting") if frame[name].nunique() > 1]
    names += ["student_layers", "student_ffn"] if frame["student_ffn"].any() else []
    for name in frame:
        if name not in RECIPE or name in FOLLOWS or name in names:
            continue
        values = frame[name].div(frame["rank"]) if name == "alpha" else frame[name]  # alpha as a rule grows with r
        if values.groupby(frame["method"]).nunique(dropna=False).max() > 1:
            names.append(name)
    return names


def agreement(frame: pd.DataFrame, drawn: Drawn) -> dict[str, Any]:
    """How many pairs of rows stand in the published order, and how many of those that the intervals tell apart."""
    pairs = []  # of each: whether it is clear, whether it agrees
    for first, second in combinations(frame.index, 2):
        paper = frame.loc[second, "ppl_published"] - frame.loc[first, "ppl_published"]
        ours = drawn.difference(frame.loc[second, "runs"], frame.loc[first, "runs"])
        if ours is not None and abs(paper) > 0:
            pairs.append((ours.clear, (ours.value > 0) == (paper > 0)))
    clear = [agrees for is_clear, agrees in pairs if is_clear]
    counts = {"pairs": len(pairs), "same": sum(agrees for _, agrees in pairs)}
    return counts | {"clear": len(clear), "clear_same": sum(clear), "percent": f"{100 * drawn.confidence:g} %"}


def percent(name: str, heading: str, *, csv: bool = True) -> Column:
    """+3.2 %, 0 for the best, a dash when missing."""

    def text(row: Record) -> str:
        value = row[name]
        return ABSENT if pd.isna(value) else f"{value:+.1f} %" if value else "0"

    return Column(name if csv else "", heading, text=text)


def recipe_text(column: str, row: Record) -> str:
    """A value of the recipe as a person writes it."""
    value = row[column]
    if isinstance(value, str):
        return METHODS[value] if column == "method" else value or ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if pd.isna(value):
        return ABSENT
    if column in ("budget", "temperature", "kd_weight"):
        return str(float(value))  # as the paper prints them: 0.0, 3.0
    return f"{float(value):,.0f}" if float(value).is_integer() else f"{float(value):g}"
