"""In-context-learning tables: Table 9 and the values of Figure 2."""

import numpy as np
import pandas as pd

from budgeted_lora.reporting.grouping import (
    Settings,
    groups,
    icl_scores,
    icl_tables,
    method_label,
    one_variant,
    parse_budget,
    partial_note,
    setting_of,
    teacher_order,
)
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results, probe_frame
from budgeted_lora.reporting.table import Table, number
from budgeted_lora.reporting.uncertainty import several_seeds, spread_text

COMPOSITE_COLUMNS = ("composite_pct", "se_pct", "low_pct", "high_pct", "chance_pct")


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
