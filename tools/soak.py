"""Maintainers' tool: kills a run at random points and compares what it comes to with a run that nobody touched.

python tools/soak.py [--kills 25] [--seed N] [--cores 1] [--scale smoke] [--target main]
    [--folder NEW] [--undisturbed CHECKOUT]

Runs a scale once to the end in one copy of this checkout. In another copy SIGKILL ends a worker, Snakemake,
its process group or every process of the run, at points that follow from the seed; each time the run is continued as a
person would: `budgeted-lora resume`, or the same command where Snakemake itself ended in an error. Then both copies
must hold the same weights, scores, tables and figures. A run that ends before all kills are done is compared, thrown
away and begun again. Prints one line per kill. Exit status: 0 if nothing differs, 1 if something does or a run fails.
Needs Linux, whose /proc tells which processes belong to a run.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from budgeted_lora.commands.diff import Comparison, opened

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "environment.yml", "workflow", "config", "profiles", "src")  # of a checkout that runs
MARK = "BUDGETED_LORA_SOAK"  # an environment variable, by which every process of a run is found
KINDS = ("worker", "snakemake", "group", "power-off")
EARLY = 0.2  # share of the kills that hit a run while it starts
PAUSE = 0.05
PATIENCE = 3600  # seconds for a run to end by itself


@dataclass(frozen=True)
class Process:
    """A process of a run: its number, parent and words."""

    pid: int
    parent: int
    words: tuple[str, ...]

    @property
    def job(self) -> str | None:
        """The stage it works on and what that makes; None for Snakemake, shells and others."""
        if "stage" not in self.words[:-1] or Path(self.words[0]).name in ("bash", "sh", "tee"):
            return None
        stage = self.words[self.words.index("stage") + 1]
        out = next((after for word, after in zip(self.words, self.words[1:], strict=False) if word == "--out"), "")
        return f"{stage} {out}".strip()


def processes(mark: str) -> list[Process]:
    """The living processes that were started with a mark, wherever their parents went."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if entry not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended, or is another user's
            continue
        if words and state != "Z":
            found.append(Process(int(folder.name), int(parent), tuple(words)))
    return sorted(found, key=lambda process: process.pid)


def victims(kind: str, alive: Sequence[Process], *, snakemake: int, random: random.Random) -> list[Process]:
    """The processes that a kill of a kind ends; empty where there is none of that kind.

    Those of a process group are found by the caller, since they are killed by the group's number.
    """
    if kind == "worker":
        jobs = [process for process in alive if process.job]
        return [random.choice(jobs)] if jobs else []
    if kind == "snakemake":
        return [process for process in alive if process.pid == snakemake]
    return list(alive)


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def switch_off(alive: Callable[[], list[Process]]) -> list[Process]:
    """Ends all processes as if at one moment: none goes on, or starts another, while others die."""
    stopped: dict[int, Process] = {}
    while new := [process for process in alive() if process.pid not in stopped]:
        for process in new:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
            stopped[process.pid] = process
    kill(stopped)
    return list(stopped.values())


@dataclass
class Run:
    """A scale in a checkout of its own, started as often as it takes."""

    folder: Path
    scale: str
    cores: int
    target: str = "main"
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen | None = None
    resumed: bool = False  # whether the next start is by `resume`
    expected_to_fail: bool = False  # a worker of it was killed

    @property
    def words(self) -> list[str]:
        if self.resumed:
            return ["-m", "budgeted_lora.commands.app", "resume", "--scale", self.scale]
        return ["-m", "snakemake", self.target, "--cores", str(self.cores), "--config", f"scale={self.scale}"]

    @property
    def log(self) -> Path:
        return self.folder / "soak.log"

    def start(self) -> None:
        own = os.environ | {MARK: self.mark, "PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.words], cwd=self.folder, env=own, stdout=log, stderr=log, start_new_session=True
            )
        self.expected_to_fail = False

    def alive(self) -> list[Process]:
        return processes(self.mark)

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def works(self) -> bool:
        """Whether a stage is at work."""
        return any(process.job for process in self.alive())

    def wait(self, until: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Until something is so, or the run has ended."""
        end = time.monotonic() + seconds
        while not (self.ended or until()):
            if time.monotonic() > end:
                raise SystemExit(f"{self.folder}: still at work after {seconds:.0f} s; its log is {self.log}")
            time.sleep(PAUSE)

    def disturb(self, kind: str, choice: random.Random) -> list[Process]:
        """One kill; the processes that it ended."""
        if kind == "power-off":
            ended = switch_off(self.alive)
        else:
            ended = victims(kind, self.alive(), snakemake=self.process.pid, random=choice)
            if kind == "group":
                ended = [one for one in ended if os.getpgid(one.pid) == self.process.pid]
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            else:
                kill(one.pid for one in ended)
        while {one.pid for one in ended} & {one.pid for one in self.alive()}:
            time.sleep(PAUSE)
        if kind == "worker":
            self.expected_to_fail = bool(ended)
        else:
            self.process.wait()
            self.resumed = self.begun
        return ended

    @property
    def begun(self) -> bool:
        """Whether there is a run to resume: one that was killed early enough is only started again."""
        lock = self.folder / "results" / self.scale / "run.lock"
        return lock.is_file() and '"arguments": [' in lock.read_text(errors="replace")

    def failure(self) -> str | None:
        """What is wrong with how it ended by itself."""
        status = self.process.returncode
        if status and not self.expected_to_fail:
            return f"{' '.join(self.words)}: ended with status {status}; its log is {self.log}"
        return None


def checkout(folder: Path, source: Path = ROOT) -> Path:
    """A copy of what a run reads; from an earlier copy, so that an edit made meanwhile does not count."""
    folder.mkdir(parents=True)
    for name in PARTS:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        copy(source / name, folder / name)
    return folder


def undisturbed(folder: Path, *, scale: str, cores: int, target: str) -> float:
    """Runs a scale to its end; seconds that it took."""
    run, begun = Run(checkout(folder), scale, cores, target), time.monotonic()
    run.start()
    run.wait(lambda: False)
    if run.process.returncode:
        raise SystemExit(f"undisturbed: ended with status {run.process.returncode}; its log is {run.log}")
    return time.monotonic() - begun


def differences(before: Path, after: Path, *, scale: str) -> list[str]:
    """One line per file of results and report in which two checkouts differ."""
    lines = []
    for kind in ("results", "reports"):
        with opened(before / kind / scale) as a, opened(after / kind / scale) as b:
            files = Comparison.of(a, b, ignore_provenance=True).files
        lines += [f"{kind}/{scale}/{name}: {line}" for name, found in files.items() for line in found]
    return lines


def left_over(folder: Path, *, scale: str) -> list[str]:
    """What a run that has ended should have removed."""
    results = folder / "results" / scale
    found = [*results.rglob(".*.tmp"), *(results / "state").glob("*")]
    return [f"{path.relative_to(folder)}: left over" for path in found]


class Soak:
    """Kills of a run, and the comparison at the end of each."""

    def __init__(self, folder: Path, reference: Path, options: argparse.Namespace, *, step: float) -> None:
        self.folder, self.reference, self.options, self.step = folder, reference, options, step
        self.choice = random.Random(options.seed)
        self.done = 0
        self.begun = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.0f} s  {text}", flush=True)

    def whole(self) -> list[str]:
        """Rounds until all kills are done; what is wrong, a line each."""
        number = 0
        while True:
            number += 1
            folder = checkout(self.folder / f"disturbed-{number}", self.reference)
            faults = self.round(Run(folder, self.options.scale, self.options.cores, self.options.target))
            if faults or self.done >= self.options.kills:
                return faults
            shutil.rmtree(folder)

    def round(self, run: Run) -> list[str]:
        """One run from its start to its end, killed while kills are left."""
        while True:
            if run.ended:
                run.start()
            kind = self.choice.choice(KINDS) if self.done < self.options.kills else None
            self.let_work(run, kind)
            if run.ended:
                fault = run.failure()
                if fault:
                    return [fault]
                if run.process.returncode == 0:
                    break
                run.resumed = False  # Snakemake ended in order: the same command again
                continue
            gone = run.disturb(kind, self.choice)
            if gone:
                self.done += 1
                jobs = ", ".join(sorted({one.job for one in gone if one.job})) or "no job"
                how = "Snakemake goes on" if kind == "worker" else "resumed" if run.resumed else "started again"
                self.say(f"kill {self.done} of {self.options.kills}: {kind}, {len(gone)} processes ({jobs}); {how}")
        scale = self.options.scale
        found = differences(self.reference, run.folder, scale=scale) + left_over(run.folder, scale=scale)
        self.say(f"a run ended; {len(found)} differences from the undisturbed one")
        return found

    def let_work(self, run: Run, kind: str | None) -> None:
        """Waits for the moment of the next kill; without a kind until the run has ended."""
        if kind is None:
            run.wait(lambda: False)
            return
        if kind == "worker" or self.choice.random() > EARLY:
            run.wait(run.works)
        moment = time.monotonic() + self.choice.uniform(0, self.step)
        run.wait(lambda: time.monotonic() >= moment)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a run at random points and compare its results.")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of kinds and moments")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--scale", default="smoke")
    parser.add_argument("--target", default="main", help="of Snakemake")
    parser.add_argument("--folder", type=Path, help="for the copies, which stay; without it a temporary one")
    parser.add_argument("--undisturbed", type=Path, help="a copy in which an earlier soak ran the same code to the end")
    parser.add_argument("--step", type=float, help="seconds of work between two kills, at most; from the first run")
    options = parser.parse_args(arguments)
    print(f"soak: seed {options.seed}", flush=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    reference, seconds = options.undisturbed, 0.0
    if reference is None:
        reference = folder / "undisturbed"
        seconds = undisturbed(reference, scale=options.scale, cores=options.cores, target=options.target)
        print(f"{seconds:6.0f} s  undisturbed", flush=True)
    step = options.step or max(1.0, 2 * (seconds or 300) / max(options.kills, 1))
    soak = Soak(folder, reference, options, step=step)
    faults = soak.whole()
    print("\n".join([*faults, f"soak: {soak.done} kills, {len(faults)} differences; {folder}"]))
    if not faults and options.folder is None:
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
