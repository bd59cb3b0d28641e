"""config/claims.yaml: what the paper says, each statement with the quantities it speaks of.

A statement names students by fields of their recipe. Verdicts are in `verdicts`, measured values in `evidence`.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from budgeted_lora.config.messages import describe
from budgeted_lora.config.scale import CLAIM_TABLES
from budgeted_lora.config.types import Fraction, Init, Method, Positive, Strict
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.published import Line

Metric = Literal[
    "ppl", "icl", "train_compute", "executed_compute", "module_speedup", "param_reduction_pct", "dense_kept",
    "dense_svd", "dense_dropped", "avg_rank",
]  # fmt: skip
Judged = Literal["paper", "proportions", "trends", "everywhere"]
PRINTED_AS = {"icl": "icl_composite_pct"}  # metrics that published.csv calls by another name


class Selection(Strict):
    """Students of one table by fields of their recipe, a field left out being left open; or one reference model.

    `rank` is the paper's, of r = 128: at another scale the same share of its own rank is meant.
    """

    table: str | None = None
    model: str | None = None
    method: Method | None = None
    teacher: str | None = None
    init: Init | None = None
    budget: Fraction | None = None
    schedule: str | None = None
    temperature: float | None = None
    kd_weight: Fraction | None = None
    rank: Positive | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are named."""
        return self.model_dump(exclude_none=True)

    def over(self, *parts: "Selection") -> "Selection":
        """This selection with others laid on top in turn; one that names a model stands for itself."""
        merged = self.given
        for part in parts:
            merged = part.given if part.model else merged | part.given
        return Selection(**merged)

    def check(self) -> None:
        """Raise ValueError unless the selection names a known table, or a teacher or student model."""
        if (self.table is None) == (self.model is None):
            raise ValueError(f"a selection needs either table or model, found {self.given}")
        if self.table is not None and self.table not in CLAIM_TABLES:
            raise ValueError(f"table {self.table!r} is not among {', '.join(sorted(CLAIM_TABLES))}")
        if self.model is not None and self.model.split("/")[0] not in ("teachers", "students"):
            raise ValueError(f"model {self.model!r} is not teachers/<name> or students/<name>")


class Lines(Strict):
    """Lines of published.csv: all of a source and metric, or fewer."""

    source: str
    metric: Metric
    method: str | None = None
    teacher: str | None = None
    settings: list[str] | None = None

    @property
    def words(self) -> str:
        """The selection in words, for a message."""
        return ", ".join(f"{name} {value}" for name, value in self.model_dump(exclude_none=True).items())

    def of(self, printed: Sequence[Line]) -> list[Line]:
        """The lines meant, in the file's order."""
        metric = PRINTED_AS.get(self.metric, self.metric)
        return [
            line
            for line in printed
            if (line.source, line.metric) == (self.source, metric)
            and self.method in (None, line.method)
            and self.teacher in (None, line.teacher)
            and (self.settings is None or line.setting in self.settings)
        ]


class Statement(Strict):
    """What every claim has."""

    id: str
    claim: str
    source: str
    judged: Judged
    note: str = ""


class Printed(Statement):
    """Each of some printed numbers is what we measure; one verdict per number."""

    kind: Literal["printed"]
    lines: Lines
    table: str | None = Field(None, description="Table whose cells are meant; without one the teachers themselves.")
    tolerance: float | None = Field(None, gt=0, description="Instead of the measured one; the note says why.")

    def selection(self, line: Line) -> Selection:
        """Whose quantity a printed number is."""
        if self.table is None:
            return Selection(model=f"teachers/{line.teacher}")
        return Selection(table=self.table, **line.fields)


class Comparison(Statement):
    """A quantity of several students, compared from step to step in every case of `each`."""

    metric: Metric
    of: Selection = Selection()
    steps: list[Selection] = Field(min_length=2)
    each: list[Selection] = Field(default_factory=lambda: [Selection()], min_length=1)

    def pairs(self) -> list[tuple[Selection, Selection]]:
        """Every comparison, as (from, to)."""
        cases = [[self.of.over(case, step) for step in self.steps] for case in self.each]
        return [pair for case in cases for pair in pairwise(case)]


class Order(Comparison):
    """A quantity rises or falls from step to step, or from the first to each of the others."""

    kind: Literal["order"]
    direction: Literal["rising", "falling"]
    compare: Literal["chain", "first"] = "chain"

    def pairs(self) -> list[tuple[Selection, Selection]]:
        if self.compare == "chain":
            return super().pairs()
        first, *others = self.steps
        return [(self.of.over(case, first), self.of.over(case, step)) for case in self.each for step in others]


class Near(Comparison):
    """Two quantities differ by no more than a margin."""

    kind: Literal["near"]
    margin_pct: float = Field(gt=0)
    steps: list[Selection] = Field(min_length=2, max_length=2)


class Swapped(Statement):
    """Printed numbers that only fit when two of them change places: inconsistent if that is what we measure."""

    kind: Literal["swapped"]
    table: str
    lines: list[Lines] = Field(min_length=2, max_length=2)


class Slip(Statement):
    """The paper contradicts itself: two printed numbers for one quantity, or as the note says."""

    kind: Literal["slip"]
    lines: list[Lines] = Field(default_factory=list, max_length=2)


class Open(Statement):
    """The paper does not say enough to judge; its numbers, if any, are listed with what we measure."""

    kind: Literal["open"]
    lines: Lines | None = None
    table: str | None = None

    selection = Printed.selection


Claim = Annotated[Printed | Order | Near | Swapped | Slip | Open, Field(discriminator="kind")]


class ClaimsFile(Strict):
    """The whole file."""

    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> "ClaimsFile":
        seen = set()
        for claim in self.claims:
            if claim.id in seen:
                raise ValueError(f"claim {claim.id} stands twice")
            seen.add(claim.id)
            try:
                for selection in selections(claim):
                    selection.check()
            except ValueError as error:
                raise ValueError(f"claim {claim.id}: {error}") from None
        return self


def read_claims(path: Path | str, printed: Sequence[Line]) -> ClaimsFile:
    """The validated claims.

    Raises:
        BadInput: one line: the file is missing or no YAML, a key is unknown, or a claim names no printed number.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        claims = ClaimsFile.model_validate(values)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; expected the paper's claims (config/claims.yaml)") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        raise BadInput(f"{path}: {describe(error)}") from None
    for claim in claims.claims:
        for lines in lines_of(claim):
            if not lines.of(printed):
                raise BadInput(f"{path}: claim {claim.id}: no line of the published numbers is {lines.words}")
            if isinstance(claim, Slip | Swapped) and len(lines.of(printed)) > 1:
                raise BadInput(f"{path}: claim {claim.id}: several published numbers are {lines.words}")
    return claims


def lines_of(claim: Claim) -> list[Lines]:
    """The printed numbers a claim names."""
    lines = getattr(claim, "lines", None) or []
    return lines if isinstance(lines, list) else [lines]


def selections(claim: Claim) -> list[Selection]:
    """The students a claim names, as far as that is known without the printed numbers."""
    if isinstance(claim, Comparison):
        return [selection for pair in claim.pairs() for selection in pair]
    table = getattr(claim, "table", None)
    return [Selection(table=table)] if table else []
