"""What of a scale is done, missing or stale, told by what results say of themselves.

Snakemake knows what to make again only where it made the results itself. This compares what each result records (the
values it was made with, the SHA-256 of its inputs) with today's configuration and files, so that it also holds for
results that were copied. Code is not compared: an edit reruns its stage in Snakemake and shows in no result.
"""

import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file
from budgeted_lora.graph import ICL_CELLS, Graph
from budgeted_lora.grid import DEFAULT_SETTINGS
from budgeted_lora.recipe import compute_values

State = Literal["done", "missing", "stale"]
TIMESTAMP = Path(".snakemake_timestamp")  # Snakemake lays it, empty, in a folder that is an output
NOTHING = object()
NOTHING_THERE = ("nothing is there",)


@dataclass(frozen=True)
class Stage:
    """A step of a cell's chain: what it writes, and what its records must say.

    Attributes:
        own: whether it belongs to this cell alone; others are shared, and what they lack is no lack of the cell.
        files: all that it writes and later stages or a person read.
        records: values expected in the JSON results, None where values are not compared.
        after: names of the stages that it is made from.
    """

    name: str
    own: bool
    files: tuple[Path, ...]
    records: Mapping[Path, Mapping[str, Any] | None]
    after: tuple[str, ...] = ()


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
        return self.stage.files[0].parent


@dataclass(frozen=True)
class CellStatus:
    """How a cell stands, with its stages in the order of the work."""

    cell: str
    tables: tuple[str, ...]
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
        tables = self.graph.cells[name].tables
        running = any(held(state) for state in Path(self.graph.results).glob(f"state/{name}-*"))
        return CellStatus(name, tables, state, detail, tuple(found.values()), running)

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
                reasons += [f"{path.name}: {line}" for line in changes(about["values"], expected, whole=stage.own)]
            for name, digest in about["inputs"].items():
                today = self.digests(name)
                if not today:
                    notes.append(f"{path.name}: {name} is gone, so it was not compared")
                elif digest not in today:
                    reasons.append(f"{path.name}: {name} was {digest[:8]}, is {min(today)[:8]}")
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


# --- the chain of stages


def chain(graph: Graph, cell: str) -> list[Stage]:
    """The stages that a cell's results come from, in the order of the work."""
    teacher = graph.recipe_of(cell).teacher
    names = dict.fromkeys((graph.config.first_teacher, teacher))
    stages = [corpus_stage(graph), tokens_stage(graph), *(teacher_stage(graph, name) for name in names)]
    stages += [student_stage(graph, cell), *cache_stages(graph, cell), train_stage(graph, cell)]
    for settings in graph.cells[cell].settings:
        stages += compressed_stages(graph, cell, settings)
    return stages + speed_stages(graph, cell)


def under(folder: str | Path, *names: str) -> tuple[Path, ...]:
    return tuple(Path(folder) / name for name in names)


def corpus_stage(graph: Graph) -> Stage:
    if graph.config.corpus.shards:
        jobs = graph.shard_jobs()
        recorded = {
            Path(path): json.loads(jobs.values(name)) for path, name in zip(jobs.records(), jobs.names, strict=True)
        }
        return Stage("corpus", False, (*recorded, *map(Path, jobs.tokens())), recorded)
    files = under(f"{graph.results}/data", "corpus.json", "documents.parquet", "documents.parquet.sha256")
    return Stage("corpus", False, files, {files[0]: json.loads(graph.corpus())})


def tokens_stage(graph: Graph) -> Stage:
    values = graph.shard_jobs().join_values() if graph.config.corpus.shards else graph.mix()
    parts = [f"{name}.{ending}" for name in ("train", "validation", "functions") for ending in ("bin", "idx", "json")]
    files = under(f"{graph.results}/data", "manifest.json", "tokenizer", "tokenizer.sha256", *parts)
    return Stage("tokens", False, files, {files[0]: json.loads(values)}, after=("corpus",))


def teacher_stage(graph: Graph, name: str) -> Stage:
    config = graph.config
    spec = json.loads(graph.teacher_spec(name))
    if config.teachers == "pretrain":
        settings = config.pretraining.model_dump(mode="json")
        values = {"name": name, "spec": spec, "threads": config.threads.training} | settings
        after = ("tokens",)
    else:
        values, after = {"name": name, "source": config.teachers} | spec, ()
    files = under(f"{graph.results}/teachers/{name}", "teacher.json", "model", "model.sha256")
    return Stage(f"teacher {name}", False, files, {files[0]: values}, after=after)


def student_stage(graph: Graph, cell: str) -> Stage:
    name = graph.student_of(cell)
    files = under(f"{graph.results}/students/{name}", "student.json", "model", "model.sha256")
    after = (f"teacher {graph.config.first_teacher}",)
    return Stage(f"student {name}", False, files, {files[0]: json.loads(graph.student(name))}, after=after)


def cache_stages(graph: Graph, cell: str) -> list[Stage]:
    """The teacher's hidden states, where they are cached."""
    after = (f"teacher {graph.recipe_of(cell).teacher}", "tokens")
    folders = [Path(path).parent for path in graph.cache_files(cell)]
    files = [under(folder, "cache.json", "hidden.bin", "provenance.json") for folder in folders]
    return [Stage(f"cache {paths[0].parent.name}", False, paths, {paths[2]: None}, after=after) for paths in files]


def train_stage(graph: Graph, cell: str) -> Stage:
    names = ("train.json", "history.csv", "retention.csv", "trained", "trained.sha256")
    files = tuple(Path(path) for path in graph.of_cells([cell], *names))
    config = graph.config
    how = compute_values(threads=config.threads.training, gpus_per_run=config.gpus_per_run)
    values = json.loads(graph.recipe(cell)) | how
    after = ("tokens", f"teacher {graph.recipe_of(cell).teacher}", f"student {graph.student_of(cell)}")
    return Stage("train", True, files, {files[0]: values}, after=after)


def compressed_stages(graph: Graph, cell: str, settings: str) -> list[Stage]:
    """Compression by one of the cell's settings, and the scores of what it left."""
    folder = f"{graph.results}/cells/{cell}/compressed/{settings}"
    suffix = "" if settings == DEFAULT_SETTINGS else f" {settings}"
    files = under(folder, "compression.json", "model", "model.sha256")
    values = {
        "recipe": json.loads(graph.recipe(cell)),
        "settings": json.loads(graph.compression(settings)),
        "threads": graph.config.threads.evaluation,
    }
    compress = Stage(f"compress{suffix}", True, files, {files[0]: values}, after=("train",))
    evaluation = json.loads(graph.evaluation())
    records = {path: evaluation for path in under(folder, "perplexity.json")}
    more = under(folder, "perplexity_windows.parquet")
    if settings == DEFAULT_SETTINGS and set(graph.cells[cell].tables) & ICL_CELLS:
        records |= {path: evaluation for path in under(folder, "icl.json")}
        more += under(folder, "icl_examples.parquet")
    score = Stage(f"score{suffix}", True, (*records, *more), records, after=(compress.name, "tokens"))
    return [compress, score]


def speed_stages(graph: Graph, cell: str) -> list[Stage]:
    """The timing of the cell's structure, where that is measured."""
    name = graph.structure_of(cell)
    if name not in graph.timed():
        return []
    (file,) = under(f"{graph.results}/speed", f"{name}.json")
    settings = graph.config.speed.model_dump(mode="json") | {"threads": graph.config.threads.timing}
    planned = name in graph.structures()
    about = graph.speed_values(name) if planned else graph.own_speed_values(cell)
    values = json.loads(about)["student"] | settings
    return [Stage(f"speed {name}", False, (file,), {file: values})]


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
