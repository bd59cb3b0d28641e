"""Rows 10 and 11: the workflow itself. How long it takes from nothing, when nothing is to do, and to start a job."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import goals
from benchmarks.context import Context
from benchmarks.measures import Measure, arm, limits, say, spread, take_turns
from benchmarks.turns import ROOT, environment

SNAKEMAKE = [sys.executable, "-m", "snakemake"]
COMMAND = [sys.executable, "-c", "from budgeted_lora.commands.app import main; main()"]
# A job that ends at its first input, which is not there: all it does is start, with the libraries that stages need.
MISSING = "none/config.json"
JOB = ["stage", "cut_student", "--options", '{"init": "mixed", "depth": 6}', "--teacher", "none", "--scale", "mini"]


class Failed(Exception):
    """A command ended with another status than expected."""


def seconds_of(
    command: Sequence[str], *, threads: int, refusal: str = "", folder: Path = ROOT, source: Path | None = None
) -> float:
    """Wall time of a command.

    Args:
        refusal: what a command that must end with status 2 names; empty for one that must succeed.

    Raises:
        Failed: it ended otherwise.
    """
    own = environment(threads=threads, source=source)
    own["PATH"] = os.pathsep.join([str(ROOT / ".venv" / "bin"), own["PATH"]])
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
    passed = time.perf_counter() - start
    if done.returncode != (2 if refusal else 0) or refusal not in done.stderr:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(lines[-1] if lines else f"status {done.returncode}")
    return passed


def measure_starts(context: Context) -> Iterator[Measure]:
    """Row 11: seconds of three commands."""
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", f"{folder}/out", "--record", f"{folder}/out.json"]
        commands = {
            "no-op": ([*SNAKEMAKE, "all", "--dry-run", "--quiet", "--cores", "1", "--nolock"], ""),
            "job": ([*COMMAND, *JOB, *out], MISSING),
            "plan": ([*COMMAND, "plan", "--hidden", "768", "--budget", "0.4"], ""),
        }
        names = {
            "no-op": "`snakemake all --dry-run` at mini",
            "job": "start of a job with torch and transformers",
            "plan": "`budgeted-lora plan`",
        }
        for name, (command, refusal) in commands.items():
            say(f"  {names[name]}")
            common = {"row": 11, "what": names[name], "threads": context.threads, "unit": "s"}
            own = goals.STARTS[name]

            def run(command: Sequence[str] = command, refusal: str = refusal) -> float:
                return seconds_of(command, threads=context.threads, refusal=refusal)

            try:
                samples = take_turns({name: run}, rounds=context.rounds(7))[name]
            except Failed as error:
                yield Measure(**common, **limits(own), skipped=str(error))
                continue
            value, q1, q3 = spread(samples)
            yield Measure(**common, **limits(own), value=value, q1=q1, q3=q3, arms={name: arm(samples)})


def measure_whole_run(context: Context, *, checkout: Path, commit: str, own: Path) -> Iterator[Measure]:
    """Row 10: `snakemake main`, or another target, in two fresh checkouts, one after the other.

    Both have the other commit's scale `mini`: they train the same students on the same tokens.
    """
    common = {
        "row": 10, "what": f"`snakemake {context.target}`, wall time", "against": f"commit {commit[:10]}",
        "shape": "mini", "threads": context.threads,
    }  # fmt: skip
    command = [*SNAKEMAKE, context.target, "--cores", str(context.threads), "--config", "scale=mini", "--quiet"]
    shutil.copyfile(checkout / "config" / "mini.yaml", own / "config" / "mini.yaml")
    samples = {}
    for name, folder in {"there": checkout, "here": own}.items():
        say(f"  `snakemake {context.target}` {name}")
        try:
            samples[name] = [seconds_of(command, threads=1, folder=folder, source=folder / "src")]
        except Failed as error:
            yield Measure(**common, **limits(goals.WHOLE_RUN), skipped=f"{name}: {error}")
            return
    value = samples["here"][0] / samples["there"][0]
    yield Measure(
        **common,
        **limits(goals.WHOLE_RUN),
        value=value,
        q1=value,
        q3=value,
        arms={name: arm(own) for name, own in samples.items()},
        notes=[f"{samples['here'][0] / 60:.1f} against {samples['there'][0] / 60:.1f} min; one run each"],
    )
