"""What a scale's results hold that its present configuration does not use, and its removal.

Snakemake's records stay: from those of a removed cache it knows that the students made from it are up to date.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budgeted_lora.commands.chain import chain, data_and_teachers
from budgeted_lora.commands.snakemake_records import refuse_at_work
from budgeted_lora.files import is_locked
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.runs import interrupted_imports, is_at_work, temporary

KINDS = {
    "teachers": "teacher", "students": "student", "cells": "cell", "speed": "timing", "cache": "cache",
    "tensorboard": "curves",
}  # fmt: skip
PRINTS = ("logs", "benchmarks")  # output and timings of jobs: <kind>/<rule>/<cell>..., and cell_<cell> of its speed


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can be removed, with the small files that belong to it."""

    path: Path
    why: str
    also: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(size_of(path) for path in (self.path, *self.also))


def leftovers(graph: Graph, *, cache: bool = False, state: bool = False) -> list[Leftover]:
    """What no cell, teacher, student, structure or corpus of the configuration uses, by kind and name.

    Args:
        cache: also list the teachers' cached hidden states that are in use; they can be computed again.
        state: also list training states of interrupted runs, which could be resumed; never a state that a process
            has locked.
    """
    results, used = Path(graph.results), in_use(graph)
    listed = []
    for kind, what in KINDS.items():
        for path in visible(results / kind):
            if path not in used:
                also = prints_of(results, path.name) if kind == "cells" else ()
                listed.append(Leftover(path, f"{what} of another configuration", also))
            elif kind == "cache" and cache:
                listed.append(Leftover(path, "cache in use; computed again when a student is trained"))
            elif kind == "cells":
                unused = [p for p in visible(path / "compressed") if p not in used]
                listed += [Leftover(p, "compression of another configuration") for p in unused]
            elif kind == "students":
                listed += together(path, "statistics*", used, why="statistics that no student is made with")
    listed += unused_data(results / "data", used)
    if state:
        listed += states(graph)
    if not is_at_work(graph.results):
        whole = {item.path for item in listed}
        unfinished = [path for path in temporary(results) if not whole & set(path.parents)]
        listed += [Leftover(path, "unfinished file of a killed job") for path in unfinished]
    return listed + [Leftover(path, "interrupted import") for path in interrupted_imports(results)]


def prints_of(results: Path, cell: str) -> tuple[Path, ...]:
    """Output and timings of a cell's jobs, and of the job that times a structure of its own."""
    files = (results.glob(f"{folder}/*/{name}*") for folder in PRINTS for name in (cell, f"cell_{cell}"))
    return tuple(sorted(file for group in files for file in group if file.is_file()))


def unused_data(data: Path, used: set[Path]) -> list[Leftover]:
    """Unused parts of the corpus: another form of it, shards that are not read, teachers' own token files."""
    listed = together(data, "documents.parquet*", used, why="corpus of another configuration")
    listed += together(data, "corpus.json", used, why="record of a corpus of another configuration")
    listed += together(data, "teachers", used, why="token files of teachers made in another configuration")
    if data / "shards" not in used:
        return listed + together(data, "shards", used, why="shards of another configuration")
    for shard in visible(data / "shards"):
        unread = [] if shard in used else [Leftover(shard, "shard that is not read")]
        listed += unread or together(shard, "source*", used, why="download of another configuration")
    return listed


def together(folder: Path, pattern: str, used: set[Path], *, why: str) -> list[Leftover]:
    """Unused files of a folder that match a pattern, as one leftover; no leftover if there are none."""
    paths = [path for path in visible(folder) if path.match(pattern) and path not in used]
    return [Leftover(paths[0], why, tuple(paths[1:]))] if paths else []


def in_use(graph: Graph) -> set[Path]:
    """Every file that the configuration's jobs write, and the folders that hold them."""
    files = {path for cell in graph.cells for stage in chain(graph, cell) for path in stage.files}
    files |= {path for stage in data_and_teachers(graph, graph.teachers) for path in stage.files}
    files |= {Path(path) for path in [*graph.references(), *graph.task_scores()]}
    files |= {Path(graph.results) / "speed" / f"{name}.json" for name in graph.timed()}
    files |= {Path(graph.results) / "students" / name / "model" for name in graph.students}
    files |= {Path(graph.results) / "tensorboard" / cell for cell in graph.cells}
    return files | {folder for file in files for folder in file.parents}


def states(graph: Graph) -> list[Leftover]:
    """Training states that no process holds."""
    listed = []
    for path in visible(Path(graph.results) / "state"):
        if not is_locked(path / "lock"):
            in_use = path.name.rpartition("-")[0] in {"cache", *graph.cells, *graph.teachers}
            listed.append(Leftover(path, "training state that a run would resume" if in_use else "training state"))
    return listed


def visible(folder: Path) -> list[Path]:
    """The entries of a folder except hidden ones, which are being written."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(inner) for inner in path.iterdir())
    return path.lstat().st_size


def remove(graph: Graph, leftovers: Sequence[Leftover]) -> int:
    """Remove leftovers; returns the bytes that became free. Raises BadInput if one of them is in use meanwhile."""
    refuse_at_work(graph.config.scale)
    freed = 0
    for item in leftovers:
        freed += item.bytes
        for path in (item.path, *item.also):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            elif path.parent == Path(graph.results) / "state":
                from budgeted_lora.training.state import locked_folder

                with locked_folder(path):  # so that no run can resume it in between
                    shutil.rmtree(path)
            else:
                shutil.rmtree(path)
    return freed
