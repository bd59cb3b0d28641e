"""Section C.3: the same trained students compressed with other thresholds."""

import pandas as pd

from budgeted_lora.reporting.grouping import (
    Settings,
    budget_key,
    caveats,
    method_order,
    one_variant,
    partial_note,
    setting_of,
)
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import SPEEDS, Results
from budgeted_lora.reporting.table import ABSENT, Table, number
from budgeted_lora.reporting.uncertainty import (
    difference_text,
    draw,
    lines,
    ppl_texts,
    runs,
    several_seeds,
)

STUDENT = ("budget", "teacher", "schedule", "controller", "rank", "tokens")
STRUCTURE = ("kept", "svd", "dropped", "avg_rank", "macs", "speedup_vs_dense")


def thresholds(results: Results, published: Published, settings: Settings) -> Table:
    """Structure, cost and perplexity of every budget under every pair of thresholds."""
    scores = runs(results, "thresholds", parts=["perplexity", "structure"])
    drawn = draw(results, scores, settings)
    frame = lines(results, scores, drawn).sort_values("budget", kind="stable").reset_index(drop=True)
    used = [used_thresholds(results, row.cell, row.setting) for row in frame.itertuples()]
    frame["rank_threshold"], frame["svd_threshold"] = zip(*used, strict=True)
    bases = {key: group["runs"].iloc[0] for key, group in frame[frame["setting"] == "default"].groupby(list(STUDENT))}
    found = [
        drawn.difference(row.runs, bases[key]) if (key := student_key(row)) in bases else None
        for row in frame.itertuples()
    ]
    numbers = frame[["budget", "teacher", "rank_threshold", "svd_threshold", "setting", *STRUCTURE]]
    numbers = numbers.assign(**{name: frame[name] for name in ("tokens", "ppl", "ppl_se", "ppl_sd", "seeds")})
    for name, end in (("value", ""), ("standard_error", "_se"), ("low", "_low"), ("high", "_high")):
        numbers[f"to_default{end}"] = [getattr(entry, name) if entry else float("nan") for entry in found]
    shown = pd.DataFrame(
        {
            "F": [budget_key(value) for value in frame["budget"]],
            **({"Teacher": frame["teacher"]} if frame["teacher"].nunique() > 1 else {}),
            "τ rank": [number(value, 2) for value in frame["rank_threshold"]],
            "τ SVD": [number(value, 2) for value in frame["svd_threshold"]],
            "Kept / SVD / dropped": [
                " / ".join(number(getattr(row, name), 0) for name in STRUCTURE[:3]) for row in frame.itertuples()
            ],
            "Avg. rank (of r)": [
                f"{number(mean, 1)} ({number(rank, 0)})"
                for mean, rank in zip(frame["avg_rank"], frame["rank"], strict=True)
            ],
            "MACs, of dense": [
                number(macs / dense, 3) for macs, dense in zip(frame["macs"], frame["dense_macs"], strict=True)
            ],
            "PPL": ppl_texts(frame),
            "To the scale's own": [
                "own" if row.setting == "default" else difference_text(entry) if entry else ABSENT
                for row, entry in zip(frame.itertuples(), found, strict=True)
            ],
        }
    )
    notes = [
        "No retraining: each student is compressed again. A rank is cut where its gate is at or below τ rank; a dense "
        "path whose coefficient is below τ SVD is approximated. A final coefficient is 0, 1 or, in one module, "
        "between, so τ SVD moves one module at most.",
        "The last column is the paired difference to the same student under the scale's own thresholds. The paper "
        "prints no numbers of this sweep.",
        *several_seeds(frame["seeds"]),
    ]
    return Table("thresholds", "Section C.3. Compression thresholds", numbers, shown, notes + caveats(results))


def student_key(row: object) -> tuple[object, ...]:
    """What tells a trained student from others, whatever it is compressed with."""
    return tuple(getattr(row, name) for name in STUDENT)


def used_thresholds(results: Results, cell: str, setting: str) -> tuple[float, float]:
    """tau_rank and tau_svd that a compressed student was made with; NaN where the record does not say."""
    record = results.json(f"cells/{cell}/compressed/{setting}/compression.json") or {}
    used = record.get("provenance", {}).get("values", {}).get("settings", {})
    return used.get("rank_threshold", float("nan")), used.get("svd_threshold", float("nan"))


# What the average rank says of a run much shorter than the paper's.
SHORT_RUN = "; in a short run none can (a gate logit moves at most about rate × steps), so it says nothing here"


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
