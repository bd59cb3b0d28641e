"""In-context-learning tables: Table 9 and the values of Figure 2."""

from math import nan

import numpy as np
import pandas as pd

from budgeted_lora.reporting.grouping import (
    budget_key,
    files_of,
    groups,
    icl_scores,
    method_label,
    one_recipe,
    setting_of,
    teacher_order,
)
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Column, Record, Table, csv_only, mean_text, number
from budgeted_lora.reporting.texts import describe, tabulate
from budgeted_lora.reporting.uncertainty import Bootstrap

SCORES = ["accuracy", "se", "n", "chance_constant", "chance_word", "ceiling"]  # of a probe, in icl.json
PROBE_COLUMNS = ["probe", "method", "budget", "teacher", *SCORES, "sd", "seeds", "published"]


def table9(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Accuracy of every probe for every method and teacher, beside chance and ceiling."""
    scored = icl_scores(results)
    one_recipe(scored, "table9")
    frames = []
    for (method, budget), group in groups(scored):
        for teacher in teacher_order(scored):
            scored_runs = [icl["probes"] for icl in group[group["teacher"] == teacher]["icl"] if icl]
            probes = [pd.DataFrame.from_dict(one, orient="index").reindex(columns=SCORES) for one in scored_runs]
            if probes:
                errors = np.sqrt(sum(frame["se"] ** 2 for frame in probes)) / len(probes)
                deviations = pd.DataFrame([frame["accuracy"] for frame in probes]).std()
                mean = (sum(probes) / len(probes)).assign(se=errors, sd=deviations, seeds=len(probes))
                mean = mean.assign(method=method, budget=budget_key(budget), teacher=teacher, published=np.nan)
                frames.append(mean.rename_axis("probe").reset_index()[PROBE_COLUMNS])
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=PROBE_COLUMNS)
    title, notes = describe(results)
    shown = table9_shown(frame)
    return Table("table9", title, frame, shown, notes, files=[files_of(scored)] * len(shown))


def table9_shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 9 with one row per probe and one column per method and teacher; the macro mean closes it."""
    if frame.empty:
        return pd.DataFrame({"Probe": []})
    facts = frame.groupby("probe", sort=False)[["chance_constant", "chance_word", "ceiling"]].first()
    shown = pd.DataFrame({"Probe": [*facts.index, "Macro mean"]})
    best_chance = facts[["chance_constant", "chance_word"]].max(axis=1)
    columns = {"Chance": best_chance, "Ceiling": facts["ceiling"]}
    for (method, budget, teacher), group in frame.groupby(["method", "budget", "teacher"], sort=False):
        label = method_label(method, budget).replace("Budgeted LoRA, ", "")
        columns[f"{label} · {teacher}"] = group.set_index("probe")["accuracy"].reindex(facts.index)
    for heading, values in columns.items():
        shown[heading] = [number(100 * value, 1) for value in [*values, values.mean()]]
    return shown


def figure2_values(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """Figure 2 as numbers, with the few composites that the paper prints in words."""
    rows = []
    for (method, budget), group in groups(icl_scores(results)):
        for teacher in teacher_order(group):
            mine = group[group["teacher"] == teacher]
            scored = [icl for icl in mine["icl"] if icl]
            if any(icl["per_seed"] for icl in scored):
                setting = setting_of(budget)
                printed = published.value("Figure 2", "icl_composite_pct", method, teacher=teacher, setting=setting)
                about = {"teacher": teacher, "method": method, "budget": budget_key(budget), "published_pct": printed}
                rows.append(about | composite(scored) | {"files": files_of(mine)})
    return tabulate(results, rows=rows, columns=COMPOSITE_COLUMNS)


def composite(scored: list[Record]) -> Record:
    """Mean composite of the runs of one row, in %, its errors, and the range over all seeds."""
    runs = [value for icl in scored for value in icl["per_seed"].values()]
    return {
        "composite_pct": 100 * float(np.mean(runs)),
        "se_pct": 100 * float(np.sqrt(sum(icl["composite_se"] ** 2 for icl in scored))) / len(scored),
        "low_pct": 100 * float(min(runs)),
        "high_pct": 100 * float(max(runs)),
        "chance_pct": 100 * float(scored[0]["chance_composite"]),
        "sd_pct": 100 * float(pd.Series([icl["composite"] for icl in scored]).std()),
        "seeds": len(scored),
    }


def composite_text(row: Record) -> str:
    error, deviation = row["se_pct"], row["sd_pct"]
    return mean_text(row["composite_pct"], error=error, deviation=deviation, seeds=row["seeds"], digits=1)


COMPOSITE_COLUMNS = (
    Column("teacher", "Teacher"),
    Column("method", "Method", text=lambda row: method_label(row["method"], row["budget"])),
    Column("budget"),
    Column("composite_pct", "Composite %", text=composite_text),
    Column("se_pct"),
    Column("low_pct", "Over runs", text=lambda row: f"{row['low_pct']:.1f} to {row['high_pct']:.1f}"),
    Column("high_pct"),
    Column("chance_pct", "Chance %", 1),
    Column("published_pct", "Published %", 1),
    *csv_only("sd_pct", "seeds"),
)


def contamination(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """How much of the prompts and answers of each probe occurs word for word in the training text."""
    path = "data/contamination.json"
    record = results.json(path) or {"ngram": nan, "training_tokens": nan, "probes": {}}
    rows = [{"probe": name, "files": (path,)} | found for name, found in record["probes"].items()]
    if rows:
        rows.append({"probe": "all", "files": (path,)} | record["total"])
    columns = [
        Column("probe", "Probe"),
        Column("examples", "Examples", 0),
        Column("long_enough", "Searched", 0),
        Column("prompts", "Prompt shares an n-gram", 0),
        Column("answers", "Answer within a shared n-gram", 0),
        Column("largest_share", "Largest share %", 1, factor=100.0),
    ]
    return tabulate(results, rows=rows, columns=columns, n=record["ngram"], tokens=record["training_tokens"])
