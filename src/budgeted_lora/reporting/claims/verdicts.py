"""A verdict on every claim of config/claims.yaml.

None passes on a missing cell: that is `not run`. A statement over several comparisons is reproduced only if every one
has the claimed sign beyond its noise, and differs as soon as one has the other sign beyond its noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from budgeted_lora.reporting.claims.evidence import VARYING, Evidence, Measured, Missing
from budgeted_lora.reporting.claims.file import (
    PRINTED_AS,
    Claim,
    Metric,
    Near,
    Open,
    Order,
    Printed,
    Selection,
    Slip,
    Statement,
    Swapped,
)
from budgeted_lora.reporting.grouping import method_label
from budgeted_lora.reporting.published import Line
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.uncertainty import range_text

REPRODUCED, NOISE, DIFFERS = "reproduced", "within noise", "differs"
NOT_JUDGED, NOT_RUN = "not judged at this scale", "not run"
OPEN, INCONSISTENT = "under-specified in the paper", "paper inconsistent"
# As the page sorts them, with a sign that needs no colour.
VERDICTS = {
    DIFFERS: "✗", NOISE: "≈", REPRODUCED: "✓", INCONSISTENT: "!", OPEN: "?", NOT_RUN: "○", NOT_JUDGED: "–",
}  # fmt: skip
PRINTED_IN = {f"table{number}": f"Table {number}" for number in range(2, 9)} | {"lora_construction": "Section C.2"}
OFF_CALIBRATION = "the teachers' perplexities are not those of Table 1 (calibration.json)"
SLACK = 1e-9  # of float arithmetic, where a printed digit is compared


@dataclass(frozen=True)
class Row:
    """One line of claims.csv; `files` are paths below the results folder."""

    claim: str
    source: str
    published: str
    measured: str
    tolerance: str
    status: str
    reason: str
    noise: str
    id: str
    kind: str
    files: str


@dataclass(frozen=True)
class Step:
    """One comparison of a claim.

    Attributes:
        gap: difference of levels, second minus first, turned so that the claimed direction is positive.
        tolerance: as large a gap either way may be chance.
        sides: what is compared.
        guessing: both are accuracies no better than chance.
        margin: largest gap of two that are claimed to be equal; None for a claimed direction.
    """

    label: str
    gap: float
    tolerance: float
    text: str
    sides: tuple[Measured, ...] = ()
    guessing: bool = False
    margin: float | None = None

    @property
    def contradicts(self) -> bool:
        if self.margin is None:
            return self.gap < -self.tolerance
        return abs(self.gap) - self.tolerance > self.margin

    @property
    def clear(self) -> bool:
        if self.margin is None:
            return self.gap > self.tolerance
        return abs(self.gap) + self.tolerance <= self.margin


def judge_steps(steps: Sequence[Step | Missing]) -> str:
    """Verdict on what is claimed of every step."""
    if any(isinstance(step, Missing) for step in steps):
        return NOT_RUN
    if any(step.contradicts for step in steps):
        return DIFFERS
    return REPRODUCED if all(step.clear for step in steps) else NOISE


def judge_number(*, off: float, rounding: float, tolerance: float) -> str:
    """Verdict on a printed number that the measured one is `off` from: same digits, same within noise, or neither."""
    if off <= rounding + SLACK:
        return REPRODUCED
    return NOISE if off <= rounding + tolerance + SLACK else DIFFERS


def judged_here(claim: Statement, standing: Standing) -> bool:
    """Whether a claim can be judged at a scale of this standing: see the head of claims.yaml."""
    allowed = {"paper": standing.students, "proportions": standing.proportions, "trends": standing.taught}
    return claim.judged == "everywhere" or allowed[claim.judged]


def judge(claim: Claim, evidence: Evidence, printed: Sequence[Line]) -> list[Row]:
    """The rows of one claim: one, or one for each printed number it names."""
    if isinstance(claim, Printed):
        return [number_row(claim, line, evidence) for line in claim.lines.of(printed)]
    if isinstance(claim, Open):
        lines = claim.lines.of(printed) if claim.lines else []
        return [open_row(claim, line, evidence) for line in lines] or [blank(claim, status=OPEN)]
    if isinstance(claim, Slip):
        return [slip_row(claim, printed)]
    if isinstance(claim, Swapped):
        return [swapped_row(claim, evidence, printed)]
    return [steps_row(claim, evidence, printed)]


def number_row(claim: Printed, line: Line, evidence: Evidence) -> Row:
    """A printed number beside what was measured; nothing stands beside it where it cannot be judged."""
    about = number_texts(claim, line)
    if not judged_here(claim, evidence.results.standing):
        return blank(claim, status=NOT_JUDGED, **about)
    metric = claim.lines.metric
    ours = evidence.find(claim.selection(line), metric)
    # The absolute value of a student: there those of the teachers have to come out first.
    calibrated = evidence.calibrated if claim.judged == "paper" and claim.table is not None else True
    for one in (ours, calibrated):
        if isinstance(one, Missing):
            return blank(claim, status=NOT_RUN, **(about | {"reason": one.reason}))
    if not calibrated:
        return blank(claim, status=NOT_JUDGED, **(about | {"reason": OFF_CALIBRATION}))
    off, tolerance, noise = distance(ours, line), 0.0, evidence.covers([[ours]])
    if claim.tolerance is not None:
        tolerance, noise = claim.tolerance, "as the note says"
    elif metric in VARYING:
        tolerance = evidence.tolerance_to_print(ours)
        tolerance = ours.value * math.expm1(tolerance) if metric == "ppl" else tolerance
    status = judge_number(off=off, rounding=line.rounding, tolerance=tolerance)
    text = f"± {line.rounding + tolerance:.3g}"
    return blank(claim, status=status, measured=ours.text, tolerance=text, noise=noise, files=ours.files, **about)


def distance(ours: Measured, line: Line) -> float:
    """How far a measured quantity is from a printed number: of the mean, or of the run that is farthest for a count."""
    if ours.metric in ("ppl", "icl"):
        return abs(ours.value - line.value)
    return max(abs(level - line.value) for level in ours.levels)


def open_row(claim: Open, line: Line, evidence: Evidence) -> Row:
    """A number that the paper leaves open: without a verdict, beside what was measured where that can be compared."""
    about = number_texts(claim, line)
    ours = evidence.find(claim.selection(line), claim.lines.metric)
    if isinstance(ours, Measured) and judged_here(claim, evidence.results.standing):
        about |= {"measured": ours.text, "files": ours.files}
    return blank(claim, status=OPEN, **about)


def slip_row(claim: Slip, printed: Sequence[Line]) -> Row:
    """Where the paper contradicts itself; two prints that agree are no slip."""
    lines = [line for wanted in claim.lines for line in wanted.of(printed)]
    agree = len(lines) == 2 and lines[0].value == lines[1].value
    published = " and ".join(f"{line.text} ({line.source})" for line in lines)
    reason = "the two numbers agree after all" if agree else claim.note
    return blank(claim, status=REPRODUCED if agree else INCONSISTENT, published=published, reason=reason)


def swapped_row(claim: Swapped, evidence: Evidence, printed: Sequence[Line]) -> Row:
    """Two printed numbers against the measured ones: as printed, with their places changed, or neither."""
    lines = [wanted.of(printed)[0] for wanted in claim.lines]
    about = {"published": " and ".join(f"{line.metric} {line.text}" for line in lines)}
    if not judged_here(claim, evidence.results.standing):
        return blank(claim, status=NOT_JUDGED, **about)
    selection = Selection(table=claim.table, **lines[0].fields)
    ours = [evidence.find(selection, wanted.metric) for wanted in claim.lines]
    missing = next((one for one in ours if isinstance(one, Missing)), None)
    if missing is not None:
        return blank(claim, status=NOT_RUN, reason=missing.reason, **about)
    about["measured"] = " and ".join(f"{one.metric} {one.text}" for one in ours)
    about |= {"tolerance": "± 0.5", "noise": evidence.covers([ours]), "files": ours[0].files}

    def fits(order: Sequence[Line]) -> bool:
        return all(distance(one, line) <= line.rounding for one, line in zip(ours, order, strict=True))

    status = REPRODUCED if fits(lines) else INCONSISTENT if fits(lines[::-1]) else DIFFERS
    return blank(claim, status=status, **about)


def steps_row(claim: Order | Near, evidence: Evidence, printed: Sequence[Line]) -> Row:
    """A direction or an equality over one or more comparisons."""
    compared = labelled(claim.pairs())
    prints = [printed_step(claim, left, right, name, printed) for name, left, right in compared]
    published = "; ".join(text for text in prints if text)
    if not judged_here(claim, evidence.results.standing):
        return blank(claim, status=NOT_JUDGED, published=published)
    steps = [step(claim, left, right, name, evidence) for name, left, right in compared]
    measured = [one for one in steps if isinstance(one, Step)]
    tolerances = [one.tolerance for one in measured]
    status = judge_steps(steps)
    reasons = list(dict.fromkeys(one.reason for one in steps if isinstance(one, Missing)))
    if status == DIFFERS:
        reasons = [f"against it: {', '.join(one.label for one in measured if one.contradicts)}"]
    elif status == NOISE:
        reasons = [f"not clear: {', '.join(one.label for one in measured if not one.clear)}"]
    guesses = [one.label for one in measured if one.guessing]
    if guesses:
        reasons.append(f"no better than guessing: {'all' if len(guesses) == len(measured) else ', '.join(guesses)}")
    return blank(
        claim,
        status=status,
        published=published,
        measured="; ".join(one.text for one in measured),
        tolerance=f"± {range_text(tolerances, claim.metric)}" if any(tolerances) else "",
        noise=evidence.covers([one.sides for one in measured]) if measured else "",
        reason="; ".join([*reasons, *([claim.note] if claim.note else [])]),
        files=tuple(file for one in measured for side in one.sides for file in side.files),
    )


def step(claim: Order | Near, left: Selection, right: Selection, name: str, evidence: Evidence) -> Step | Missing:
    """One comparison, measured."""
    first, second = evidence.find(left, claim.metric), evidence.find(right, claim.metric)
    for side in (first, second):
        if isinstance(side, Missing):
            return side
    gap, tolerance = second.level - first.level, evidence.tolerance(first, second)
    if claim.metric == "ppl":
        text = f"{name} {100 * math.expm1(gap):+.1f} % (± {100 * math.expm1(tolerance):.2g})"
    else:
        text = f"{name} {first.text} to {second.text}" + (f" (± {tolerance:.2g})" if tolerance else "")
    falling = isinstance(claim, Order) and claim.direction == "falling"
    margin = claim.margin_pct / 100.0 if isinstance(claim, Near) else None
    guessing = claim.metric == "icl" and max(first.value - first.chance, second.value - second.chance) <= 0.0
    return Step(name, -gap if falling else gap, tolerance, text, (first, second), guessing, margin)


def printed_value(selection: Selection, metric: Metric, printed: Sequence[Line]) -> Line | None:
    """The paper's number for a quantity, if it prints one."""
    if selection.model is not None:
        kind, _, name = selection.model.partition("/")
        wanted, source = {"method": "pretrained", "teacher": name}, "Table 1" if kind == "teachers" else ""
    else:
        wanted = selection.given
        source = PRINTED_IN.get(wanted.pop("table"), "")
    if metric == "icl":
        source = "Figure 2"
    place = (source, PRINTED_AS.get(metric, metric))
    return next((line for line in printed if (line.source, line.metric) == place and line.fields == wanted), None)


def printed_step(claim: Order | Near, left: Selection, right: Selection, name: str, printed: Sequence[Line]) -> str:
    """The paper's numbers for one comparison; perplexities as a ratio, which other corpora can be held against."""
    first, second = (printed_value(one, claim.metric, printed) for one in (left, right))
    if first is None or second is None:
        return ""
    if claim.metric == "ppl":
        return f"{name} {100 * (second.value / first.value - 1):+.1f} %"
    return f"{name} {first.text} to {second.text}"


def labelled(pairs: list[tuple[Selection, Selection]]) -> list[tuple[str, Selection, Selection]]:
    """Each comparison with its name, in the fields that the claim varies: `1B: KD Full → KD LoRA`."""
    given = [one.given for pair in pairs for one in pair]
    fields = [name for name in Selection.model_fields if name != "table"]
    varied = [name for name in fields if len({repr(one.get(name)) for one in given}) > 1]
    compared = []
    for left, right in pairs:
        both = [name for name in varied if left.given.get(name) == right.given.get(name)]
        apart = [name for name in varied if name not in both]
        common = words(left.given, both)
        change = f"{words(left.given, apart)} → {words(right.given, apart)}"
        compared.append((f"{common}: {change}" if common else change, left, right))
    return compared


def words(given: dict[str, Any], names: Sequence[str]) -> str:
    """Fields of a selection as people say them."""
    texts = {"budget": "F = {}", "temperature": "T = {}", "kd_weight": "a = {}", "rank": "r = {}"}
    parts = {name: texts.get(name, "{}").format(given[name]) for name in names if name in given}
    if "model" in parts:
        parts["model"] = f"{given['model'].partition('/')[2]} itself"
    if "method" in parts:  # F says that it is a budgeted student
        parts["method"] = "" if "budget" in given else method_label(given["method"])
    return " ".join(part for part in parts.values() if part)


def number_texts(claim: Statement, line: Line) -> dict[str, Any]:
    """Texts of a row on one printed number; the claim says whose it is: KD LoRA, 1B, init=mixed."""
    method = "teacher itself" if line.method == "pretrained" else method_label(line.method)
    whose = ", ".join(part for part in (method, line.teacher, line.setting) if part)
    parts = (claim.id, line.method, line.teacher, line.setting.replace(" ", ","))
    return {"claim": f"{claim.claim}: {whose}", "published": line.text, "id": "/".join(part for part in parts if part)}


def blank(stated: Claim, *, status: str, files: tuple[str, ...] = (), **fields: str) -> Row:
    """A row with the claim's own texts where no others are given."""
    texts = {"claim": stated.claim, "source": stated.source, "id": stated.id, "reason": stated.note}
    empty = dict.fromkeys(("published", "measured", "tolerance", "noise"), "")
    return Row(**(empty | texts | fields), status=status, kind=stated.kind, files=" ".join(dict.fromkeys(files)))
