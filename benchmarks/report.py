"""From lines to JSON, a Markdown table and a figure; and the table in docs/speed.md.

python -m benchmarks.report [NAME]      draws results/NAME.json again, and puts it into docs/speed.md
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.goals import TITLES
from benchmarks.measures import Measure
from benchmarks.turns import ROOT

RESULTS = ROOT / "benchmarks" / "results"
HEADS = ("#", "what", "shape", "threads", "against", "measured (quartiles)", "at least", "aim", "verdict", "notes")
BAD = ("BEHIND", "BELOW")


def number(value: float, line: Measure) -> str:
    return f"{value:.{line.digits}f}" + (" s" if line.unit == "s" else line.unit)


def measured(line: Measure) -> str:
    if line.value is None:
        return "-"
    text = number(line.value, line)
    if line.q1 is not None and line.q1 != line.q3:
        text += f" ({line.q1:.2f} to {line.q3:.2f})"
    return text


def goal(value: float | None, line: Measure) -> str:
    if value is None:
        return ""
    return ("at most " if line.better == "lower" else "") + number(value, line)


def row(line: Measure) -> tuple[str, ...]:
    notes = [f"skipped: {line.skipped}"] if line.skipped else list(line.notes)
    verdict = f"**{line.verdict}**" if line.verdict.startswith(BAD) else line.verdict
    limits = goal(line.at_least, line), goal(line.aim, line)
    cells = (line.row, line.what, line.shape, line.threads, line.against, measured(line), *limits, verdict)
    return (*(str(cell) for cell in cells), "; ".join(notes).replace("|", "/"))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def table(lines: Sequence[Measure]) -> list[str]:
    return markdown(HEADS, [row(line) for line in lines])


def machine_words(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in machine["libraries"].items())
    gpu = f"{machine['gpu']} (CUDA {machine['cuda']}), " if machine["gpu"] else ""
    commit = (machine["git_commit"] or "unknown")[:10] + (" with local changes" if machine["git_dirty"] else "")
    return (
        f"{gpu}{machine['cpu']} ({machine['cores']} usable, {machine['cpu_capability']}), {machine['memory_gb']} GB, "
        f"load {machine['load_before']} before the run; {machine['system']}, Python {machine['python']}, {versions}; "
        f"commit {commit} for the newest lines, {machine['date']}."
    )


def page(result: dict[str, Any]) -> str:
    """The Markdown file: machine, what stands badly, and the whole table."""
    lines = result["lines"]
    bad = [line for line in lines if line.verdict.startswith(BAD)]
    quick = "quick run, to see that everything runs; its shapes are smaller than those the goals are for"
    text = ["# Speed: " + (quick if result["quick"] else "measured by turns"), ""]
    text += [machine_words(result["machine"]), ""]
    text += ["Every value is the median of ratios within a round, with quartiles; more than 1 is faster than what it"]
    text += ["is compared with, unless the goal says `at most`.", ""]
    text += [f"{len(bad)} of {len(lines)} lines fall behind their peer or goal.", ""] if lines else []
    for number_, title in TITLES.items():
        own = [line for line in lines if line.row == number_]
        if own:
            text += [f"## {number_}. {title}", "", *markdown(HEADS[1:], [row(line)[1:] for line in own]), ""]
    return "\n".join(text)


def write(stem: Path, result: dict[str, Any]) -> None:
    """Writes JSON, Markdown and figure.

    Of the file that is there stay the lines whose row this run did not measure with their threads and shape.
    """
    path = stem.with_name(stem.name + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = result["machine"]["git_commit"]
    entries = [line.as_json() | {"commit": commit} for line in result["lines"]]
    if path.exists():
        # a row that broke has a line without a shape
        anew = {(line.row, line.threads, shape) for line in result["lines"] for shape in (line.shape, "")}
        before = json.loads(path.read_text())["lines"]
        entries += [line for line in before if (line["row"], line["threads"], line["shape"]) not in anew]
    places: dict[tuple[str, ...], int] = {}
    for entry in entries:
        places.setdefault(place_of(entry), len(places))
    entries.sort(key=lambda entry: (entry["row"], places[place_of(entry)], entry["threads"]))
    path.write_text(json.dumps(result | {"lines": entries}, indent=1) + "\n", encoding="utf-8")
    draw_again(path)


def place_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """What two lines share that differ in threads alone."""
    return entry["shape"], entry["what"], entry["against"]


def read(path: Path) -> dict[str, Any]:
    """A result with its lines as `Measure`."""
    result = json.loads(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Measure)}
    lines = [Measure(**{key: value for key, value in line.items() if key in names}) for line in result["lines"]]
    return result | {"lines": lines}


def draw_again(path: Path) -> None:
    result = read(path)
    path.with_suffix(".md").write_text(page(result), encoding="utf-8")
    from benchmarks.figure import draw

    draw(result["lines"], path.with_suffix(".svg"))


def goals_table(result: dict[str, Any]) -> str:
    """The table of docs/speed.md: lines that have a goal, without their notes."""
    lines = [line for line in result["lines"] if line.at_least is not None]
    kept = range(HEADS.index("notes"))
    rows = [[row(line)[place] for place in kept] for line in lines]
    return "\n".join([machine_words(result["machine"]), "", *markdown([HEADS[place] for place in kept], rows)])


def refresh_docs(path: Path) -> None:
    from tools.readme import replaced

    docs = ROOT / "docs" / "speed.md"
    text = docs.read_text(encoding="utf-8")
    docs.write_text(replaced(text, "speed", goals_table(read(path))), encoding="utf-8")


if __name__ == "__main__":
    named = RESULTS / f"{sys.argv[1] if len(sys.argv) > 1 else 'cpu-2c'}.json"
    draw_again(named)
    refresh_docs(named)
