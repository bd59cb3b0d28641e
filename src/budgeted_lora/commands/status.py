"""Which parts of a scale are done, missing or stale, by what results record about themselves.

Snakemake knows what to make again only if it made the results itself. This compares what each result records (the
values it was made with, the SHA-256 of its inputs) with today's configuration and files, so it also works for copied
results. Code is not compared: an edit reruns its stage in Snakemake, but leaves no trace in a result.
"""

import difflib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from budgeted_lora.commands.chain import Stage, chain
from budgeted_lora.config.messages import in_yaml
from budgeted_lora.errors import BadInput
from budgeted_lora.files import is_locked, read_json, sha256_file, short_hash
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import differences

State = Literal["done", "missing", "stale"]
Versions = Mapping[str, tuple[str, ...]]  # of each library
TIMESTAMP = Path(".snakemake_timestamp")  # an empty file that Snakemake puts into a folder that is an output
ABSENT = object()  # in place of the value of a key that is not there
NO_FILES = ("no files yet",)


@dataclass(frozen=True)
class StageStatus:
    """The state of a stage; reasons say why it is stale or what is missing, notes say what else is worth knowing."""

    stage: Stage
    state: State
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    libraries: Versions = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of everything that it writes."""
        return Path(os.path.commonpath([file.parent for file in self.stage.files]))


@dataclass(frozen=True)
class CellStatus:
    """The state of a cell, with its stages in the order of the work.

    `differs` says where its recipe differs from the scale's defaults, see `workflow.recipes.differences`.
    """

    cell: str
    tables: tuple[str, ...]
    differs: Mapping[str, Any]
    state: State
    detail: tuple[str, ...]
    stages: tuple[StageStatus, ...]
    running: bool

    @property
    def libraries(self) -> Versions:
        """Versions of each library among the cell's own results."""
        return merged(status.libraries for status in self.stages if status.stage.own)

    def as_json(self) -> dict[str, Any]:
        """What `cells --json` prints for a cell."""
        stages = {
            status.stage.name: {"status": status.state, "reasons": status.reasons, "notes": status.notes}
            for status in self.stages
        }
        return {
            "cell": self.cell,
            "tables": self.tables,
            "differs": self.differs,
            "status": self.state,
            "detail": self.detail,
            "training_now": self.running,
            "libraries": self.libraries,
            "stages": stages,
        }


class Inspector:
    """Looks at the results of one configuration; each file is read and digested once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._digests: dict[str, frozenset[str]] = {}
        self._shared: dict[str, StageStatus] = {}

    def cells(self) -> list[CellStatus]:
        """Every cell of the configuration, in its order."""
        return [self.cell(name) for name in self.graph.cells]

    def cell(self, name: str) -> CellStatus:
        """One cell."""
        statuses: dict[str, StageStatus] = {}
        for stage in chain(self.graph, name):
            status = self._status(stage)
            stale = [before for before in stage.after if before in statuses and statuses[before].state == "stale"]
            if stale and status.state != "missing":
                reasons = (*status.reasons, *(f"made from stale results: {before}" for before in stale))
                status = replace(status, state="stale", reasons=reasons)
            statuses[stage.name] = status
        stages = tuple(statuses.values())
        state, detail = summary(stages)
        tables, differs = self.graph.cells[name].tables, differences(self.graph.config, self.graph.recipe_of(name))
        running = any(is_locked(folder / "lock") for folder in Path(self.graph.results).glob(f"state/{name}-*"))
        return CellStatus(name, tables, differs, state, detail, stages, running)

    def _status(self, stage: Stage) -> StageStatus:
        if stage.own:
            return self._inspect(stage)
        if stage.name not in self._shared:
            self._shared[stage.name] = self._inspect(stage)
        return self._shared[stage.name]

    def _inspect(self, stage: Stage) -> StageStatus:
        missing = [path.name for path in stage.files if not path.exists()]
        if len(missing) == len(stage.files):
            return StageStatus(stage, "missing", NO_FILES)
        reasons, notes, libraries = [], [], []
        for path, expected in stage.records.items():
            if not path.is_file():
                continue
            try:
                record = provenance_of(path)
            except BadInput as error:
                reasons.append(str(error))
                continue
            if record is None:
                reasons.append(f"{path.name} records nothing about itself")
                continue
            if expected is not None:
                reasons += [f"{path.name}: {line}" for line in changes(record["values"], expected, whole=stage.whole)]
            stale, gone = self._changed_inputs(path, record["inputs"])
            reasons, notes = reasons + stale, notes + gone
            if stage.structure is not None:
                reasons += other_structure(path, stage.structure)
            libraries.append({name: (version,) for name, version in (record.get("libraries") or {}).items()})
        versions = merged(libraries)
        notes += [f"mixed versions of {mix}" for mix in mixed(versions)]
        if missing:
            reasons.append(f"missing: {', '.join(missing)}")
        state: State = "missing" if missing else "stale" if reasons else "done"
        return StageStatus(stage, state, tuple(reasons), tuple(notes), versions)

    def _changed_inputs(self, path: Path, inputs: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """A line for each input that has changed since a result was made, and for each that is gone."""
        changed, gone = [], []
        for name, digest in inputs.items():
            today = self.digests(name)
            if not today:
                gone.append(f"{path.name}: {name} is gone and was not compared")
            elif digest not in today:
                changed.append(f"{path.name}: {name} was {digest[:8]}, is {min(today)[:8]}")
        return changed, gone

    def digests(self, name: str) -> frozenset[str]:
        """SHA-256 of a file or folder today; of a folder with and without Snakemake's timestamp. Empty if gone."""
        if name not in self._digests:
            path = Path(name)
            if path.is_dir():
                parts = {file.relative_to(path): sha256_file(file) for file in path.rglob("*") if file.is_file()}
                parts.pop(TIMESTAMP, None)
                stamped = parts | {TIMESTAMP: hashlib.sha256(b"").hexdigest()}
                self._digests[name] = frozenset({folder_digest(parts), folder_digest(stamped)})
            else:
                outside = not path.is_relative_to(self.graph.results)  # may be large; digested once
                digest = self.graph.outside.digest if outside else sha256_file
                self._digests[name] = frozenset({digest(path)} if path.is_file() else ())
        return self._digests[name]


def folder_digest(parts: Mapping[Path, str]) -> str:
    """The digest of a folder from those of its files, as `files.sha256_file` computes it."""
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()


def provenance_of(path: Path) -> dict[str, Any] | None:
    """The provenance of a JSON result; None if it has none. Raises BadInput if the file is damaged."""
    content = read_json(path, kind=object)
    try:
        record = content["provenance"]
        return record if isinstance(record["values"], dict) and isinstance(record["inputs"], dict) else None
    except (KeyError, TypeError):
        return None


def other_structure(timing: Path, compressed: Path) -> list[str]:
    """A line if a timing is not of the structure that its student has today.

    Only ranks and decisions are compared, because time does not depend on the weights.
    """
    if not compressed.is_file():
        return []
    try:
        modules = read_json(compressed)["modules"]
        ranks = [[m["name"], None if m["decision"] == "keep" else m["lora_rank"] + m["svd_rank"]] for m in modules]
    except (BadInput, KeyError, TypeError):
        return [f"{timing.name}: {compressed} has no structure to compare with"]
    was, today = str(read_json(timing).get("structure_hash")), short_hash(ranks)
    return [] if was == today else [f"{timing.name}: the structure in {compressed} was {was}, is {today}"]


def changes(old: Any, new: Any, *, whole: bool, key: str = "") -> list[str]:
    """Differences as `key: old -> new`, key by key.

    Args:
        whole: whether a key that only one side has counts as a difference.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [name for name in {**old, **new} if whole or (name in old and name in new)]
        lines = []
        for name in names:
            inner = f"{key}.{name}" if key else name
            lines += changes(old.get(name, ABSENT), new.get(name, ABSENT), whole=whole, key=inner)
        return lines
    unset = (None, ABSENT)  # a key without a value counts as absent
    if old == new or (old in unset and new in unset):
        return []
    before, after = ("absent" if value is ABSENT else in_yaml(value) for value in (old, new))
    return [f"{key}: {before} -> {after}"]


def merged(versions: Iterable[Versions]) -> Versions:
    """All versions of each library, each once, sorted."""
    by_library: dict[str, set[str]] = {}
    for one in versions:
        for name, numbers in one.items():
            by_library.setdefault(name, set()).update(numbers)
    return {name: tuple(sorted(by_library[name])) for name in sorted(by_library)}


def mixed(versions: Versions) -> list[str]:
    """Libraries with more than one version."""
    return [f"{name} ({', '.join(numbers)})" for name, numbers in versions.items() if len(numbers) > 1]


def summary(stages: Sequence[StageStatus]) -> tuple[State, tuple[str, ...]]:
    """A cell's state from those of its stages, and the details worth printing."""
    own = [status for status in stages if status.stage.own]
    if all(status.reasons == NO_FILES for status in own):
        return "missing", ()
    missing = [f"{status.stage.name} ({'; '.join(status.reasons)})" for status in own if status.state == "missing"]
    detail = []
    if missing:
        present = ", ".join(status.stage.name for status in own if status.state != "missing")
        detail.append(f"{f'has {present}; ' if present else ''}lacks {', '.join(missing)}")
    stale = any(status.state == "stale" for status in own)
    read = {name for status in stages for name in status.stage.after} | {status.stage.name for status in own}
    for status in stages:
        if stale and status.state == "stale" and status.stage.name in read:
            detail += [f"{status.stage.name}: {reason}" for reason in status.reasons]
    detail += [f"mixed versions of {mix}" for mix in mixed(merged(status.libraries for status in own))]
    return "stale" if stale else "missing" if missing else "done", tuple(detail)


def cell_named(graph: Graph, start: str) -> str:
    """The only cell whose name begins so. Raises BadInput, with similar names, if there is none or several."""
    names = [start] if start in graph.cells else [name for name in graph.cells if name.startswith(start)]
    if len(names) == 1:
        return names[0]
    if names:
        raise BadInput(f"{start!r} begins the names of {len(names)} cells: {listing(names)}")
    if (Path(graph.results) / "cells" / start).is_dir():
        raise BadInput(f"{start!r} has results, but is no cell of the present configuration (`prune` would list it)")
    raise BadInput(f"no cell of scale {graph.config.scale} begins with {start!r}; near: {listing(near(graph, start))}")


def near(graph: Graph, start: str) -> list[str]:
    """Cells whose names begin similarly, nearest first."""

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, start, name[: len(start)]).ratio() + (start in name)

    return sorted(graph.cells, key=likeness, reverse=True)[:3]


def listing(names: list[str], *, most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none, it has no cells") + more
