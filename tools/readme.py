"""Maintainers' tool: puts the numbers of a real run of the default scale into README.md and docs/results.md.

python tools/readme.py
"""

import csv
import re
from collections import defaultdict
from pathlib import Path

from budgeted_lora.errors import BadInput

STAGES = {
    "collect_corpus": "documents and split",
    "tokenize_corpus": "token files",
    "fetch_teacher": "bringing in the teachers",
    "cache_teacher": "teacher hidden states",
    "train_cell": "training",
    "compress_cell": "compression",
    "evaluate_cell": "perplexity and ICL of students",
    "score_cell": "perplexity of further students",
    "evaluate_reference": "perplexity and ICL of teachers and the untrained student",
    "measure_speed": "speed of the structures (alone on the machine)",
    "make_figure": "figures",
    "make_table": "tables",
}
SHOWN = ("Method", "PPL", "Train compute", "MAC speedup", "Measured: modules", "Measured: prefill")


def replaced(page: str, name: str, text: str) -> str:
    """The page with what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        BadInput: the page has no such pair of markers.
    """
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise BadInput(f"expected one pair of markers <!-- begin {name} --> and <!-- end {name} -->")
    return pattern.sub(lambda found: found[1] + text.strip() + "\n" + found[2], page)


def columns(table: str, names: tuple[str, ...] | None = None) -> str:
    """The lines of a Markdown table, with the columns alone whose heads begin with one of the names."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    if names is None:
        return "\n".join(lines)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    kept = [place for place, head in enumerate(rows[0]) if head.startswith(names)]
    return "\n".join("| " + " | ".join(row[place] for place in kept) + " |" for row in rows)


def costs(benchmarks: Path) -> str:
    """What each stage of a run took, from Snakemake's benchmark files: jobs, seconds in all, largest memory."""
    taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in sorted(benchmarks.rglob("*.tsv")):
        rule = path.relative_to(benchmarks).parts[0].removesuffix(".tsv")
        with path.open(encoding="utf-8") as file:
            taken[rule] += [
                (float(row["s"]), float(row["max_rss"]) if row["max_rss"] not in ("-", "NA") else 0.0)
                for row in csv.DictReader(file, delimiter="\t")
            ]
    lines = ["| stage | jobs | seconds in all | peak memory |", "|---|---:|---:|---:|"]
    rest = [job for rule, jobs in taken.items() if rule not in STAGES for job in jobs]
    for words, jobs in [*((words, taken[rule]) for rule, words in STAGES.items()), ("all else", rest)]:
        if jobs:
            seconds, largest = sum(job[0] for job in jobs), max(job[1] for job in jobs)
            lines.append(f"| {words} | {len(jobs)} | {seconds:.0f} | {largest / 1000:.1f} GB |")
    return "\n".join(lines)


def of_committed_code(name: str, table: str) -> str:
    """A table of the report. Raises BadInput if a note below it says that uncommitted code made part of it."""
    if notes := [line.removeprefix("- ") for line in table.splitlines() if line.startswith("- Uncommitted code")]:
        raise BadInput(f"{name}: {notes[0]} Commit the code and run those cells again before README shows them")
    return table


def refresh(pages: dict[str, str], *, results: Path, reports: Path) -> dict[str, str]:
    """The pages by name with the tables of a run: students; teachers and reference rows, and what each stage cost."""
    names = ("table1", "table2", "reference")
    tables = {name: of_committed_code(name, (reports / "tables" / f"{name}.md").read_text()) for name in names}
    details = replaced(
        pages["docs/results.md"], "teachers", columns(tables["table1"]) + "\n\n" + columns(tables["reference"])
    )
    return {
        "README.md": replaced(pages["README.md"], "students", columns(tables["table2"], SHOWN)),
        "docs/results.md": replaced(details, "costs", costs(results / "benchmarks")),
    }


def read_pages(root: Path) -> dict[str, str]:
    """The pages by their path below the repository."""
    return {name: (root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")}


if __name__ == "__main__":
    made = refresh(read_pages(Path()), results=Path("results/mini"), reports=Path("reports/mini"))
    for name, text in made.items():
        Path(name).write_text(text, encoding="utf-8")
