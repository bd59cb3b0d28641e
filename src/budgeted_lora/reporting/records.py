"""What the report reads of a result file: keys of JSON by kind of file, columns of CSV, and their types.

Other keys and columns may stand beside them.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from budgeted_lora.config.messages import describe
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json


def _with_zone(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text} names no time zone")
    return text


Number = float | None
Text = str | None
Seconds = Annotated[float, Field(ge=0, le=1e10)]  # centuries: more is no duration
Moment = Annotated[str, AfterValidator(_with_zone)]


class Read(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Device(Read):
    type: Text = None
    name: Text = None


class Provenance(Read):
    started_at: Moment | None = None
    seconds: Seconds = 0.0
    git_commit: Text = None
    git_dirty: bool | None = None
    libraries: dict[str, str] | None = None
    cpu: Text = None
    device: Device | None = None
    files: dict[str, str] | None = None


class Record(Read):
    """What every result says of itself; the kinds below add what is read of one."""

    provenance: Provenance | None = None


class Scored(Read):
    value: Number = None


class Conditions(Read):
    validation_sha256: Text = None


class Perplexity(Record):
    value: Annotated[float, Field(gt=0)] | None = None
    standard_error: Number = None
    bits_per_byte: Number = None
    functions: Scored | None = None
    uncompressed: Scored | None = None
    conditions: Conditions | None = None


class Probe(Read):
    accuracy: Number = None
    se: Number = None
    n: Number = None
    chance_constant: Number = None
    chance_word: Number = None
    ceiling: Number = None


class InContext(Record):
    composite: float
    composite_se: float
    chance_composite: float
    per_seed: dict[str, float]
    probes: dict[str, Probe]


class Module(Read):
    name: str
    dense_macs: Annotated[int, Field(ge=0)]


class Compression(Record):
    modules: list[Module]
    totals: dict[str, Number]


class LowRank(Read):
    scores: list[float] | None = None
    kept_energy: list[float] | None = None
    kept_output_energy: list[float] | None = None


class Train(Record):
    train_seconds: Number = None
    train_compute: dict[str, Number] | None = None
    low_rank: LowRank | None = None


class Part(Read):
    speedup: Number = None
    speedup_q1: Number = None
    speedup_q3: Number = None


class Speed(Record):
    modules: Part = Part()
    prefill: Part = Part()
    decode: Part = Part()


class Gated(Read):
    gates: list[float] | None


class Adapter(Record):
    modules: dict[str, Gated]


class Contaminated(Read):
    examples: Number = None
    long_enough: Number = None
    prompts: Number = None
    answers: Number = None
    largest_share: Number = None


class Contamination(Record):
    ngram: float
    training_tokens: float
    probes: dict[str, Contaminated]
    total: Contaminated


class Hub(Read):
    name: str = ""


class Source(Read):
    source: Text = None
    package_versions: dict[str, Text] | None = None
    hub: Hub | None = None


class Tokens(Read):
    tokens: int


class Proof(Read):
    documents_on_both_sides: int | None = None


class Manifest(Record):
    corpus: Source = Source()
    files: dict[str, Tokens] = {}
    function_share: Number = None
    proof: Proof = Proof()


KINDS: dict[str, type[Record]] = {
    "perplexity.json": Perplexity,
    "icl.json": InContext,
    "compression.json": Compression,
    "train.json": Train,
    "adapter.json": Adapter,
    "contamination.json": Contamination,
    "manifest.json": Manifest,
}


def read_record(path: Path) -> dict[str, Any]:
    """A JSON result as it stands in its file, after its keys were compared with what the report reads of its kind.

    Raises:
        BadInput: it is missing or damaged, or a key is absent or of another type; all such keys are named.
    """
    record = read_json(path, expected="a result of this package")
    kind = Speed if path.parent.name == "speed" else KINDS.get(path.name, Record)
    try:
        kind.model_validate(record)
    except ValidationError as error:
        raise BadInput(f"{path}: {describe(error)}; damaged, or of another version: delete it and rerun") from None
    return record


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """A CSV file. Raises BadInput if it is none."""
    try:
        return pd.read_csv(path, **options)
    except (ValueError, OverflowError) as error:  # also what is not UTF-8, an empty file, and lines of other lengths
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: not a whole CSV file ({reason}); delete it and rerun") from None


def read_numbers(path: Path) -> pd.DataFrame:
    """A CSV file of numbers with a column `step`. Raises BadInput if it is none."""
    frame = read_csv(path)
    if "step" not in frame.columns:
        raise BadInput(f"{path}: no column step; delete it and rerun")
    refuse_text(path, frame)
    return frame


def refuse_text(path: Path, frame: pd.DataFrame) -> None:
    """Raises BadInput if a column holds something else than numbers."""
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise BadInput(f"{path}: column {name} holds something else than numbers; delete it and rerun")


def of_uncommitted_code(record: Any) -> bool:
    """Whether a JSON result says that its code was in no commit."""
    about = record.get("provenance") if isinstance(record, dict) else None
    return isinstance(about, dict) and about.get("git_dirty") is True


def size_in_name(name: str) -> float:
    """Parameters that a teacher's name states, in billions: 0.13B -> 0.13, 125m -> 0.125; infinity without one."""
    digits, unit = name[:-1], name[-1:].lower()
    try:
        return float(digits) * {"b": 1.0, "m": 1e-3}[unit]
    except (KeyError, ValueError):
        return float("inf")
