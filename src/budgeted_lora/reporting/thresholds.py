"""Section C.3: the same trained students compressed with other thresholds."""

import pandas as pd

from budgeted_lora.reporting.grouping import Settings, budget_key, caveats
from budgeted_lora.reporting.layout import ABSENT, Table, number
from budgeted_lora.reporting.load import Published, Results
from budgeted_lora.reporting.seeds import difference_text, draw, lines, ppl_texts, runs, several_seeds

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
