"""What the page says besides tables and figures: what was run, where, how long, with which versions and constants."""

import re
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from budgeted_lora.reporting.records import read_record
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import duration, millions

# JSON results by the stage that made them. A teacher's cache is judged by its bytes: what made it is beside it.
STAGES = {
    "teachers and untrained students": ("teachers/*/*.json", "students/*/*.json", "calibration.json"),
    "corpus": (
        "data/corpus.json", "data/manifest.json", "data/teachers/manifest.json", "data/contamination.json",
        "data/shards/*/source.json", "data/shards/*/shard.json",
    ),
    "caches": ("cache/*/provenance.json",),
    "training": ("cells/*/train.json",),
    "compression": ("cells/*/compressed/*/compression.json",),
    "evaluation": tuple(f"cells/*/compressed/*/{name}.json" for name in ("perplexity", "icl", "lm_eval", "int8")),
    "timing": ("speed/*.json",),
}  # fmt: skip


def students_sentence(results: Results) -> str:
    """How many students are trained of those that the configuration lists, on how many tokens and seeds."""
    trained = [(results.root / "cells" / cell / "train.json").is_file() for cell in results.cells["cell"]]
    cells = results.cells[trained]
    if cells.empty:
        return "none yet"
    tokens = [millions(value) for value in sorted({int(value) for value in cells["tokens"]})]
    length = " to ".join(dict.fromkeys([tokens[0], tokens[-1]]))
    seeds = cells["seed"].nunique()
    listed = len(results.cells)
    count = f"{len(cells)}" if len(cells) == listed else f"{len(cells)} of the {listed} that the configuration lists"
    return f"{count}, {length} training tokens each, {seeds} training seed{'s' if seeds > 1 else ''}"


def provenances(results: Results, *stages: str) -> list[dict[str, Any]]:
    """What the results of these stages say of themselves, in the order of their paths."""
    paths = results.files([pattern for stage in stages for pattern in STAGES[stage]])
    records = [read_record(path).get("provenance") for path in paths]
    return [record for record in records if record]


def machines(results: Results) -> list[str]:
    """The machines and devices that trained and scored, each once."""
    names = []
    for about in provenances(results, "training", "evaluation", "timing"):
        cpu, device = about.get("cpu"), about.get("device") or {}
        names.append(f"{device.get('name')} with {cpu}" if device.get("type") == "cuda" else cpu)
    return list(dict.fromkeys(name for name in names if name))


def time_sentence(results: Results) -> str:
    """Computing time by stage, and the time from the first start to the last end."""
    spent, begins, ends = Counter[str](), [], []
    for stage in STAGES:
        for about in provenances(results, stage):
            if about.get("started_at"):
                start = datetime.fromisoformat(about["started_at"])
                seconds = about.get("seconds", 0.0)
                spent[stage] += seconds
                begins.append(start)
                ends.append(start + timedelta(seconds=seconds))
    if not begins:
        return "unknown"
    span = (max(ends) - min(begins)).total_seconds()
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in spent.most_common() if seconds >= 1)
    return f"{duration(sum(spent.values()))} of jobs ({stages}); {duration(span)} from first start to last end"


def versions(results: Results) -> dict[str, list[Any]]:
    """Distinct commits, package and library versions among the results, most files first.

    `mixed` has the kinds of which there are several; `committed` says whether all the code is in one commit.
    """
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("commit", "package", "python", "libraries")}
    for about in provenances(results, *STAGES):
        commit = (about.get("git_commit") or "no git")[:12]
        libraries = sorted((about.get("libraries") or {}).items())
        counts["commit"][commit + (" with uncommitted changes" if about.get("git_dirty") else "")] += 1
        counts["package"][str(about.get("package_version"))] += 1
        counts["python"][str(about.get("python"))] += 1
        counts["libraries"][", ".join(f"{name} {version}" for name, version in libraries)] += 1
    listed = [(kind, value, count) for kind, values in counts.items() for value, count in values.most_common()]
    rows = [{"kind": kind, "value": value, "files": str(count)} for kind, value, count in listed]
    committed = len(counts["commit"]) == 1 and re.fullmatch("[0-9a-f]{12}", next(iter(counts["commit"]))) is not None
    mixed = [kind for kind, values in counts.items() if len(values) > 1]
    return {"rows": rows, "mixed": mixed, "committed": committed}
