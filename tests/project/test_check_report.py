"""What the tool says of Snakemake's own report: nothing of a whole one, one line per fault of another."""

import json
import zipfile
from pathlib import Path

import pytest

from tools.check_report import expected_files, faults

ROOT = Path(__file__).resolve().parents[2]
PATHS = ["reports/x/index.html", "reports/x/tables/table1.csv"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path in PATHS:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path)
    return tmp_path


def report(path: Path, *, caption: str = "<p>Table 1.</p>", left_out: str = "", shown: list[str] = PATHS) -> Path:
    """An archive laid out as Snakemake lays out its own."""
    about = {name: {"caption": caption, "data_uri": f"data/raw/ab/{Path(name).name}"} for name in shown}
    script = "<script>var results = new Array(2);</script>"
    page = f'{script}<script id="results">\n    var results = {json.dumps(about)};\n</script>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("report/report.html", page)
        for name in shown:
            if name != left_out:
                archive.writestr(f"report/{about[name]['data_uri']}", name)
    return path


def test_a_whole_report_has_no_fault(folder: Path) -> None:
    assert list(faults(report(folder / "report.zip"), PATHS)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"shown": PATHS[:1]}, "table1.csv is not shown"),
        ({"left_out": PATHS[1]}, "table1.csv is shown and not there"),
        ({"caption": "<p>{{ snakemake.wildcards.table }}</p>"}, "table1.csv has no caption"),
    ],
)
def test_faults_are_named(folder: Path, changes: dict, fault: str) -> None:
    assert fault in "\n".join(faults(report(folder / "report.zip", **changes), PATHS))


def test_a_file_that_changed_since_and_no_archive_are_faults(folder: Path) -> None:
    made = report(folder / "report.zip")
    Path(PATHS[1]).write_text("another")
    assert [fault.partition(": ")[2] for fault in faults(made, PATHS)] == [f"{PATHS[1]} differs from the file"]
    made.write_text("no archive")
    assert "not a report of Snakemake" in "".join(faults(made, PATHS))


def test_expected_files_are_what_main_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wanted = expected_files("smoke")
    assert {"reports/smoke/index.html", "reports/smoke/tables/table2.csv", "reports/smoke/figures/figure2.svg"} <= set(
        wanted
    )
    assert "reports/smoke/tables/table3.csv" not in wanted
