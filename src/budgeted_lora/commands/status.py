"""What of a scale is done, missing or stale, told by what results say of themselves.

Snakemake knows what to make again only where it made the results itself. This compares what each result records (the
values it was made with, the SHA-256 of its inputs) with today's configuration and files, so that it also holds for
results that were copied. Code is not compared: an edit reruns its stage in Snakemake and shows in no result.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from budgeted_lora.commands.chain import Stage, chain
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file, short_hash
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import differences

State = Literal["done", "missing", "stale"]
TIMESTAMP = Path(".snakemake_timestamp")  # Snakemake lays it, empty, in a folder that is an output
NOTHING = object()
NOTHING_THERE = ("nothing is there",)


@dataclass(frozen=True)
class StageStatus:
    """How a stage stands: reasons say why it is stale or what is missing, notes what is worth knowing besides."""

    stage: Stage
    state: State
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    libraries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything that it writes lies."""
        return Path(os.path.commonpath([file.parent for file in self.stage.files]))


@dataclass(frozen=True)
class CellStatus:
    """How a cell stands, with its stages in the order of the work.

    `differs` holds what its recipe has otherwise than the scale's defaults, see `grid.differences`.
    """

    cell: str
    tables: tuple[str, ...]
    differs: Mapping[str, Any]
    state: State
    detail: tuple[str, ...]
    stages: tuple[StageStatus, ...]
    running: bool

    @property
    def libraries(self) -> dict[str, tuple[str, ...]]:
        """Versions of each library among the cell's own results."""
        return merged([status.libraries for status in self.stages if status.stage.own])

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
        found: dict[str, StageStatus] = {}
        for stage in chain(self.graph, name):
            status = self._status(stage)
            behind = [before for before in stage.after if before in found and found[before].state == "stale"]
            if behind and status.state != "missing":
                reasons = (*status.reasons, *(f"made from what is stale: {before}" for before in behind))
                status = replace(status, state="stale", reasons=reasons)
            found[stage.name] = status
        state, detail = summary(list(found.values()))
        tables, differs = self.graph.cells[name].tables, differences(self.graph.config, self.graph.recipe_of(name))
        running = any(held(state) for state in Path(self.graph.results).glob(f"state/{name}-*"))
        return CellStatus(name, tables, differs, state, detail, tuple(found.values()), running)

    def _status(self, stage: Stage) -> StageStatus:
        if stage.own:
            return self._look(stage)
        if stage.name not in self._shared:
            self._shared[stage.name] = self._look(stage)
        return self._shared[stage.name]

    def _look(self, stage: Stage) -> StageStatus:
        missing = [path for path in stage.files if not path.exists()]
        reasons, notes, libraries = [], [], []
        for path, expected in stage.records.items():
            if not path.is_file():
                continue
            try:
                about = recorded(path)
            except BadInput as error:
                reasons.append(str(error))
                continue
            if about is None:
                reasons.append(f"{path.name} records nothing about itself")
                continue
            if expected is not None:
                reasons += [f"{path.name}: {line}" for line in changes(about["values"], expected, whole=stage.whole)]
            for name, digest in about["inputs"].items():
                today = self.digests(name)
                if not today:
                    notes.append(f"{path.name}: {name} is gone, so it was not compared")
                elif digest not in today:
                    reasons.append(f"{path.name}: {name} was {digest[:8]}, is {min(today)[:8]}")
            if stage.structure is not None:
                reasons += other_structure(path, stage.structure)
            libraries.append({name: (version,) for name, version in (about.get("libraries") or {}).items()})
        versions = merged(libraries)
        notes += [f"mixed versions of {mix}" for mix in mixed(versions)]
        if len(missing) == len(stage.files):
            return StageStatus(stage, "missing", NOTHING_THERE)
        if missing:
            reasons.append(f"missing: {', '.join(path.name for path in missing)}")
            return StageStatus(stage, "missing", tuple(reasons), tuple(notes), versions)
        return StageStatus(stage, "stale" if reasons else "done", tuple(reasons), tuple(notes), versions)

    def digests(self, name: str) -> frozenset[str]:
        """SHA-256 of a file or folder as it is now; of a folder with and without Snakemake's mark. Empty if gone."""
        if name not in self._digests:
            path = Path(name)
            if path.is_dir():
                parts = {file.relative_to(path): sha256_file(file) for file in path.rglob("*") if file.is_file()}
                unmarked = {file: digest for file, digest in parts.items() if file != TIMESTAMP}
                marked = unmarked | {TIMESTAMP: hashlib.sha256(b"").hexdigest()}
                self._digests[name] = frozenset({folder_digest(unmarked), folder_digest(marked)})
            else:
                self._digests[name] = frozenset({sha256_file(path)} if path.is_file() else ())
        return self._digests[name]


def folder_digest(parts: Mapping[Path, str]) -> str:
    """As `files.sha256_file` of a folder."""
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()


def recorded(path: Path) -> dict[str, Any] | None:
    """The provenance of a JSON result; None where it has none.

    Raises:
        BadInput: it is not JSON, or its content does not match its digest.
    """
    about = read_json(path)
    try:
        about = about["provenance"]
        return about if isinstance(about["values"], dict) and isinstance(about["inputs"], dict) else None
    except (KeyError, TypeError):
        return None


def other_structure(timing: Path, compressed: Path) -> list[str]:
    """What to say where a timing is not of the structure that its student is compressed to today.

    Ranks and decisions are compared: the weights may be others, time does not depend on them.
    """
    if not compressed.is_file():
        return []
    try:
        modules = read_json(compressed)["modules"]
        ranks = [[m["name"], None if m["decision"] == "keep" else m["lora_rank"] + m["svd_rank"]] for m in modules]
    except (BadInput, KeyError, TypeError):
        return [f"{timing.name}: {compressed} names no structure to compare"]
    was, today = str(read_json(timing).get("structure_hash")), short_hash(ranks)
    return [] if was == today else [f"{timing.name}: the structure in {compressed} was {was}, is {today}"]


def changes(old: Any, new: Any, *, whole: bool, key: str = "") -> list[str]:
    """Differences as `key: old -> new`, key by key.

    Args:
        whole: whether a key that only one side has is a difference.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [name for name in (*old, *(n for n in new if n not in old)) if whole or (name in old and name in new)]
        lines = []
        for name in names:
            inner = f"{key}.{name}" if key else name
            lines += changes(old.get(name, NOTHING), new.get(name, NOTHING), whole=whole, key=inner)
        return lines
    unset = (None, NOTHING)  # a key that is left out is one without a value
    return [] if old == new or (old in unset and new in unset) else [f"{key}: {shown(old)} -> {shown(new)}"]


def shown(value: Any) -> str:
    return "not there" if value is NOTHING else json.dumps(value)


def merged(found: list[Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """Versions of each library, each once, sorted."""
    names = sorted({name for versions in found for name in versions})
    return {name: tuple(sorted({v for versions in found for v in versions.get(name, ())})) for name in names}


def mixed(versions: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Libraries of which there is more than one version."""
    return [f"{name} ({', '.join(found)})" for name, found in versions.items() if len(found) > 1]


def summary(found: list[StageStatus]) -> tuple[State, tuple[str, ...]]:
    """A cell's state from those of its stages, and what there is to say of it."""
    own = [status for status in found if status.stage.own]
    missing = [status for status in own if status.state == "missing"]
    if all(status.reasons == NOTHING_THERE for status in own):
        return "missing", ()
    detail = []
    if missing:
        there = [status.stage.name for status in own if status.state != "missing"]
        absent = [f"{status.stage.name} ({'; '.join(status.reasons)})" for status in missing]
        detail.append(f"{'has ' + ', '.join(there) + '; ' if there else ''}lacks {', '.join(absent)}")
    stale = any(status.state == "stale" for status in own)
    read = {name for status in found for name in status.stage.after} | {status.stage.name for status in own}
    for status in found:
        if stale and status.state == "stale" and status.stage.name in read:
            detail += [f"{status.stage.name}: {reason}" for reason in status.reasons]
    detail += [f"mixed versions of {mix}" for mix in mixed(merged([status.libraries for status in own]))]
    return "stale" if stale else "missing" if missing else "done", tuple(detail)


def held(state: Path) -> bool:
    """Whether a process holds the lock of a training state (see `state.locked_folder`, which loads torch)."""
    try:
        with (state / "lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    return False


# --- cells by name


def the_cell(graph: Graph, start: str) -> str:
    """The one cell whose name begins so.

    Raises:
        BadInput: none does, or several do; near matches are named.
    """
    if start in graph.cells:
        return start
    found = [name for name in graph.cells if name.startswith(start)]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"{start!r} begins the names of {len(found)} cells: {listing(found)}")
    if (Path(graph.results) / "cells" / start).is_dir():
        raise BadInput(f"{start!r} has results, but is no cell of the present configuration (`prune` would list it)")
    raise BadInput(f"no cell of scale {graph.config.scale} begins with {start!r}; near: {listing(near(graph, start))}")


def near(graph: Graph, start: str) -> list[str]:
    """Cells whose names resemble the beginning of one, nearest first."""
    from difflib import SequenceMatcher

    def likeness(name: str) -> float:
        return SequenceMatcher(None, start, name[: len(start)]).ratio() + (start in name)

    return sorted(graph.cells, key=likeness, reverse=True)[:3]


def listing(names: list[str], *, most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none, it has no cells") + more
