"""Opens the archive that `snakemake main --report report.zip` makes, and compares it with the report of the scale.

python tools/check_report.py report.zip --scale smoke

Exit status 1 and one line per fault if a table, a figure or the page is missing, differs, or is not shown.
"""

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budgeted_lora.workflow.graph import load_graph
from budgeted_lora.workflow.report import ReportJobs

PAGE = "report/report.html"
RESULTS = re.compile(r'<script id="results">\s*var results = ')


def expected_files(scale: str) -> list[str]:
    """Paths of what `main` makes for people: the page, the verdicts, tables and figures."""
    jobs = ReportJobs(load_graph(f"config/{scale}.yaml", {}))
    tables = [f"tables/{name}.csv" for name in jobs.names("main")]
    figures = [f"figures/{name}.svg" for name in jobs.main_figures()]
    return [f"reports/{scale}/{name}" for name in ("index.html", "claims.csv", *tables, *figures)]


def shown_in(page: str) -> dict[str, dict[str, Any]]:
    """What Snakemake's page shows, by the path of the file: its caption, its place in the archive, and more."""
    found = RESULTS.search(page)
    return json.JSONDecoder().raw_decode(page, found.end())[0] if found else {}


def faults(archive: Path, expected: list[str]) -> Iterator[str]:
    """What is wrong with an archive; nothing if each expected file is shown with a caption and has the file's bytes."""
    try:
        report = zipfile.ZipFile(archive)
        page = report.read(PAGE).decode()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        yield f"{archive}: not a report of Snakemake ({error})"
        return
    if damaged := report.testzip():
        yield f"{archive}: {damaged} is damaged"
    shown = shown_in(page)
    for path in expected:
        about = shown.get(path)
        if about is None:
            yield f"{archive}: {path} is not shown"
        elif f"report/{about['data_uri']}" not in report.namelist():
            yield f"{archive}: {path} is shown and not there"
        elif report.read(f"report/{about['data_uri']}") != Path(path).read_bytes():
            yield f"{archive}: {path} differs from the file"
        elif not about["caption"].strip() or "{{" in about["caption"]:
            yield f"{archive}: {path} has no caption, or one that is not filled in"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--scale", default="mini")
    chosen = parser.parse_args()
    expected = expected_files(chosen.scale)
    found = list(faults(chosen.archive, expected))
    print(
        "\n".join(found) or f"{chosen.archive}: all {len(expected)} files of scale {chosen.scale} are there and shown"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
