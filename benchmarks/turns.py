"""Training runs in processes of their own that take turns: while one computes, the others wait.

The parent writes a line with a number of steps; the run computes them inside its real training loop, answers with one
line of JSON, and waits in the callback at the end of that step. So every process has its own settings, allocator and
peak memory, and every turn is timed under the same load.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]


class Turns:
    """The run's side: keeps the clock of its turns. Standard output becomes the protocol's; prints go to stderr."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._tick = 0.0

    def begin(self) -> None:
        """Says that the run is ready, and waits for the first turn. Peak memory counts from here."""
        reset_peak()
        self._answer(ready=True)
        self._wait()

    def step(self, *, loss: Callable[[], float]) -> None:
        """Counts a step; at the end of a turn reports its seconds and the loss of its last step, then waits."""
        self._left -= 1
        if self._left == 0:
            value = loss()  # on a GPU this waits for the device
            self._answer(seconds=time.perf_counter() - self._tick, loss=value, peak_bytes=peak_bytes())
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        self._left = int(line or 0)
        self._tick = time.perf_counter()

    def _answer(self, **values: Any) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()


def reset_peak() -> None:
    """Makes the peak start from the memory in use now, where the system allows it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Peak memory of this process: of the GPU if it used one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Broken(Exception):
    """A run that ended early; the message is the last line of its standard error."""


class Run:
    """The parent's side of one run."""

    def __init__(self, module: str, options: Mapping[str, Any], *, threads: int, source: Path | None = None) -> None:
        """Starts `python -m benchmarks.MODULE OPTIONS`.

        Args:
            source: the package's `src` folder in another checkout; this one's when None.
        """
        self._errors: TextIO = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=environment(threads=threads, source=source),
        )

    def wait_until_ready(self) -> None:
        self._read()

    def turn(self, steps: int) -> dict[str, Any]:
        """Lets the run compute so many steps.

        Raises:
            Broken: it ended.
        """
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_read` says why
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = [text.strip() for text in self._errors.read().splitlines() if text.strip()]
            raise Broken(lines[-1] if lines else f"ended with status {self._process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def environment(*, threads: int, source: Path | None = None) -> dict[str, str]:
    """Environment of a child: its threads, and where it finds the package."""
    paths = [str(source)] if source else [str(ROOT / "src")]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths), **quiet}


def race(
    runs: Mapping[str, Callable[[], Run]], *, rounds: int, steps: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Turns of `steps` steps each, by run, and why a run is missing.

    Every run first takes one step alone, as warm-up and for the loss of the initial weights; then come the rounds. So a
    run needs `needed(rounds, steps)` steps. Each starts with another run than the last.
    """
    answers: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        started = {}
        for name, start in runs.items():
            started[name] = start()
            stack.callback(started[name].close)
        for name, run in started.items():
            try:
                run.wait_until_ready()
                answers[name] = [run.turn(1)]
            except Broken as error:
                missing[name] = str(error)
        for turn in range(rounds):
            names = [name for name in started if name not in missing]
            first = turn % max(1, len(names))
            for name in names[first:] + names[:first]:
                try:
                    answers[name].append(started[name].turn(steps))
                except Broken as error:
                    missing[name] = str(error)
                    answers.pop(name, None)
    return answers, missing


def needed(rounds: int, steps: int) -> int:
    """Steps of a run that takes part in a race."""
    return 1 + rounds * steps


def seconds(answers: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of the rounds, without the first step."""
    return [answer["seconds"] for answer in answers[1:]]
