"""The verdicts as claims.csv and claims.md, and as a section of the page."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from budgeted_lora.config.scale import Config
from budgeted_lora.files import write_text
from budgeted_lora.reporting.claims.evidence import Evidence
from budgeted_lora.reporting.claims.file import read_claims
from budgeted_lora.reporting.claims.verdicts import VERDICTS, Row, judge
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table, markdown
from budgeted_lora.reporting.uncertainty import Bootstrap

HEADINGS = {
    "status": "Verdict", "claim": "Claim", "source": "Source", "published": "Published", "measured": "Measured",
    "tolerance": "Tolerance", "reason": "Remark",
}  # fmt: skip
FILES = ("claims_all.csv", "claims.csv")  # with the ablations, without


def judge_all(results: Results, *, claims: Path, published: Published, config: Config) -> pd.DataFrame:
    """One row per verdict, in the order of the claims; a result that is missing makes a claim `not run`.

    Args:
        claims: claims.yaml. config: the scale; its report section gives resamples and coverage.

    Raises:
        BadInput: a file is unusable, or two models scored different validation windows.
    """
    evidence = Evidence(results, config, Bootstrap(config.report.bootstrap, config.report.confidence))
    stated = read_claims(claims, published.lines).claims
    rows = [row for claim in stated for row in judge(claim, evidence, published.lines)]
    return pd.DataFrame([asdict(marked(row, results)) for row in rows])


def marked(row: Row, results: Results) -> Row:
    """A verdict with a remark if any of its results was made from code that is in no commit."""
    dirty = results.uncommitted(row.files.split())
    if not dirty:
        return row
    remark = f"made from uncommitted code: {', '.join(dirty[:3])}{' ...' if len(dirty) > 3 else ''}"
    return replace(row, reason="; ".join(filter(None, [row.reason, remark])))


def write_claims(frame: pd.DataFrame, out: Path, *, scale: str) -> list[Path]:
    """Write the verdicts to `out` and the same as Markdown beside it."""
    write_text(out, frame.to_csv(index=False, lineterminator="\n"))
    write_text(out.with_suffix(".md"), markdown(as_table(frame, scale)))
    return [out, out.with_suffix(".md")]


def as_table(frame: pd.DataFrame, scale: str) -> Table:
    """The claims as a person reads them, contradicted ones first."""
    shown = frame.loc[sorted(frame.index, key=lambda i: place(frame["status"][i])), list(HEADINGS)]
    shown = shown.rename(columns=HEADINGS)
    shown["Verdict"] = [signed(status) for status in shown["Verdict"]]
    counts = "; ".join(f"{verdict} {count}" for verdict, count in tally(frame["status"]))
    return Table("claims", f"The paper's claims at scale {scale}: {counts}", frame, shown)


def place(status: str) -> int:
    """Where a verdict stands in the order of the page; unknown words last."""
    return list(VERDICTS).index(status) if status in VERDICTS else len(VERDICTS)


def signed(status: str) -> str:
    """A verdict with its sign: ✓ reproduced."""
    return f"{VERDICTS.get(status, '')} {status}".strip()


def tally(statuses: Iterable[str]) -> list[tuple[str, int]]:
    """How many claims got each verdict, in the page's order."""
    counts = Counter(statuses)
    return [(verdict, counts[verdict]) for verdict in sorted(counts, key=place)]


def claims_section(folder: Path) -> dict[str, Any] | None:
    """What the page shows of the claims beside it; None without any.

    Verdicts with the ablations are shown unless those of the main tables are newer.

    Args:
        folder: the page's folder.
    """
    present = [folder / name for name in FILES if (folder / name).is_file()]
    if not present:
        return None
    path = max(present, key=lambda one: one.stat().st_mtime_ns)  # the first of equals
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    for row in rows:
        row |= {name: row.get(name, "") for name in (*HEADINGS, "noise")}
        row["verdict"] = signed(row["status"])
        row["css"] = f"verdict-{place(row['status'])}"
        row["files"] = row.get("files", "").split()
    rows.sort(key=lambda row: place(row["status"]))
    counts = [(signed(status), count) for status, count in tally(row["status"] for row in rows)]
    return {"file": path.name, "counts": counts, "rows": rows}
