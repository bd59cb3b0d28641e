"""What is read of two records: values, code, scores with their errors, modules, and how they differ."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from budgeted_lora.reporting.uncertainty import Interval

CODE = ("schema_version", "package_version", "git_commit", "git_dirty", "libraries", "python", "cpu", "device")
TOTALS = ("kept", "svd", "dropped", "macs", "speedup_vs_dense", "speedup_vs_lora", "param_reduction_pct")
# Of each kind of record: keys of numbers with their names, and keys of their standard errors.
METRICS = {
    "perplexity.json": {
        "value": "perplexity",
        "bits_per_byte": "bits per byte",
        "functions.value": "perplexity of functions",
        "uncompressed.value": "perplexity before compression",
    },
    "icl.json": {"composite": "in-context score"},
    "train.json": {"loss": "training loss", "kl": "training KL", "ce": "training CE"},
}
ERRORS = {
    "value": "standard_error",
    "functions.value": "functions.standard_error",
    "uncompressed.value": "uncompressed.standard_error",
    "composite": "composite_se",
}


@dataclass(frozen=True)
class Change:
    """A value that differs in the same way in one or several records; None where it is absent."""

    key: str
    a: Any
    b: Any
    where: tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """A number that differs, with the interval of the difference B - A.

    Attributes:
        noise: None where no error of the number is known.
        paired: whether both were scored on the same windows, and the interval is that of the paired difference.
        clear: whether the interval excludes zero; None without one.
    """

    where: str
    name: str
    a: float
    b: float
    noise: Interval | None
    paired: bool

    @property
    def clear(self) -> bool | None:
        return None if self.noise is None else self.noise.clear

    def as_json(self) -> dict[str, Any]:
        about = {"where": self.where, "metric": self.name, "a": self.a, "b": self.b, "difference": self.b - self.a}
        ends = asdict(self.noise) if self.noise else dict.fromkeys(("standard_error", "low", "high"))
        ends.pop("value", None)
        return about | ends | {"paired": self.paired, "clear": self.clear}


@dataclass(frozen=True)
class Restructured:
    """A compressed model whose modules differ.

    Attributes:
        totals: of both models, by key, where they differ.
        modules: what each module that differs has become, by name; None where one model has no such module.
        retention: largest difference of a module's retention d.
    """

    where: str
    totals: Mapping[str, tuple[Any, Any]]
    modules: Mapping[str, tuple[str | None, str | None]]
    retention: float


def place(name: str) -> str:
    """The cell or model of a record, and the variant unless it is the default; empty where there is one model alone."""
    parts = [part for part in Path(name).parent.parts if part not in ("cells", "compressed", "default")]
    return "/".join(parts)


def grouped(records: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> list[Change]:
    """Keys whose values differ, each change once, with the records that it was found in."""
    changes: dict[tuple[str, str], Change] = {}
    for where, old, new in records:
        for key in dict.fromkeys((*old, *new)):
            a, b = old.get(key), new.get(key)
            if a != b:
                same = key, json.dumps([a, b])
                before = changes[same].where if same in changes else ()
                changes[same] = Change(key, a, b, (*before, where))
    return list(changes.values())


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Flattened values of a record; a recipe stands under its own keys in the records of training and compression."""
    about = record.get("provenance")
    values = about.get("values") if isinstance(about, dict) else {k: v for k, v in record.items() if k != "factorized"}
    return {key.removeprefix("recipe."): value for key, value in flattened(values).items()}


def code_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Code, versions and machine of a record, flattened; with those of optional packages that its job has used."""
    about = record.get("provenance")
    if not isinstance(about, dict):
        return {}
    return flattened({name: about.get(name) for name in CODE} | {"versions": record.get("versions")})


def digests_of(path: Path) -> dict[str, str]:
    """Start of the digest of each module that a file in results/<scale>/code lists."""
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {f"code of {pair[1]}": pair[0][:12] for pair in pairs if len(pair) == 2}


def flattened(values: Any, key: str = "") -> dict[str, Any]:
    """Values by key, with dots between nested ones; without keys that have no value."""
    if isinstance(values, Mapping):
        inner = {f"{key}.{name}" if key else str(name): value for name, value in values.items()}
        return {k: v for name, value in inner.items() for k, v in flattened(value, name).items()}
    return {} if values is None else {key: values}


def value_at(record: Mapping[str, Any], key: str) -> Any:
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def number_at(record: Mapping[str, Any], key: str) -> float | None:
    value = value_at(record, key)
    return float(value) if isinstance(value, int | float) else None


def error_at(record: Mapping[str, Any], key: str) -> float | None:
    """Standard error of the number at a key; None where it is not known."""
    if key == "bits_per_byte":  # proportional to the logarithm of the perplexity
        value, error, bits = (number_at(record, name) for name in ("value", "standard_error", key))
        known = None not in (value, error, bits) and value > 1
        return error / value * bits / math.log(value) if known else None
    return number_at(record, ERRORS[key]) if key in ERRORS else None


def modules_of(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The modules of a record of compression, or the factors of an exported model, by name; else empty."""
    modules, factors = record.get("modules"), record.get("factorized")
    if isinstance(factors, Mapping):
        return {name: {"decision": "factors", "rank": rank} for name, rank in factors.items()}
    named = isinstance(modules, list) and all(isinstance(one, Mapping) and "decision" in one for one in modules)
    return {one["name"]: one for one in modules} if named else {}


def described(module: Mapping[str, Any] | None) -> str | None:
    """What a module is: `svd 12, LoRA 128`."""
    if module is None:
        return None
    parts = [str(module["decision"]) + (f" {module['svd_rank']}" if module.get("svd_rank") else "")]
    parts += [f"{name} {module[key]}" for name, key in (("LoRA", "lora_rank"), ("rank", "rank")) if key in module]
    return ", ".join(parts)


def restructured(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Restructured | None:
    """How the modules of two records differ; None where they do not."""
    before, after = modules_of(old), modules_of(new)
    texts = {name: (described(before.get(name)), described(after.get(name))) for name in {**before, **after}}
    modules = {name: pair for name, pair in texts.items() if pair[0] != pair[1]}
    retentions = [(before[name].get("d"), after[name].get("d")) for name in before if name in after]
    moved = max((abs(a - b) for a, b in retentions if None not in (a, b)), default=0.0)
    if not modules and not moved:
        return None
    sums = {key: (value_at(old, f"totals.{key}"), value_at(new, f"totals.{key}")) for key in TOTALS}
    return Restructured(where, {key: pair for key, pair in sums.items() if pair[0] != pair[1]}, modules, moved)
