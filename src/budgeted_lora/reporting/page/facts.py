"""What the page says besides tables and figures: what was run, where, how long, with which versions and constants."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from budgeted_lora.reporting.grouping import method_label
from budgeted_lora.reporting.results import Results, provenance_of
from budgeted_lora.reporting.table import duration

# JSON results by the stage that made them. A teacher's cache is judged by its bytes: what made it is beside it.
STAGES = {
    "teachers and untrained students": ("teachers/*/*.json", "students/*/*.json", "calibration.json"),
    "corpus": (
        "data/corpus.json", "data/manifest.json", "data/teachers/manifest.json", "data/shards/*/source.json",
        "data/shards/*/shard.json",
    ),
    "caches": ("cache/*/provenance.json",),
    "training": ("cells/*/train.json",),
    "compression": ("cells/*/compressed/*/compression.json",),
    "evaluation": ("cells/*/compressed/*/perplexity.json", "cells/*/compressed/*/icl.json"),
    "timing": ("speed/*.json",),
}  # fmt: skip
SPLITS = {"train": "training text", "validation": "held-out prose"}
SLIPS = [
    "For F = 0.8 the paper prints 24 dense paths kept, 1 by SVD, 17 dropped. Kept and dropped are swapped: with its "
    "cost model F = 0.8 gives "
    "17 / 1 / 24 and a reduction of 30.4 % at full ranks, which fits the printed 30.6 %; 24 kept would need a budget "
    "of 0.90 to 0.91 and reduce at most 24.6 %.",
    "The “speedup” columns are ratios of multiply-accumulates, not timings. Here both are shown, and named.",
    "“Speedup” is against the dense student, “parameter reduction” against dense plus LoRA. Against the dense student "
    "alone the reductions are "
    "75.3 % (F = 0) and 42.5 % (F = 0.4), not 80.2 % and 53.9 %.",
    "KD LoRA's 1.00× and 0 % are those of the merged model; unmerged it runs at 0.80×.",
    "The mixed student at T = 2.0, a = 0.5 is 28.13 in Table 4 and 28.11 in Table 5.",
    "KD LoRA with r = 128 is 31.13 in Table 6 and 31.14 in the text of C.2.",
    "The illustration of the probe capitalize (dog → DOG) is not the rule of its data, which is title case (without → "
    "Without).",
    "Which of the two composites 5.0 and 5.6 at 1B in Figure 2 belongs to which F follows only from the order of the "
    "text.",
]


@dataclass(frozen=True)
class Versions:
    """Which code and libraries made the results, and whether they are of one kind."""

    rows: list[dict[str, str]]
    mixed: list[str]


def run_facts(results: Results) -> list[tuple[str, str]]:
    """Label and text of the first screen's facts: scale, corpus, teachers, students, machine, time."""
    named = ", ".join(teacher_text(row) for _, row in results.teachers().iterrows())
    teachers = named if results.standing.models or not named else f"standing for {named}"
    return [
        ("Scale", results.scale),
        ("Corpus", corpus_sentence(results)),
        ("Teachers", teachers or "none yet"),
        ("Students", students_sentence(results)),
        ("Machine", "; ".join(machines(results)) or "unknown"),
        ("Time", time_sentence(results)),
    ]


def students_sentence(results: Results) -> str:
    """How many students are trained of those that the configuration lists, on how many tokens and seeds."""
    trained = [(results.root / "cells" / cell / "train.json").is_file() for cell in results.cells["cell"]]
    there = results.cells[trained]
    if there.empty:
        return "none yet"
    tokens = [millions(value) for value in sorted({int(value) for value in there["tokens"]})]
    spoken = " to ".join(dict.fromkeys([tokens[0], tokens[-1]]))
    seeds = there["seed"].nunique()
    listed = len(results.cells)
    count = f"{len(there)}" if len(there) == listed else f"{len(there)} of the {listed} that the configuration lists"
    return f"{count}, {spoken} training tokens each, {seeds} training seed{'s' if seeds > 1 else ''}"


def teacher_text(row: pd.Series) -> str:
    """A teacher with its shape and size, as far as they are known."""
    if pd.isna(row.get("parameters")):
        return str(row["name"])
    return (
        f"{row['name']} ({row['layers']:.0f} layers of {row['hidden']:.0f}, {row['parameters'] / 1e6:.1f} M parameters)"
    )


def millions(tokens: float) -> str:
    """Tokens as people say them: 2.55 B, 3.1 M, 40 k."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return f"{tokens:.0f}"


def corpus_sentence(results: Results) -> str:
    """What the students read and were scored on, from data/manifest.json."""
    manifest = results.json("data/manifest.json")
    if manifest is None:
        return "unknown (no manifest yet)"
    corpus, files = manifest.get("corpus", {}), manifest.get("files", {})
    packages = corpus.get("package_versions") or {}
    source = {
        "docstrings": f"documentation strings of {len(packages)} scientific Python packages",
        "files": "local text files",
        "hub": (corpus.get("hub") or {}).get("name", "a Hub dataset"),
    }.get(corpus.get("source", ""), "unknown source")
    sizes = [f"{millions(files[name]['tokens'])} tokens of {what}" for name, what in SPLITS.items() if name in files]
    sentence = f"{source}: {', '.join(sizes)}"
    if manifest.get("function_share"):
        sentence += f"; {100 * manifest['function_share']:.0f} % of the training tokens are function documents"
    if manifest.get("proof", {}).get("documents_on_both_sides") == 0:
        sentence += "; no held-out document in training (proved by digest)"
    return sentence


def machines(results: Results) -> list[str]:
    """The machines and devices that trained and scored, each once."""
    seen: dict[str, None] = {}
    for path in results.files((*STAGES["training"], *STAGES["evaluation"], *STAGES["timing"])):
        about = provenance_of(path)
        device = about.get("device") or {}
        name = f"{device.get('name')} with {about.get('cpu')}" if device.get("type") == "cuda" else about.get("cpu")
        if name:
            seen[name] = None
    return list(seen)


def time_sentence(results: Results) -> str:
    """Computing time by stage, and the time from the first start to the last end."""
    spent, begins, ends = Counter[str](), [], []
    for stage, patterns in STAGES.items():
        for path in results.files(patterns):
            about = provenance_of(path)
            if "started_at" not in about:
                continue
            start = datetime.fromisoformat(about["started_at"])
            spent[stage] += about["seconds"]
            begins.append(start)
            ends.append(start + timedelta(seconds=about["seconds"]))
    if not begins:
        return "unknown"
    span = (max(ends) - min(begins)).total_seconds()
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in spent.most_common() if seconds >= 1)
    return f"{duration(sum(spent.values()))} of jobs ({stages}); {duration(span)} from first start to last end"


def versions(results: Results) -> Versions:
    """Distinct commits, package and library versions among the results, most files first."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in ("commit", "package", "python", "libraries")}
    for path in results.files([pattern for patterns in STAGES.values() for pattern in patterns]):
        about = provenance_of(path)
        if not about:
            continue
        commit = (about.get("git_commit") or "no git")[:12]
        libraries = sorted((about.get("libraries") or {}).items())
        found["commit"][commit + (" with uncommitted changes" if about.get("git_dirty") else "")] += 1
        found["package"][str(about.get("package_version"))] += 1
        found["python"][str(about.get("python"))] += 1
        found["libraries"][", ".join(f"{name} {version}" for name, version in libraries)] += 1
    rows = [
        {"kind": kind, "value": value, "files": str(count)}
        for kind, counts in found.items()
        for value, count in counts.most_common()
    ]
    return Versions(rows, [kind for kind, counts in found.items() if len(counts) > 1])


def cell_links(results: Results, relative: str, table: str | None = None) -> list[dict[str, Any]]:
    """One row a cell, of one table or of all: what it is, and links to its files that are there.

    Args:
        relative: path from the page's folder to results/<scale>, with / between parts.
    """
    rows = []
    for cell in (results.cells if table is None else results.listed(table)).itertuples():
        folder = f"cells/{cell.cell}"
        own = {"training": "train.json", "history": "history.csv", "retention": "retention.csv"}
        wanted = {label: f"{folder}/{name}" for label, name in own.items()}
        every = getattr(cell, "settings", "").split() or [results.settings]
        for settings in every if table is None else results.settings_asked(cell, table):
            scored = f"{folder}/compressed/{settings}"
            said = "" if settings == "default" else f", {settings}"
            scores = {"compression": "compression.json", "perplexity": "perplexity.json", "ICL": "icl.json"}
            wanted |= {f"{label}{said}": f"{scored}/{name}" for label, name in scores.items()}
        wanted["speed"] = f"speed/{cell.structure}.json"
        links = [(label, f"{relative}/{path}") for label, path in wanted.items() if (results.root / path).is_file()]
        rows.append(
            {
                "cell": cell.cell,
                "method": method_label(cell.method, cell.budget),
                "teacher": cell.teacher,
                "tables": cell.tables,
                "links": links,
            }
        )
    return rows


def shared_links(results: Results, relative: str) -> list[tuple[str, str]]:
    """Links to the files that belong to no cell: manifest, list of cells, teachers and untrained students."""
    files = ["cells.csv", "data/manifest.json"]
    files += [str(path.relative_to(results.root)) for path in results.files(STAGES["teachers and untrained students"])]
    return [(name, f"{relative}/{name}") for name in files if (results.root / name).is_file()]
