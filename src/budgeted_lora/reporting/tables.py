"""Tables 1, 8 and 9, the reference rows, the published perplexities, and the list of all tables (method.md 8)."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from budgeted_lora.reporting.ablations import (
    any_table,
    lora_construction,
    table3,
    table4,
    table5,
    table6,
    table7,
)
from budgeted_lora.reporting.beyond import BEYOND, beyond
from budgeted_lora.reporting.controls import controls
from budgeted_lora.reporting.grouping import (
    Settings,
    caveats,
    groups,
    icl_scores,
    icl_tables,
    one_variant,
    parse_budget,
    partial_note,
    teacher_order,
)
from budgeted_lora.reporting.layout import ABSENT, Table, measured, number
from budgeted_lora.reporting.load import SPEEDS, Published, Results, method_label, method_order, probe_frame, setting_of
from budgeted_lora.reporting.main_table import table2, table2_differences
from budgeted_lora.reporting.seeds import several_seeds, spread_text
from budgeted_lora.reporting.sensitivity import SENSITIVITY, sensitivity
from budgeted_lora.reporting.thresholds import thresholds

COMPOSITE_COLUMNS = ("composite_pct", "se_pct", "low_pct", "high_pct", "chance_pct")
# What the average rank says of a run much shorter than the paper's.
SHORT_RUN = "; in a short run none can (a gate logit moves at most about rate × steps), so it says nothing here"


def table1(results: Results, published: Published, settings: Settings) -> Table:
    """Teachers: shape and validation perplexity."""
    teachers = results.teachers()
    wanted = [
        "name",
        "layers",
        "hidden",
        "ffn",
        "heads",
        "kv_heads",
        "parameters",
        "ppl",
        "ppl_se",
        "ppl_functions",
        "icl",
        "icl_se",
        "icl_chance",
    ]
    frame = teachers.reindex(columns=wanted).rename(columns={"name": "teacher"})
    shown = pd.DataFrame(
        {
            "Teacher": frame["teacher"],
            "Layers": [number(v, 0) for v in frame["layers"]],
            "Hidden": [number(v, 0) for v in frame["hidden"]],
            "FFN": [number(v, 0) for v in frame["ffn"]],
            "Heads/KV": [
                f"{number(h, 0)}/{number(k, 0)}" for h, k in zip(frame["heads"], frame["kv_heads"], strict=True)
            ],
            "Parameters (M)": [number(v / 1e6, 2) for v in frame["parameters"]],
            "Val. PPL": [measured(v, e, 2) for v, e in zip(frame["ppl"], frame["ppl_se"], strict=True)],
            "PPL, function documents": [number(v, 2) for v in frame["ppl_functions"]],
            "ICL %": [measured(100 * v, 100 * e, 1) for v, e in zip(frame["icl"], frame["icl_se"], strict=True)],
        }
    )
    standing = results.standing
    named = "the paper's own checkpoint" if standing.models else "named after the one of the paper that it stands for"
    notes = [f"Each teacher is {named}. ± is a standard error over validation windows."]
    if standing.models:
        frame["ppl_published"] = [
            published.value("Table 1", "ppl", "pretrained", teacher=name) for name in frame["teacher"]
        ]
        shown["PPL, published"] = [number(v, 1) for v in frame["ppl_published"]]
    else:
        notes.append(
            "The paper's own teachers and perplexities are in published_perplexities: other corpus, other vocabulary."
        )
    return Table("table1", "Table 1. Teachers", frame, shown, notes + partial_note(results))


def table8(results: Results, published: Published, settings: Settings) -> Table:
    """Compressed structure of each budget."""
    scores = method_order(results.scores("table8", parts=["structure"]).query("method == 'budgeted_lora'"))
    one_variant(scores, "table8")
    rows = []
    for (budget, teacher), group in scores.groupby(["budget", "teacher"], sort=False):
        mean = group.mean(numeric_only=True)
        row: dict[str, object] = {"budget": str(float(budget)), "teacher": teacher}
        for ours, theirs in (
            ("kept", "dense_kept"),
            ("svd", "dense_svd"),
            ("dropped", "dense_dropped"),
            ("avg_rank", "avg_rank"),
            ("param_reduction_pct", "param_reduction_pct"),
        ):
            row[ours] = mean.get(ours, float("nan"))
            row[f"{ours}_published"] = published.value("Table 8", theirs, "budgeted_lora", setting=setting_of(budget))
        row |= {"seeds": len(group), "avg_rank_sd": group["avg_rank"].std()}
        row |= {
            name: mean.get(name, float("nan"))
            for name in (
                "param_reduction_vs_dense_pct",
                "macs",
                "dense_macs",
                "speedup_vs_dense",
                "speedup_vs_lora",
                "rank",
            )
        }
        rows.append(row)
    frame = pd.DataFrame(rows)
    shown = pd.DataFrame([table8_text(row) for row in rows])
    several = any(row["seeds"] > 1 for row in rows)
    notes = [
        "Dense paths after training; the paper's student has 42. For F = 0.8 the paper prints 24 kept / 1 / 17 "
        "dropped; its "
        "own reduction of 30.6 % and its cost model "
        "admit only 17 kept / 1 / 24 dropped: kept and dropped are swapped in print.",
        "The average rank moves only if gates cross the threshold"
        + ("" if results.standing.models else SHORT_RUN)
        + ". Published ranks are of r = 128.",
        "Parameter reduction is printed on both bases: against the unmerged dense + LoRA student (the paper's) and "
        "against the dense student alone.",
        *(
            ["Means over training seeds; `seeds` and `avg_rank_sd` of the CSV say how many and how far apart."]
            * several
        ),
    ]
    return Table("table8", "Table 8. Compressed structure by budget", frame, shown, notes + caveats(results))


def table8_text(row: dict) -> dict[str, str]:
    """One row of Table 8 as people read it."""
    triple = [
        " / ".join(number(row[f"{name}{suffix}"], 0) for name in ("kept", "svd", "dropped"))
        for suffix in ("", "_published")
    ]
    return {
        "F": row["budget"],
        "Teacher": row["teacher"],
        "Kept / SVD / dropped": triple[0],
        "Published": triple[1],
        "Avg. rank (of r)": f"{number(row['avg_rank'], 1)} ({number(row['rank'], 0)})",
        "Avg. rank, published (of 128)": number(row["avg_rank_published"], 1),
        "Param. reduction": number(row["param_reduction_pct"], 1, unit=" %"),
        "Param. reduction, published": number(row["param_reduction_pct_published"], 1, unit=" %"),
        "Against dense alone": number(row["param_reduction_vs_dense_pct"], 1, unit=" %"),
        "MAC speedup, dense": number(row["speedup_vs_dense"], 2, unit="×"),
        "MAC speedup, dense + LoRA": number(row["speedup_vs_lora"], 2, unit="×"),
    }


def table9(results: Results, published: Published, settings: Settings) -> Table:
    """Accuracy of every probe for every method and teacher, beside chance and ceiling."""
    scored = icl_scores(results, *icl_tables(results))
    one_variant(scored, "table9")
    frames = []
    for (method, budget), group in groups(scored):
        for teacher in teacher_order(scored):
            found = [probe_frame(icl) for icl in group[group["teacher"] == teacher]["icl"] if icl]
            if found:
                mean = sum(found) / len(found)
                errors = np.sqrt(sum(frame["se"] ** 2 for frame in found)) / len(found)
                label = {"method": method, "budget": "" if pd.isna(budget) else str(float(budget)), "teacher": teacher}
                spread = {"seeds": len(found), "sd": pd.DataFrame([f["accuracy"] for f in found]).std()}
                frames.append(mean.assign(se=errors, **label, **spread).rename_axis("probe").reset_index())
    columns = [
        "probe",
        "method",
        "budget",
        "teacher",
        "accuracy",
        "se",
        "n",
        "chance_constant",
        "chance_word",
        "ceiling",
        "sd",
        "seeds",
    ]
    frame = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    frame["published"] = np.nan
    notes = [
        "Exact match in %, 10-shot, mean over the demonstration seeds and, where there are several, the training seeds "
        "(their standard deviation is `sd` of the CSV). Chance: the best constant answer, and for list "
        "probes a random word of the query; "
        "the ceiling is under 100 where a query has two right answers.",
        "The paper's per-probe values (its Table 9) are not known to us: the column published of the CSV is empty.",
    ]
    return Table(
        "table9", "Table 9. In-context learning by probe", frame, table9_shown(frame), notes + partial_note(results)
    )


def table9_shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 9 with one row a probe and one column a method and teacher; the macro mean closes it."""
    if frame.empty:
        return pd.DataFrame({"Probe": []})
    facts = frame.groupby("probe", sort=False)[["chance_constant", "chance_word", "ceiling"]].first()
    shown = pd.DataFrame({"Probe": [*facts.index, "Macro mean"]})
    best_chance = facts[["chance_constant", "chance_word"]].max(axis=1)
    for title, values in (("Chance", best_chance), ("Ceiling", facts["ceiling"])):
        shown[title] = [number(100 * v, 1) for v in [*values, values.mean()]]
    for (method, budget, teacher), group in frame.groupby(["method", "budget", "teacher"], sort=False):
        values = group.set_index("probe")["accuracy"].reindex(facts.index)
        label = method_label(method, parse_budget(budget)).replace("Budgeted LoRA, ", "")
        shown[f"{label} · {teacher}"] = [number(100 * v, 1) for v in [*values, values.mean()]]
    return shown


def figure2_values(results: Results, published: Published, settings: Settings) -> Table:
    """Figure 2 as numbers, with the few composites the paper prints in words."""
    rows = []
    for (method, budget), group in groups(icl_scores(results, *icl_tables(results))):
        for teacher in teacher_order(group):
            found = [icl for icl in group[group["teacher"] == teacher]["icl"] if icl]
            runs = [value for icl in found for value in icl["per_seed"].values()]
            if not runs:
                continue
            error = float(np.sqrt(sum(icl["composite_se"] ** 2 for icl in found))) / len(found)
            label = {"teacher": teacher, "method": method, "budget": "" if pd.isna(budget) else str(float(budget))}
            values = (np.mean(runs), error, min(runs), max(runs), found[0]["chance_composite"])
            row = label | {name: 100 * float(v) for name, v in zip(COMPOSITE_COLUMNS, values, strict=True)}
            row |= {"sd_pct": 100 * float(pd.Series([icl["composite"] for icl in found]).std()), "seeds": len(found)}
            setting = setting_of(budget)
            row["published_pct"] = published.value(
                "Figure 2", "icl_composite_pct", method, teacher=teacher, setting=setting
            )
            rows.append(row)
    frame = pd.DataFrame(
        rows, columns=["teacher", "method", "budget", *COMPOSITE_COLUMNS, "published_pct", "sd_pct", "seeds"]
    )
    shown = pd.DataFrame(
        {
            "Teacher": frame["teacher"],
            "Method": [method_label(m, parse_budget(b)) for m, b in zip(frame["method"], frame["budget"], strict=True)],
            "Composite %": [
                spread_text(value, error, sd, seeds, 1)
                for value, error, sd, seeds in zip(
                    *(frame[name] for name in ("composite_pct", "se_pct", "sd_pct", "seeds")), strict=True
                )
            ],
            "Over runs": [f"{a:.1f} to {b:.1f}" for a, b in zip(frame["low_pct"], frame["high_pct"], strict=True)],
            "Chance %": [number(v, 1) for v in frame["chance_pct"]],
            "Published %": [number(v, 1) for v in frame["published_pct"]],
        }
    )
    notes = [
        "The paper prints three of these composites in words (1B teacher); the others stand only in its drawing and "
        "are not known to us: a dash. "
        f"{printed_of(results)}± is a standard error over queries. "
        "Over runs: the least and the most of the demonstration seeds and training seeds.",
        *several_seeds(frame["seeds"]),
    ]
    return Table("figure2_values", "Figure 2 as numbers", frame, shown, notes + partial_note(results))


def printed_of(results: Results) -> str:
    """What the printed composites were measured on, where it is something else than here."""
    if results.standing.students:
        return ""
    others = "students of 2.55 B training tokens" if results.standing.models else "other teachers and another corpus"
    return f"Published values are of {others}. "


def speed(results: Results, published: Published, settings: Settings) -> Table:
    """Each compressed structure: its MAC ratio beside the times measured on this machine."""
    scores = method_order(results.scores("table2", "table8", "pareto", parts=["structure"]))
    scores = scores[scores["structure"] != ""].drop_duplicates("structure")
    rows = []
    for cell in scores.itertuples():
        timed = results.speed(cell.structure)
        row = {"structure": cell.structure, "budget": str(float(cell.budget)), "controller": cell.controller}
        row["mac_speedup"] = cell.speedup_vs_dense
        for part in SPEEDS:
            for end in ("", "_q1", "_q3"):
                row[f"measured_{part}_speedup{end}"] = timed.get(part, {}).get(f"speedup{end}", float("nan"))
        rows.append(row)
    frame = pd.DataFrame(rows)
    shown = pd.DataFrame({"F": frame["budget"], "Controller": frame["controller"]})
    shown["MAC ratio (counted)"] = [number(v, 2, unit="×") for v in frame["mac_speedup"]]
    for part in SPEEDS:
        columns = [frame[f"measured_{part}_speedup{end}"] for end in ("", "_q1", "_q3")]
        shown[f"Measured: {part}"] = [
            f"{number(value, 2, unit='×')} ({number(q1, 2)} to {number(q3, 2)})"
            for value, q1, q3 in zip(*columns, strict=True)
        ]
    notes = [
        "Times of the dense student over times of the compressed one, random weights, taken in turn; in brackets the "
        "quartiles over the rounds. "
        "Modules: the projections alone. Prefill and decode: the whole model, with embeddings, attention and head, "
        "which compression leaves as they are."
    ]
    return Table("speed", "Speedup, counted and measured", frame, shown, notes + partial_note(results))


def reference(results: Results, published: Published, settings: Settings) -> Table:
    """The rows to read Table 2 against: the smallest teacher itself and the untrained students."""
    teachers, students = results.teachers().head(1), results.students()
    labels = [f"{name} itself" for name in teachers.get("name", [])] + [
        f"untrained student, {name}" for name in students.get("name", [])
    ]
    frame = pd.concat([teachers, students], ignore_index=True).reindex(
        columns=["name", "parameters", "ppl", "ppl_se", "ppl_functions", "icl", "icl_se", "icl_chance"]
    )
    frame.insert(0, "row", labels)
    shown = pd.DataFrame(
        {
            "Reference": labels,
            "PPL": [measured(v, e, 2) for v, e in zip(frame["ppl"], frame["ppl_se"], strict=True)],
            "PPL, function documents": [number(v, 2) for v in frame["ppl_functions"]],
            "ICL %": [measured(100 * v, 100 * e, 1) for v, e in zip(frame["icl"], frame["icl_se"], strict=True)],
            "Chance %": [number(100 * v, 1) for v in frame["icl_chance"]],
        }
    )
    notes = [
        "An untrained student is cut from the smallest teacher (or random, scratch) and scored before any distillation."
    ]
    return Table("reference", "Reference rows", frame.drop(columns="name"), shown, notes + partial_note(results))


def published_perplexities(results: Results, published: Published, settings: Settings) -> Table:
    """The perplexities the paper prints, by themselves."""
    frame = published.frame[published.frame["metric"] == "ppl"].drop(columns="metric").reset_index(drop=True)
    shown = pd.DataFrame(
        {
            "Source": frame["source"],
            "Method": [m if m == "pretrained" else method_label(m) for m in frame["method"]],
            "Teacher": frame["teacher"],
            "Setting": [text or ABSENT for text in frame["setting"]],
            "PPL, published": [number(v, 2) for v in frame["value"]],
            "Note": frame["note"],
        }
    )
    differs = results.standing.print_differs
    title = f"Published perplexities (the paper's{': ' if differs else ''}{differs})"
    how = f"Measured by the authors on the deduplicated Pile with their 32k vocabulary{results.standing.print_note}"
    return Table("published_perplexities", title, frame, shown, [how])


CONTROLS = "controls"
Maker = Callable[[Results, Published, Settings], Table]
TABLES: dict[str, Maker] = {
    "table1": table1,
    "table2": table2,
    "table2_differences": table2_differences,
    "table8": table8,
    "table9": table9,
    "figure2_values": figure2_values,
    "speed": speed,
    "reference": reference,
    "published_perplexities": published_perplexities,
    CONTROLS: controls,
}
# Those of rows that only a configuration with ablations lists.
ABLATIONS: dict[str, Maker] = {
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "lora_construction": lora_construction,
    "table7": table7,
    "thresholds": thresholds,
    SENSITIVITY: sensitivity,
    BEYOND: beyond,
}
NO_TABLES = frozenset({"pareto", "figure2"})  # rows that only figures show


def tables_of(results: Results) -> dict[str, Maker]:
    """How every table is made that the cells of a folder allow, main ones first.

    A table that only the configuration knows is one line a recipe.
    """
    asked = list(dict.fromkeys(name for names in results.cells["tables"] for name in names.split()))
    found = {name: make for name, make in TABLES.items() if name != CONTROLS or name in asked}
    found |= {name: make for name, make in ABLATIONS.items() if name in asked}
    own = [name for name in asked if name not in found and name not in NO_TABLES]
    return found | {name: partial(any_table, name) for name in own}
