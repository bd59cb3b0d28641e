"""Measures the rows of the table side by side and writes benchmarks/results/<device>.{json,md,svg}.

    python -m benchmarks.run [--quick] [--rows 1,3] [--threads 1,2] [--shapes mini,paper] [--device cpu] [--base REV]
        [--target main]

Every row runs in a process of its own, with one thread and with all. A row that breaks is reported and the others run.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.goals import TITLES
from benchmarks.machine import describe, result_name
from benchmarks.measures import Measure, say, send
from benchmarks.report import table, write
from benchmarks.turns import ROOT, environment

RESULTS = ROOT / "benchmarks" / "results"
# Rows that one process measures together: 1 and 2 share a race.
GROUPS = ((1, 2), (3,), (4,), (5,), (6,), (7,), (8,), (9,), (10,), (11,))
ON_DEMAND = {10}  # hours
WITH_BASE = {9, 10}
THREADS_DO_NOT_MATTER = {5, 10, 11}  # measured once, with all threads


def measures(rows: list[int], options: dict[str, Any]) -> Iterator[Measure]:
    """The lines of one group of rows, in this process."""
    from benchmarks import starts, steps
    from benchmarks.context import Context

    checkout, own = (Path(options.pop(name)) for name in ("checkout", "own"))
    context = Context(**options | {"folder": Path(options["folder"])})
    first = rows[0]
    if first in (1, 2):
        yield from steps.against_trainer(context, rows)
    elif first == 3:
        from benchmarks import loss

        yield from loss.measure(context)
    elif first == 4:
        yield from steps.after_schedule(context)
    elif first == 5:
        from benchmarks import macs

        yield from macs.measure(context)
    elif first in (6, 7):
        from benchmarks import students

        yield from students.measure_modules(context) if first == 6 else students.measure_students(context)
    elif first == 8:
        from benchmarks import forward

        yield from forward.measure(context)
    elif first == 9:
        yield from steps.against_commit(context, checkout=checkout, commit=context.base)
    elif first == 10:
        yield from starts.measure_whole_run(context, checkout=checkout, commit=context.base, own=own)
    else:
        yield from starts.measure_starts(context)


def child(arguments: str) -> None:
    """Measures one group and sends its lines. Prints of libraries go to standard error."""
    asked = json.loads(arguments)
    for line in measures(asked["rows"], asked["options"]):
        send(asdict(line))


def group(rows: list[int], options: dict[str, Any]) -> tuple[list[Measure], bool]:
    """The lines of one group from a process of its own, and whether it ended well."""
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.run", "--child", json.dumps({"rows": rows, "options": options})],
            cwd=ROOT,
            env=environment(threads=options["threads"]),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        lines = [json.loads(line) for line in done.stdout if line.startswith("{")]
        status = done.wait()
        errors.seek(0)
        said = [line.strip() for line in errors.read().splitlines() if line.strip()]
    found = [Measure(**line) for line in lines]
    if status:
        say("\n".join(said[-15:]))
        broken = f"broke: {said[-1] if said else status}"[:200]
        found += [Measure(row=row, what=TITLES[row], threads=options["threads"], skipped=broken) for row in rows]
    return found, status == 0


def full_name(commit: str) -> str:
    """The full hash of a commit; empty for an empty name."""
    if not commit:
        return ""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"base {commit}: git finds no such commit")
    return done.stdout.strip()


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of a commit; an empty name gives a folder that is not there."""
    if not commit:
        yield folder
        return
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], check=False)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures speed against goals and peers.")
    parser.add_argument("--quick", action="store_true", help="small shapes, two rounds, one thread")
    parser.add_argument("--rows", default="", help="numbers, separated by commas; 10 only on demand")
    parser.add_argument("--threads", default="", help="numbers of threads; one and all cores by default")
    parser.add_argument("--shapes", default="", help="of mini, paper, 1B")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--base", default="", help="commit for rows 9 and 10")
    parser.add_argument("--target", default="main", help="what row 10 asks `snakemake` for")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen_rows(text: str, *, base: str) -> list[int]:
    rows = [int(word) for word in text.split(",") if word] or [row for row in TITLES if row not in ON_DEMAND]
    if unknown := set(rows) - set(TITLES):
        raise SystemExit(f"rows {sorted(unknown)}: expected numbers from 1 to {max(TITLES)}")
    return [row for row in rows if base or row not in WITH_BASE]


def chosen_threads(text: str, *, quick: bool, device: str) -> list[int]:
    """One thread and all; in a quick run one, which tells the most on a shared machine; on a GPU all."""
    if text:
        return [int(word) for word in text.split(",")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cuda":
        return [cores]
    return [1] if quick else sorted({1, cores})


def main() -> int:
    chosen = parsed()
    if chosen.child:
        child(chosen.child)
        return 0
    start, machine = time.perf_counter(), describe(chosen.device)
    device, base = machine["device"], full_name(chosen.base)
    rows = chosen_rows(chosen.rows, base=base)
    all_threads = chosen_threads(chosen.threads, quick=chosen.quick, device=device)
    found, well = [], True
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    commit = "HEAD" if 10 in rows else ""
    try:
        with checked_out(base, folder / "base") as checkout, checked_out(commit, folder / "own") as own:
            options = {
                "device": device, "quick": chosen.quick, "folder": str(folder), "base": base, "target": chosen.target,
                "checkout": str(checkout), "own": str(own),
            }  # fmt: skip
            if chosen.shapes:
                options["shapes"] = chosen.shapes.split(",")
            for members in GROUPS:
                asked = [row for row in members if row in rows]
                once = set(asked) <= THREADS_DO_NOT_MATTER
                for threads in all_threads[-1:] if once else all_threads:
                    if asked:
                        started = time.perf_counter()
                        lines, good = group(asked, options | {"threads": threads})
                        found, well = found + lines, well and good
                        passed = time.perf_counter() - started
                        say(f"row {', '.join(map(str, asked))}, {threads} threads, {passed:.0f} s")
                        say("\n".join(table(lines)[2:]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {"machine": machine, "quick": chosen.quick, "seconds": round(time.perf_counter() - start), "lines": found}
    stem = result_name(machine, quick=chosen.quick)
    write(chosen.out / stem, result)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime
    say(f"{result['seconds']} s ({processor:.0f} s of processors); {chosen.out.name}/{stem}.json, .md and .svg")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
