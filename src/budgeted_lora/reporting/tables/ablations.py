"""Tables 3 to 7, the LoRA construction sweep, and any other table of the configuration: one line a recipe.

A perplexity measured at another scale does not compare with a printed one, but an order does, and so does a distance
to the best row in per cent: these stand beside the paper's. At the paper's own scale its perplexities stand there too.
"""

from collections.abc import Callable
from itertools import combinations
from math import isqrt

import pandas as pd

from budgeted_lora.reporting.grouping import Settings, caveats, method_label
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import PARTS, Results
from budgeted_lora.reporting.table import ABSENT, Table, number
from budgeted_lora.reporting.uncertainty import (
    Drawn,
    difference_text,
    draw,
    lines,
    ppl_texts,
    runs,
    several_seeds,
)

Where = Callable[[pd.Series], tuple[str, str]]
Extra = Callable[[pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]]

PAPER_HIDDEN = 768  # width of the paper's student
HEADINGS = {
    "method": "Method", "teacher": "Teacher", "init": "Start", "temperature": "T", "kd_weight": "a", "rank": "r",
    "alpha": "alpha", "budget": "F", "schedule": "Schedule", "controller": "Controller", "tokens": "Tokens",
    "student_layers": "Layers", "student_ffn": "FFN", "setting": "Compression",
}  # fmt: skip
# What follows from another column, or only says how a run was cut into jobs.
FOLLOWS = frozenset(
    {"steps", "schedule_start", "schedule_end", "batch_windows", "micro_batch_windows", "statistics_windows"}
)
NOTE_PUBLISHED = "Published distances and orders are worked out from the perplexities the paper prints."
# Words of a recipe in the order they are shown; numbers ascend.
WORDS = ("mixed", "middle", "last", "first", "scratch", "none", "short", "long")
NOTE_ORDER = (
    "The table's best row is the base: ± of a difference is of the paired bootstrap over validation windows, so that "
    "what makes a window hard for all cancels."
)


def table3(results: Results, published: Published, settings: Settings) -> Table:
    """First sweep of temperature and weight of the distillation, from the first layers and from scratch."""
    return ablation(
        results, published, settings,
        name="table3",
        title="Table 3. Temperature T and weight a of the distillation, from first layers and from scratch",
        keys=("temperature", "kd_weight", "init"),
        where=lambda row: ("Table 3", f"init={row.init} T={row.temperature} a={row.kd_weight}"),
    )  # fmt: skip


def table4(results: Results, published: Published, settings: Settings) -> Table:
    """Which layers of the first teacher the student starts from, KD Full."""
    return ablation(
        results, published, settings,
        name="table4",
        title="Table 4. Construction of the student, KD Full",
        keys=("init",),
        where=lambda row: ("Table 4", f"init={row.init}"),
    )  # fmt: skip


def table5(results: Results, published: Published, settings: Settings) -> Table:
    """Second sweep of temperature and weight, from mixed and middle layers."""
    return ablation(
        results, published, settings,
        name="table5",
        title="Table 5. Temperature T and weight a again, from mixed and middle layers",
        keys=("temperature", "kd_weight", "init"),
        where=lambda row: ("Table 5", f"init={row.init} T={row.temperature} a={row.kd_weight}"),
    )  # fmt: skip


def table6(results: Results, published: Published, settings: Settings) -> Table:
    """Rank of KD LoRA; a row is paired with the published one of the same rank over width."""

    def paired(row: pd.Series) -> tuple[str, str]:
        scale = PAPER_HIDDEN / row.hidden
        return "Table 6", f"r={row['rank'] * scale:.0f} alpha={row.alpha * scale:.0f}"

    def width(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        share = frame["rank"] / frame["hidden"]
        numbers = pd.DataFrame({"rank_over_hidden": share, "rank_published": share * PAPER_HIDDEN})
        return numbers, pd.DataFrame({"r, published": [number(v, 0) for v in numbers["rank_published"]]})

    return ablation(
        results, published, settings,
        name="table6",
        title="Table 6. Rank of KD LoRA",
        keys=("rank",),
        where=paired,
        extra=width,
        parts=("perplexity", "hidden"),
        notes=("A rank is paired with the published one that has the same share of the width (768 in the paper).",),
    )  # fmt: skip


def lora_construction(results: Results, published: Published, settings: Settings) -> Table:
    """Section C.2: which layers the student starts from, KD LoRA."""
    return ablation(
        results, published, settings,
        name="lora_construction",
        title="Section C.2. Construction of the student, KD LoRA",
        keys=("init",),
        where=lambda row: ("Section C.2", f"init={row.init}"),
    )  # fmt: skip


def table7(results: Results, published: Published, settings: Settings) -> Table:
    """Schedules of the budget: perplexity, train compute as scheduled and as executed, final average rank."""

    def where(row: pd.Series) -> tuple[str, str]:
        return "Table 7", f"F={float(row.budget)} schedule={row.schedule}"

    def costs(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        numbers = frame[["train_compute", "executed_compute", "avg_rank"]].rename(
            columns={"executed_compute": "train_compute_executed"}
        )
        numbers["train_compute_published"] = [
            published.value("Table 7", "train_compute", row.method, setting=where(row)[1])
            for _, row in frame.iterrows()
        ]
        numbers["avg_rank_published"] = [
            published.value("Section C.3", "avg_rank", row.method, teacher=row.teacher, setting=where(row)[1])
            for _, row in frame.iterrows()
        ]
        ranks = zip(numbers["avg_rank"], frame["rank"], strict=True)
        shown = {
            "Train compute, scheduled": [number(v, 2) for v in numbers["train_compute"]],
            "Executed": [number(v, 2) for v in numbers["train_compute_executed"]],
            "Train compute, published": [number(v, 2) for v in numbers["train_compute_published"]],
            "Avg. rank (of r)": [f"{number(mean, 1)} ({number(rank, 0)})" for mean, rank in ranks],
            "Avg. rank, published (of 128)": [number(v, 0) for v in numbers["avg_rank_published"]],
        }
        return numbers, pd.DataFrame(shown)

    return ablation(
        results, published, settings,
        name="table7",
        title="Table 7. Schedule of the budget",
        keys=("budget", "schedule"),
        where=where,
        extra=costs,
        parts=("perplexity", "train", "structure"),
        notes=(
            "Train compute counts multiply-accumulates relative to KD Full: scheduled follows from F(t), executed is "
            "what really ran (the smoothing of the coefficients delays the drop of a dense path).",
            "The average rank moves only if gates cross the threshold; in a short run none can, so it says nothing "
            "there.",
        ),
    )  # fmt: skip


def any_table(name: str, results: Results, published: Published, settings: Settings) -> Table:
    """A table that only the configuration knows: one line a recipe, with whatever its rows differ in."""
    return ablation(
        results, published, settings, name=name, title=f"Table {name} of the configuration", keys=("method", "budget")
    )


def ablation(
    results: Results,
    published: Published,
    settings: Settings,
    *,
    name: str,
    title: str,
    keys: tuple[str, ...],
    where: Where | None = None,
    extra: Extra | None = None,
    parts: tuple[str, ...] = ("perplexity",),
    notes: tuple[str, ...] = (),
) -> Table:
    """One line a recipe of a table: what it is, its perplexity, its distance to the best row and its place.

    Args:
        keys: columns that name a line; others in which the rows differ follow by themselves.
        where: source and setting of a line's published perplexity; without it nothing published is shown.
        extra: further columns, as numbers and as text, from the lines (`seeds.lines`).
        parts: results that are read, of load.PARTS, and `hidden` for the width of the student.
    """
    scores = runs(results, name, parts=[part for part in parts if part in PARTS])
    drawn = draw(results, scores, settings)
    frame = lines(results, scores, drawn)
    if "hidden" in parts:
        frame["hidden"] = [hidden_size(results, cell) for cell in frame["cell"]]
    names = [*keys, *(other for other in varying(frame) if other not in keys)]
    frame = frame.sort_values(names, key=shown_order, kind="stable", ignore_index=True)
    ranked, differences = distances(frame, drawn)
    shown = {HEADINGS.get(column, column): [key_text(value, column) for value in frame[column]] for column in names}
    shown |= {"PPL": ppl_texts(frame), "To the best": differences, "In %": percents(ranked["above_best_pct"])}
    if where:
        ranked = ranked.join(printed(frame, published, where))
        shown["In %, published"] = percents(ranked["above_best_pct_published"])
    shown["Order"] = [number(value, 0) for value in ranked["order"]]
    text = [*read_sentence(frame), NOTE_ORDER, *notes, *several_seeds(frame["seeds"])]
    if where:
        shown["Order, published"] = [number(value, 0) for value in ranked["order_published"]]
        text += [NOTE_PUBLISHED]
        text[1:1] = agreement(frame, ranked["ppl_published"], drawn)
        if results.standing.students:
            shown["PPL, published"] = [number(value, 2) for value in ranked["ppl_published"]]
        else:
            ranked = ranked.drop(columns="ppl_published")
    more, more_shown = extra(frame) if extra else (pd.DataFrame(), pd.DataFrame())
    kept = [*names, *(["tokens"] if "tokens" not in names else []), "ppl", "ppl_se", "ppl_sd", "seeds"]
    numbers = pd.concat([frame[kept], ranked, more], axis=1)
    return Table(name, title, numbers, pd.concat([pd.DataFrame(shown), more_shown], axis=1), text + caveats(results))


def printed(frame: pd.DataFrame, published: Published, where: Where) -> pd.DataFrame:
    """The paper's perplexity of every line, its distance to the paper's best in per cent, and its place."""
    found = []
    for _, row in frame.iterrows():
        source, setting = where(row)
        found.append(published.value(source, "ppl", row["method"], teacher=row["teacher"], setting=setting))
    ppl = pd.Series(found, index=frame.index, dtype="float64")
    above = 100 * (ppl / ppl.min() - 1)
    return pd.DataFrame(
        {"ppl_published": ppl, "above_best_pct_published": above, "order_published": ppl.rank(method="min")}
    )


def hidden_size(results: Results, cell: str) -> float:
    """Width of a student, from the size of its query projections."""
    record = results.json(f"{results.compressed(cell)}/compression.json") or {"modules": []}
    sizes = [module["dense_macs"] for module in record["modules"] if module["name"].endswith("q_proj")]
    return float(isqrt(sizes[0])) if sizes else float("nan")


def shown_order(column: pd.Series) -> pd.Series:
    """Sort key of a column of the recipe: numbers as they are, words as `WORDS` has them, others as they come."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    others = [word for word in column.unique() if word not in WORDS]
    return column.map({word: place for place, word in enumerate([*WORDS, *others])})


def varying(frame: pd.DataFrame) -> list[str]:
    """Columns of the recipe in which lines of one method differ, and the method and setting where they do."""
    found = [name for name in ("method", "teacher", "setting") if frame[name].nunique() > 1]
    recipe = frame.columns[: list(frame.columns).index("structure")] if "structure" in frame else frame.columns
    for name in recipe:
        if name in FOLLOWS or name in found or name in ("cell", "tables", "settings", "asked", "seed", "setting"):
            continue
        values = frame[name].div(frame["rank"]) if name == "alpha" else frame[name]  # alpha as a rule grows with r
        if values.groupby(frame["method"]).nunique().max() > 1:
            found.append(name)
    return found


def distances(frame: pd.DataFrame, drawn: Drawn) -> tuple[pd.DataFrame, list[str]]:
    """Place of every line and its distance to the best one, paired and in per cent; and that distance as text."""
    best = frame["ppl"].idxmin() if frame["ppl"].notna().any() else None
    rows, texts = [], []
    for index, line in frame.iterrows():
        found = drawn.difference(line["runs"], frame.loc[best, "runs"]) if best is not None else None
        names = {"value": "", "standard_error": "_se", "low": "_low", "high": "_high", "sd": "_sd"}
        rows.append({f"to_best{end}": getattr(found, name) if found else float("nan") for name, end in names.items()})
        texts.append("best" if index == best else difference_text(found))
    ranked = pd.DataFrame(rows, index=frame.index)
    ranked["above_best_pct"] = 100 * (frame["ppl"] / frame["ppl"].min() - 1)
    ranked["order"] = frame["ppl"].rank(method="min")
    return ranked, texts


def agreement(frame: pd.DataFrame, ppl_published: pd.Series, drawn: Drawn) -> list[str]:
    """How many pairs of rows stand in the published order, and how many of those that the intervals tell apart."""
    pairs = same = told = told_same = 0
    for first, second in combinations(frame.index, 2):
        paper = ppl_published[second] - ppl_published[first]
        found = drawn.difference(frame.loc[second, "runs"], frame.loc[first, "runs"])
        if found is None or not abs(paper) > 0:
            continue
        agrees = (found.value > 0) == (paper > 0)
        pairs, same = pairs + 1, same + agrees
        told, told_same = told + found.clear, told_same + (found.clear and agrees)
    if not pairs:
        return []
    percent = f"{100 * drawn.confidence:g} %"
    return [
        f"Of {pairs} pairs of rows {same} stand in the published order. The paired {percent} interval tells {told} "
        f"pairs apart; of these {told_same} stand in the published order."
    ]


def read_sentence(frame: pd.DataFrame) -> list[str]:
    """How many tokens the students read, where it is one number."""
    counts = frame["tokens"].unique()
    return [f"Every student read {int(counts[0]):,} tokens."] if len(counts) == 1 else []


def percents(values: pd.Series) -> list[str]:
    """+3.2 %, 0 for the best, a dash when missing."""
    return [ABSENT if pd.isna(value) else f"{value:+.1f} %" if value else "0" for value in values]


def key_text(value: object, column: str) -> str:
    """A value of the recipe as a person writes it."""
    if isinstance(value, str):
        return method_label(value) if column == "method" else value or ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if pd.isna(value):
        return ABSENT
    if column in ("budget", "temperature", "kd_weight"):
        return str(float(value))  # as the paper prints them: 0.0, 3.0
    return f"{float(value):,.0f}" if float(value).is_integer() else f"{float(value):g}"
