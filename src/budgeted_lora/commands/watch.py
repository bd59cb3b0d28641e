"""How far a scale is: its jobs done and left, those at work, and the time that is left for all. Only reads.

Nothing here asks for the lock of a training, which would hold it for a moment every few seconds. A job counts as done
when all its files are there. What a job will take is what the plan says, times what finished jobs of its kind took
against their plan; for kinds that the plan does not know, the mean of those that are finished.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from budgeted_lora.commands.chain import Stage, chain, data_and_teachers
from budgeted_lora.planning.costs import START_UP_SECONDS, ScaleCosts
from budgeted_lora.planning.devices import Slots, matching, named_device
from budgeted_lora.planning.machine import gpus, usable_cores
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.runs import JOBS, age, is_at_work, lives, living, run_record

RECENT = 5  # rows of history.csv from which the speed is taken
TAIL = 2**14  # bytes of a file that grow while it is read
SILENT = 600.0  # seconds after which a training on another machine is no longer taken for alive
# What the plan calls shared jobs of a kind, before the name of what they are about.
IN_THE_PLAN = {"teacher": "pretrain teacher", "cache": "cache teacher", "statistics": "measure statistics of"}
BAR = re.compile(r"(\d+)/(\d+) \[[^\]<]*<([\d:]+)")  # of tqdm, in a job's log


@dataclass(frozen=True)
class Planned:
    """A job of the graph.

    Attributes:
        cell: whose training it is.
        files: what it writes.
        records: JSON results that say how long it took.
        seconds: what the plan says; None where it says nothing.
        cells: by which it is needed; it is not missed once they are trained. Empty for one that is always needed.
    """

    kind: str
    files: tuple[Path, ...]
    records: tuple[Path, ...]
    seconds: float | None
    cell: str | None = None
    cells: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Training:
    """A student that is training, by the last row of its history; without a row, None where one would stand."""

    cell: str
    step: int
    steps: int
    tokens_per_second: float | None = None
    loss: float | None = None
    target_fraction: float | None = None
    retained_fraction: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Other:
    """Another job at work, with the bar in its log if it has one."""

    what: str
    done: int | None = None
    of: int | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Kind:
    """Jobs of one kind: how many are done, how long one took on average, and what the others will take."""

    kind: str
    done: int
    count: int
    mean_seconds: float | None
    seconds_left: float


@dataclass(frozen=True)
class View:
    """A scale at one moment; `seconds_left` is for `at_once` jobs side by side that are never idle."""

    scale: str
    at_work: bool
    at_once: int
    seconds_left: float
    kinds: tuple[Kind, ...]
    trainings: tuple[Training, ...]
    others: tuple[Other, ...]
    elsewhere: tuple[str, ...] = ()  # other scales with a run at work, where this one has none

    @property
    def done(self) -> int:
        return sum(kind.done for kind in self.kinds)

    @property
    def count(self) -> int:
        return sum(kind.count for kind in self.kinds)


@dataclass
class Watcher:
    """Looks at the results of one graph again and again; what a finished job took is read once."""

    graph: Graph
    about: Mapping[str, Any] = field(default_factory=dict)  # `runs.what_runs` of the last run
    _seconds: dict[Path, float | None] = field(default_factory=dict)

    @cached_property
    def jobs(self) -> list[Planned]:
        return planned_jobs(self.graph)

    @cached_property
    def slots(self) -> Slots:
        """Jobs side by side: by Snakemake's counters, as far as they are known."""
        config = self.graph.config
        devices = len(gpus()) if config.device != "cpu" else 0
        cores = (self.about.get("cores") or usable_cores()) // config.threads.training
        counted = self.about.get("gpus")
        count = min(devices or max(1, cores), counted if isinstance(counted, int) else math.inf)
        return Slots(max(int(count), config.gpus_per_run), config.gpus_per_run)

    def look(self) -> View:
        """The scale as it is now."""
        trained = {job.cell for job in self.jobs if job.cell is not None and present(job)}
        done = [job for job in self.jobs if present(job) or (job.cells and job.cells <= trained)]
        finished = {id(job) for job in done}
        trainings = [one for one in self._trainings() if one.cell not in trained]
        others = list(self._others())
        rates = self._rates(done, trainings)
        left = {id(job): self._left(job, rates, trainings) for job in self.jobs if id(job) not in finished}
        kinds = []
        for kind in dict.fromkeys(job.kind for job in self.jobs):
            mine = [job for job in self.jobs if job.kind == kind]
            took = [seconds for job in mine if id(job) in finished and (seconds := self._took(job)) is not None]
            rest = sum(left.get(id(job), 0.0) for job in mine)
            count = sum(id(job) in finished for job in mine)
            kinds.append(Kind(kind, count, len(mine), fmean(took) if took else None, rest))
        of_trainings = sum(kind.seconds_left for kind in kinds if kind.kind == "train")
        of_others = sum(kind.seconds_left for kind in kinds) - of_trainings
        shortest = self.slots.wall_seconds(trainings=of_trainings, others=of_others)
        at_work = is_at_work(self.graph.results)
        return View(
            scale=self.graph.config.scale,
            at_work=at_work,
            elsewhere=() if at_work else scales_at_work(Path(self.graph.results)),
            at_once=self.slots.count,
            seconds_left=max([shortest, *left.values()]),
            kinds=tuple(kinds),
            trainings=tuple(trainings),
            others=tuple(others),
        )

    # --- estimates

    def _took(self, job: Planned) -> float | None:
        """Seconds of a finished job, with its start; of a training that was resumed, of all its parts."""
        took = []
        for path in job.records:
            if path not in self._seconds:
                self._seconds[path] = seconds_in(path)
            took.append(self._seconds[path])
        known = [seconds for seconds in took if seconds is not None]
        return sum(known) + START_UP_SECONDS if known else None

    def _rates(self, done: list[Planned], trainings: list[Training]) -> dict[str | None, float]:
        """Seconds per planned second, by kind; under None of all kinds. Kinds without any are left out.

        Where no training is finished, those at work count, as if they went on at their present speed.
        """
        planned = {job.cell: job.seconds for job in self.jobs if job.cell is not None}
        pairs = [(job.kind, self._took(job), job.seconds) for job in done]
        pairs = [(kind, took, plan) for kind, took, plan in pairs if took is not None and plan]
        if not any(kind == "train" for kind, *_ in pairs):
            for one in trainings:
                if one.seconds_left is not None and planned.get(one.cell) and one.step < one.steps:
                    whole = one.seconds_left * one.steps / (one.steps - one.step)
                    pairs.append(("train", whole, planned[one.cell]))
        kinds = {kind for kind, *_ in pairs}
        sums = {None: pairs, **{kind: [pair for pair in pairs if pair[0] == kind] for kind in kinds}}
        return {kind: sum(p[1] for p in some) / sum(p[2] for p in some) for kind, some in sums.items() if some}

    def _left(self, job: Planned, rates: Mapping[str | None, float], trainings: list[Training]) -> float:
        """Seconds that a job which is not done will take, or the rest of one at work."""
        for one in trainings:
            if one.cell == job.cell and one.seconds_left is not None:
                return one.seconds_left
        if job.seconds is not None:
            return job.seconds * rates.get(job.kind, rates.get(None, 1.0))
        took = [self._took(other) for other in self.jobs if other.kind == job.kind and present(other)]
        return fmean([seconds for seconds in took if seconds is not None] or [START_UP_SECONDS])

    # --- jobs at work

    def _living(self, *, elsewhere: bool = False) -> list[str]:
        """Jobs of the run, as they have entered themselves; those of other machines may have ended."""
        path = Path(self.graph.results) / JOBS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        return [job.what for job in living(lines, elsewhere=elsewhere)]

    def _trainings(self) -> Iterator[Training]:
        """Students whose training is at work, by the folders of their states."""
        jobs = [what.split() for what in self._living(elsewhere=True)]
        started = {Path(words[1]).name for words in jobs if words[:1] == ["train_cell"] and len(words) > 1}
        seen = set()
        for folder in sorted(Path(self.graph.results, "state").glob("*-*")):
            cell = folder.name.rpartition("-")[0]
            if cell in self.graph.cells and cell not in seen and holder_lives(folder, elsewhere=cell in started):
                seen.add(cell)
                recipe = self.graph.recipe_of(cell)
                step_tokens = recipe.batch_windows * recipe.sequence_length
                yield training(cell, folder / "history.csv", steps=recipe.steps, step_tokens=step_tokens)

    def _others(self) -> Iterator[Other]:
        """Jobs of this machine that are no trainings."""
        for what in self._living():
            stage, _, out = what.partition(" ")
            if stage != "train_cell" and not stage.startswith("Snakemake"):
                yield Other(what, *bar_of(Path(self.graph.results, "logs", stage), Path(out).parts))


def last_run(results: Path | str) -> dict[str, Any]:
    """What the last run said of itself: `targets`, `config`, `cores` and `gpus`; empty if it said nothing."""
    about = run_record(results).get("about")
    return about if isinstance(about, dict) else {}


def present(job: Planned) -> bool:
    return all(path.exists() for path in job.files)


def planned_jobs(graph: Graph) -> list[Planned]:
    """Every job that computes results, in the order of the work; tables and figures take seconds and are left out."""
    here = gpus()
    device = matching(here[0].name) if here and graph.config.device != "cpu" else named_device("cpu", graph.config)
    costs = ScaleCosts(graph, device)
    cells = {cost.cell: cost for cost in costs.cells}
    by_job = {job.job: job.seconds for job in costs.jobs}
    shared: dict[str, tuple[Stage, set[str]]] = {
        stage.name: (stage, set()) for stage in data_and_teachers(graph, graph.teachers)
    }
    own: list[Planned] = []
    for cell, cost in cells.items():
        scored = cost.evaluate_seconds / len(graph.cells[cell].variants)
        for stage in chain(graph, cell):
            kind = stage.name.split()[0]
            if stage.own:
                seconds = {"train": cost.train_seconds, "score": scored}.get(kind)
                own.append(Planned(kind, stage.files, tuple(stage.records), seconds, cell if kind == "train" else None))
            else:
                shared.setdefault(stage.name, (stage, set()))[1].add(cell)
    jobs = []
    for name, (stage, users) in shared.items():
        kind, _, rest = name.partition(" ")
        needed = frozenset(users) if kind == "cache" else frozenset()  # `prune --cache` removes it after use
        seconds = by_job.get(f"{IN_THE_PLAN.get(kind)} {rest}")
        jobs.append(Planned(kind, stage.files, tuple(stage.records), seconds, cells=needed))
    return [*jobs, *references(graph, by_job), *own]


def references(graph: Graph, by_job: Mapping[str, float]) -> Iterator[Planned]:
    """Scoring of teachers and untrained students."""
    for score in map(Path, graph.references()):
        if score.name == "perplexity.json":
            what = "teacher" if score.parent.parent.name == "teachers" else "untrained"
            files = (score, score.with_name("icl.json"))
            yield Planned("evaluate", files, files, by_job.get(f"evaluate {what} {score.parent.name}"))
    for score in map(Path, graph.of_references("lm_eval.json") if graph.task_scores() else ()):
        yield Planned("tasks", (score,), (score,), None)


def seconds_in(path: Path) -> float | None:
    """How long the job of a result took; None if the result does not say."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return max(float(record["provenance"]["seconds"]), float(record.get("train_seconds") or 0.0))
    return None


def scales_at_work(results: Path) -> tuple[str, ...]:
    """Other scales beside these results at which a run is at work."""
    locks = sorted(results.parent.glob("*/run.lock"))
    return tuple(lock.parent.name for lock in locks if lock.parent != results and is_at_work(lock.parent))


def holder_lives(folder: Path, *, elsewhere: bool) -> bool:
    """Whether the process that entered itself in a state's lock lives here, or may live on another machine.

    Args:
        elsewhere: whether a job of the run that trains this student has entered itself and is not known to have ended.
    """
    with suppress(OSError, ValueError):
        if lives(int((folder / "lock").read_text())):
            return True
    with suppress(OSError):
        return elsewhere and age((folder / "history.csv").stat().st_mtime) < SILENT
    return False


def training(cell: str, history: Path, *, steps: int, step_tokens: int) -> Training:
    """A training by the last rows of its history."""
    rows = last_rows(history)
    if not rows:
        return Training(cell, 0, steps)
    last = rows[-1]
    paces = [1 / row["tokens_per_second"] for row in rows[-RECENT:] if row["tokens_per_second"] > 0]
    pace = fmean(paces) if paces else None  # the history holds whole numbers: 0 is less than half a token a second
    return Training(
        cell=cell,
        step=int(last["step"]),
        steps=steps,
        tokens_per_second=1 / pace if pace else None,
        loss=last["loss"],
        target_fraction=last["target_fraction"],
        retained_fraction=last["retained_fraction"],
        seconds_left=(steps - last["step"]) * step_tokens * pace if pace else None,
    )


def last_rows(path: Path) -> list[dict[str, float]]:
    """The last whole rows of a history, numbers by column; empty if there is none."""
    try:
        with path.open("rb") as stream:
            columns = stream.readline().decode().strip().split(",")
            begin = stream.tell()
            start = max(begin, stream.seek(0, os.SEEK_END) - TAIL)
            stream.seek(start)
            lines = stream.read().decode().split("\n")
    except FileNotFoundError:
        return []
    lines = lines[0 if start == begin else 1 : -1]  # the last one may still be written
    rows = [row for row in csv.reader(lines) if len(row) == len(columns)]
    return [{name: float(value or "nan") for name, value in zip(columns, row, strict=True)} for row in rows]


def bar_of(logs: Path, parts: tuple[str, ...]) -> tuple[int, int, float] | tuple[()]:
    """Done, of, and seconds left, by the last bar in the log that is named after a part of what the job writes."""
    for log in logs.glob("*.log"):
        if log.stem in parts:
            found = BAR.findall(log.read_bytes()[-TAIL:].decode(errors="replace"))
            if found:
                done, of, clock = found[-1]
                left = sum(int(part) * 60**power for power, part in enumerate(reversed(clock.split(":"))) if part)
                return int(done), int(of), float(left)
    return ()
