"""Starts the processes of a training job on several GPUs, and ends them all when one of them ends too soon.

The job itself (`budgeted-lora stage train_cell`, which holds the GPU slots) runs torchrun's agent. Each process is
`python -m budgeted_lora.stages.launch FOLDER`; FOLDER holds the job and receives the error of a process that fails. The
kernel kills a process when the job dies. It shares the job's slots, so no slot is free while a process lives.
"""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput, ProcessFailed, TrainingDiverged
from budgeted_lora.files import read_json, write_json
from budgeted_lora.stages.arguments import bind, convert, read_words
from budgeted_lora.workflow.runs import join_run
from budgeted_lora.workflow.slots import VISIBLE, share_slots

JOB = "job.json"
PARENT = "BUDGETED_LORA_JOB"  # environment variable: process id of the job that started this process
REPORTED: dict[str, type[Exception]] = {"BadInput": BadInput, "TrainingDiverged": TrainingDiverged, "OSError": OSError}
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# In the messages of a process that outlives a peer.
LOST = ("Connection closed", "Connection reset", "Broken pipe", "Connection refused")


def check_share(count: int, given: Mapping[str, Any]) -> None:
    """Checks, before any GPU is taken, that `count` processes can share a step's windows.

    Raises:
        BadInput: they cannot, or the recipe is invalid.
    """
    windows = convert("recipe", Recipe, given.get("recipe")).batch_windows
    if windows % count:
        raise BadInput(f"--gpus {count} cannot share the {windows} windows of a step; expected a divisor")


def train_in_processes(count: int, words: Sequence[str], *, state: Path) -> None:
    """Trains one student in `count` processes.

    Args:
        words: the command, as `dispatch.run_stage` has it.
        state: folder of training states, which holds the job while it runs.

    Raises:
        BadInput, TrainingDiverged, OSError: as a process raised it.
        ProcessFailed: a process was killed or failed in another way; the others have been ended.
    """
    state.mkdir(parents=True, exist_ok=True)
    # What a killed job leaves of it goes with the other temporary files when the next run of the workflow begins.
    with tempfile.TemporaryDirectory(dir=state, prefix=".processes.", suffix=".tmp") as name:
        folder = Path(name)
        write_json(folder / JOB, list(words))
        statuses = _run(count, folder)
        if statuses:
            raise _failure(count, folder, statuses)


def _run(count: int, folder: Path) -> dict[int, tuple[int, int]]:
    """Runs all processes to their end.

    Returns:
        Exit status (negative for a signal) and process id of each process that failed, the first to be seen first.

    Raises:
        SystemExit: a signal asked this process to end; the others have been ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    with _quiet_agent():
        try:
            elastic_launch(config, sys.executable)("-m", __name__, str(folder))
        except ChildFailedError as error:
            return {number: (failed.exitcode, failed.pid) for number, failed in error.failures.items()}
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
    return {}


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Silences torchrun and surviving processes so that a failure prints one line."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[PARENT] = str(os.getpid())
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[PARENT]


def _failure(count: int, folder: Path, statuses: Mapping[int, tuple[int, int]]) -> Exception:
    """The first cause: other processes fail because a peer is gone, or are ended by us with SIGTERM."""
    reports = {number: read_json(file) for number in statuses if (file := folder / f"{number}.json").exists()}

    def lateness(number: int) -> int:
        if number in reports:
            return 3 if reports[number]["lost"] else 1
        return 2 if statuses[number][0] == -signal.SIGTERM else 0

    number = min(statuses, key=lateness)
    status, pid = statuses[number]
    if 0 in statuses and 0 not in reports:  # the progress bar of a process that was ended is still open
        print(file=sys.stderr)
    if number not in reports:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return ProcessFailed(
            f"training process {number} of {count} (process id {pid}) {how}; the others were ended, the same command "
            "continues from the saved state"
        )
    report = reports[number]
    if report["kind"] in REPORTED:
        return REPORTED[report["kind"]](*report["arguments"])
    print(report["trace"], end="", file=sys.stderr)
    return ProcessFailed(f"training process {number} of {count}: {report['trace'].splitlines()[-1]}")


def main(folder: Path) -> None:
    """One process, as torchrun starts it: it sees its own GPU alone, as cuda:0."""
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        _die_with(int(os.environ[PARENT]))
        share_slots()
        devices = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
        if devices:
            os.environ[VISIBLE] = devices[int(os.environ["LOCAL_RANK"])]
        stage, given = read_words(read_json(folder / JOB, kind=list))
        join_run(f"{stage} {given['out']} (process {number})")
        from budgeted_lora.stages.train_cell import train_together

        train_together(number, count, bind(stage, given)[1])
    except Exception as error:
        _report(folder / f"{number}.json", error)
        os._exit(1)  # at once: an ordinary end may wait for peers


def _die_with(parent: int) -> None:
    """Asks the kernel (Linux) to kill this process when the job dies; ends it if the job is already gone.

    An interrupt ends the process at once, even while it waits for a peer.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _report(file: Path, error: Exception) -> None:
    kind = next((name for name, known in REPORTED.items() if isinstance(error, known)), type(error).__name__)
    arguments = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else [str(error)]
    lost = isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)
    trace = "".join(traceback.format_exception(error))
    write_json(file, {"kind": kind, "arguments": arguments, "lost": lost, "trace": trace})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
