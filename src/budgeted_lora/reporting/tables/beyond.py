"""Beyond the paper: other starts, orders and ranks at the paper's MACs, beside its rule, the controls and KD LoRA."""

import re

import pandas as pd

from budgeted_lora.reporting.grouping import Settings, caveats
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import ABSENT, Table, number
from budgeted_lora.reporting.uncertainty import (
    NOT_RECIPE,
    Difference,
    Drawn,
    Run,
    difference_text,
    draw,
    lines,
    ppl_texts,
    runs,
    several_seeds,
)

BEYOND = "beyond"
PAPER = "paper's rule"
UNDISTILLED = "no distillation, SVD"
REFERENCES = {"kd_full": "KD Full", "kd_lora": "KD LoRA"}
STARTS = {"svd": "SVD of W", "activation_svd": "SVD of outputs"}
ORDERS = {"energy": "order by energy", "activation": "order by outputs", "gradient": "order by gradient"}
PARTS = ("perplexity", "train", "structure", "speed")
SHARED = frozenset({"method", "budget", "low_rank_init", "order", "rank_step", "statistics_windows", "tokens", "steps"})


def rules_of(frame: pd.DataFrame, results: Results) -> list[str]:
    """The rule of each row; where budgeted students differ in anything else, what is not the most common value too."""
    budgeted = frame[frame["method"] == "budgeted_lora"]
    keys = [name for name in results.cells.columns if name not in NOT_RECIPE | SHARED]
    usual = {name: budgeted[name].map(str).mode()[0] for name in keys if budgeted[name].map(str).nunique() > 1}
    rules = []
    for _, row in frame.iterrows():
        own = row["method"] == "budgeted_lora"
        odd = [f"{name.replace('_', ' ')} {row[name]}" for name in usual if own and str(row[name]) != usual[name]]
        rules.append(", ".join([rule_of(row), *odd]))
    return rules


def rule_of(row: pd.Series) -> str:
    """What a student does otherwise than the paper's, in words."""
    if row["method"] in REFERENCES:
        return REFERENCES[row["method"]]
    words = [STARTS.get(row.get("low_rank_init")), ORDERS.get(row.get("order"))]
    words += ["allocated ranks"] if pd.notna(row.get("rank_step")) else []
    return " + ".join(word for word in words if word) or PAPER


def beyond_lines(results: Results, drawn: Drawn | None = None) -> pd.DataFrame:
    """One row a rule, budget and length of training (`seeds.lines`), with its `rule` and ICL composite `icl`.

    Compression settings that truncate the undistilled student make rows of their own: `rule` says by what.
    """
    scores = scored(results)
    frame = lines(results, scores, drawn)
    frame["rule"] = [
        f"{UNDISTILLED} by {'outputs' if 'by-outputs' in setting else 'weights'}" if "undistilled" in setting else rule
        for rule, setting in zip(rules_of(frame, results), frame["setting"], strict=True)
    ]
    return frame


def scored(results: Results) -> pd.DataFrame:
    """Runs of the table with their in-context composites, NaN where none was measured."""
    scores = runs(results, BEYOND, parts=PARTS)
    cut = (scores["setting"] != "default").to_numpy()  # nobody trains or times what is cut without distillation
    for name in ("train_seconds", "tokens", *(name for name in scores if name.startswith("measured_"))):
        scores[name] = scores[name].astype(float).mask(cut)
    scores["budget"] = scores["budget"].where(~cut, [budget_cut_to(name) for name in scores["setting"]])
    found = [
        results.json(f"{results.compressed(row.cell)}/icl.json") if row.setting == "default" else None
        for row in scores.itertuples()
    ]
    columns = {"icl": "composite", "icl_chance": "chance_composite"}
    return scores.assign(
        **{name: [(icl or {}).get(key, float("nan")) for icl in found] for name, key in columns.items()}
    )


def budget_cut_to(setting: str) -> float:
    """The budget whose MACs a compression setting brings a student to; NaN where it names none."""
    found = re.search(r"macsF([0-9.]+)", setting)
    return float(found[1]) if found else float("nan")


def beyond(results: Results, published: Published, settings: Settings) -> Table:
    """Every rule beside the paper's at the same budget and length: perplexity, paired difference, ICL, speed."""
    drawn = draw(results, scored(results), settings)
    frame = beyond_lines(results, drawn)
    frame = frame.sort_values(["tokens", "budget", "ppl"], na_position="last", kind="stable").reset_index(drop=True)
    paper = {(row.tokens, row.budget): row.runs for row in frame.itertuples() if row.rule == PAPER}
    lowest = {}  # the frame is sorted by perplexity
    for row in frame[(frame["method"] == "budgeted_lora") & frame["ppl"].notna()].itertuples():
        lowest.setdefault((row.tokens, row.budget), row.runs)
    differences, behind = against(frame, drawn, paper), against(frame, drawn, lowest)
    names = ["rule", "method", "budget", "tokens", "seeds", "ppl", "ppl_se", "ppl_sd", "ppl_uncompressed"]
    names += ["icl", "icl_chance", "kept", "svd", "dropped", "macs", "speedup_vs_dense"]
    names += ["measured_modules", "measured_prefill", "measured_decode", "train_seconds", "executed_compute"]
    numbers = frame[names].assign(
        ppl_first_seed=[drawn.values.get(row.runs[0], float("nan")) for row in frame.itertuples()],
        **difference_columns("to_paper", differences),
        **difference_columns("to_lowest", behind),
    )
    shown = pd.DataFrame(
        {
            "Rule": frame["rule"],
            "F": [ABSENT if pd.isna(value) else number(value, 1) for value in frame["budget"]],
            "Tokens": [number(value, 0) for value in frame["tokens"]],
            "PPL": ppl_texts(frame),
            "Uncompressed": [number(value, 2) for value in frame["ppl_uncompressed"]],
            "To the paper's rule": [difference_text(entry) for entry in differences],
            "ICL %": [number(100 * value, 1) for value in frame["icl"]],
            "Kept/svd/dropped": [f"{row.kept:.0f}/{row.svd:.0f}/{row.dropped:.0f}" for row in frame.itertuples()],
            "MAC speedup": [number(value, 2, unit="×") for value in frame["speedup_vs_dense"]],
            "Measured: modules": [number(value, 2, unit="×") for value in frame["measured_modules"]],
            "Measured: prefill": [number(value, 2, unit="×") for value in frame["measured_prefill"]],
            "Measured: decode": [number(value, 2, unit="×") for value in frame["measured_decode"]],
        }
    )
    notes = [
        "Rules differ in where the low-rank path starts (the paper: A at random, B at zero), in which dense path goes "
        "first (the paper: the cheapest) and in how ranks are spread (the paper: evenly). Budget, schedule and MACs of "
        "all low-rank paths together are the paper's; which modules stay dense depends on the order, and a low-rank "
        "path beside a dense one is merged into it, so the MACs that remain differ a little.",
        "Uncompressed: perplexity before modules are dropped, approximated and merged. The paper's rule loses what an "
        "approximation of rank d r_max, a constant the paper does not state, cannot hold of W; with a start at the "
        "SVD only the residual is approximated.",
        "The difference is paired by window and by seed; negative means better than the paper's rule.",
        "No distillation: the untrained student, every projection cut by truncated SVD to the same share of its MACs, "
        "ranks rounded down, by weights or by outputs; its structure is not that of the budgeted students.",
        *chance_notes(frame["icl_chance"]),
        *several_seeds(frame["seeds"]),
    ]
    return Table(BEYOND, "Beyond the paper: other rules at the same budget", numbers, shown, notes + caveats(results))


def against(
    frame: pd.DataFrame, drawn: Drawn, base: dict[tuple[float, float], tuple[Run, ...]]
) -> list[Difference | None]:
    """Each line minus the one of its length of training and budget in `base`; None for that one, or without one."""
    pairs = [(row.runs, base.get((row.tokens, row.budget))) for row in frame.itertuples()]
    return [None if other is None or runs == other else drawn.difference(runs, other) for runs, other in pairs]


def difference_columns(name: str, found: list[Difference | None]) -> dict[str, list[float | bool]]:
    """A difference's value, standard error, standard deviation over seeds, and whether it is told from zero."""
    nan = float("nan")
    return {
        name: [entry.value if entry else nan for entry in found],
        f"{name}_se": [entry.standard_error if entry else nan for entry in found],
        f"{name}_sd": [entry.sd if entry else nan for entry in found],
        f"{name}_clear": [bool(entry and entry.clear) for entry in found],
    }


def chance_notes(chances: pd.Series) -> list[str]:
    """What guessing scores in context, if that was measured."""
    known = chances.dropna()
    return [] if known.empty else [f"ICL: accuracy in context; guessing has {100 * known.iloc[0]:.1f} %."]
