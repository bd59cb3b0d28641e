"""Stage calibrate_teachers: compare the teachers' perplexities with the paper's (Table 1; method, section 3).

With the paper's checkpoints, corpus and tokenizer they must agree. If not, hash rule, sequences or scoring differ from
the authors', and no absolute perplexity of a student can be judged; this stage reports it before any student trains.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgeted_lora.config.sections import Calibration
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, write_text
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.reporting.published import Published

PRINTED = ("Table 1", "ppl", "pretrained")  # source, metric and method in the table of published numbers


def published_perplexities(path: Path) -> dict[str, float]:
    """Perplexity by teacher from the table of published numbers. Raises BadInput if it has none."""
    try:
        lines = [line for line in Published.open(path).lines if (line.source, line.metric, line.method) == PRINTED]
        perplexities = {line.teacher: line.value for line in lines}
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path}: not the table of published numbers ({error})") from None
    if not perplexities:
        raise BadInput(f"{path}: no perplexity of a pretrained teacher; expected those of Table 1")
    return perplexities


def judge(measured: Mapping[str, Mapping[str, Any]], published: Mapping[str, float], *, tolerance: float) -> list[dict]:
    """One record per teacher: published and measured perplexity, relative difference, whether it is within tolerance.

    Args:
        measured: content of each teacher's perplexity.json.
        tolerance: largest absolute relative difference.

    Raises:
        BadInput: a teacher has no published perplexity, or a record no value.
    """
    records = []
    for name, record in measured.items():
        if name not in published:
            raise BadInput(f"calibration: teacher {name} has no published perplexity; expected {', '.join(published)}")
        try:
            value, error = float(record["value"]), float(record["standard_error"])
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"calibration: the perplexity of teacher {name} has no value and standard_error") from None
        difference = value / published[name] - 1.0
        records.append(
            {
                "teacher": name,
                "published": published[name],
                "measured": value,
                "standard_error": error,
                "difference": difference,
                "tokens": record.get("tokens"),
                "as_published": abs(difference) <= tolerance,
            }
        )
    return records


def sentence(records: Sequence[Mapping[str, Any]], *, tolerance: float) -> str:
    """The verdict in one line."""
    perplexities = ", ".join(
        f"{record['teacher']} {record['measured']:.2f} ± {record['standard_error']:.2f} "
        f"(published {record['published']:g}, {record['difference']:+.1%})"
        for record in records
    )
    off = [record["teacher"] for record in records if not record["as_published"]]
    if not off:
        return f"calibration: the teachers' perplexities come out as published within {tolerance:.1%}: {perplexities}"
    return (
        f"calibration: perplexity of {', '.join(off)} differs from the published one by more than {tolerance:.1%}: "
        f"{perplexities}; absolute perplexities of students cannot be judged (checkpoint, hash rule, sequences or "
        "tokenizer differ)"
    )


def page(records: Sequence[Mapping[str, Any]], *, tolerance: float) -> str:
    """The verdict as Markdown."""
    lines = [
        "# Calibration: the teachers of Table 1",
        "",
        sentence(records, tolerance=tolerance).removeprefix("calibration: "),
        "",
        "| Teacher | PPL, published | PPL, measured | Difference | As published |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for record in records:
        value = f"{record['measured']:.2f} ± {record['standard_error']:.2f}"
        verdict = "yes" if record["as_published"] else "**no**"
        difference = f"{record['difference']:+.1%}"
        lines.append(f"| {record['teacher']} | {record['published']:g} | {value} | {difference} | {verdict} |")
    return "\n".join(lines) + "\n"


def calibrate_teachers(
    *, scores: Sequence[Path], published: Path, calibration: Calibration, out: Path, report: Path, scale: str
) -> None:
    """Writes the verdict as JSON and Markdown and prints it; warns if a teacher differs.

    Args:
        scores: perplexity.json of each teacher, in a folder of its name.
        calibration: the section; `tolerance` as in `judge`, and `on_miss`: warn, or stop without results.

    Raises:
        BadInput: a teacher differs and `calibration.on_miss` is stop; or from `judge` or `published_perplexities`.
    """
    clock, tolerance = Clock(), calibration.tolerance
    measured = {path.parent.name: read_json(path, expected="the perplexity of a teacher") for path in scores}
    records = judge(measured, published_perplexities(published), tolerance=tolerance)
    verdict, passed = sentence(records, tolerance=tolerance), all(record["as_published"] for record in records)
    if not passed and calibration.on_miss == "stop":
        raise BadInput(f"{verdict}; calibration.on_miss is stop")
    print(verdict if passed else f"WARNING: {verdict}", file=sys.stderr, flush=True)
    payload = {"as_published": passed, "tolerance": tolerance, "teachers": records, "verdict": verdict}
    values = {"tolerance": tolerance, "on_miss": calibration.on_miss}
    write_text(report, page(records, tolerance=tolerance))
    write_result(out, payload, scale=scale, cell=None, values=values, inputs=[published, *scores], clock=clock)
