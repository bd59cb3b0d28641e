"""Tool for maintainers: puts what a run shows into docs/reference, as small files.

    budgeted-lora report --scale overnight --partial
    python tools/ship_reference.py overnight

copies the tables and verdicts of reports/overnight to docs/reference/overnight, and writes cells.csv there: one line
per student and variant that has been scored, with its recipe and what was measured of it. Weights are not shipped.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_with
from budgeted_lora.reporting.contents import Shown
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.tables.controls import against_scale

READS = Shown("cells", "", (), ("perplexity", "icl", "train", "compression"))
OF_THE_RUN = ("tokens_per_second", "computed_in", "device")  # further keys of train.json


def scored_students(results: Results) -> pd.DataFrame:
    """One row per student and variant with a perplexity: recipe, scores, structure, compute and pace.

    `tables` names all that list it. Costs are relative to the scale's dense student and KD Full, whatever the shape.
    """
    listed_in = results.lines.groupby(["cell", "variant"])["table"].agg(lambda names: " ".join(dict.fromkeys(names)))
    frame = against_scale(results, results.of(READS).runs(*results.tables)).drop(columns=["files"])
    frame = frame[frame["ppl"].notna()]
    records = [results.json(f"cells/{cell}/train.json") or {} for cell in frame["cell"]]
    named = [listed_in[place] for place in zip(frame["cell"], frame["variant"], strict=True)]
    return frame.assign(tables=named, **{name: [one.get(name) for one in records] for name in OF_THE_RUN})


def ship(scale: str, *, root: Path = Path()) -> Path:
    """Writes docs/reference/<scale> from results/<scale> and reports/<scale>, and returns it.

    Raises:
        BadInput: the report has not been made, or no student is scored.
    """
    report, out = root / "reports" / scale, root / "docs" / "reference" / scale
    if not (report / "tables").is_dir():
        report = report / "partial"
    if not (report / "tables").is_dir():
        raise BadInput(f"{report}: no tables; `budgeted-lora report --scale {scale} --partial` makes them")
    frame = scored_students(Results.open(root / "results" / scale, partial=True))
    if frame.empty:
        raise BadInput(f"{root / 'results' / scale}: no student with a perplexity; expected at least one")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.csv"):
        old.unlink()
    for path in report.glob("tables/*.csv"):
        shutil.copyfile(path, out / path.name)
    verdicts = [path for path in (report / "claims.csv", report / "claims_all.csv") if path.is_file()]
    for path in verdicts[:1]:
        shutil.copyfile(path, out / "claims.csv")
    write_with(out / "cells.csv", lambda path: frame.to_csv(path, index=False, float_format="%.8g"))
    return out


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(ship(name))
