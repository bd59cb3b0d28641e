"""Who is at work on the results of a scale: at most one run of the workflow, and the jobs that it started.

Snakemake's own lock is a file that outlives a killed Snakemake and cannot say whether anyone is left. Here the kernel
says so, by two file locks that end with their holders: a run holds `results/<scale>/run.lock` alone, each of its jobs
shares `jobs.lock`. Jobs of a killed run work on as orphans; until the last has ended, no other run starts a job.
Where a batch system starts jobs, each has a Snakemake of its own, which shares `jobs.lock` too, and jobs that still
wait in Slurm's queue are found by the name noted in `run.lock`.
Dry runs, reports, `--unlock` and `--lint` take no lock, and a stage called by hand belongs to no run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budgeted_lora.errors import BadInput
from budgeted_lora.files import lock, naming
from budgeted_lora.workflow.slurm import cancel_jobs, queued_jobs

RUN, JOBS = "run.lock", "jobs.lock"
VARIABLE = "BUDGETED_LORA_RUN"  # tells a job its run: "<id> <folder of the locks>"
POLL_SECONDS = 0.5
AHEAD = 60.0  # seconds that the clocks of machines that share a folder may differ
TRIES, PAUSE = 5, 0.1  # a job that asks whether its run is alive holds run.lock for a moment


def refuse_a_clock_set_back(results: Path | str) -> None:
    """What the Snakefile does first: compares the clock with what earlier runs dated by it.

    Snakemake takes a file that is edited or made for older than all that came before, for as long as the clock is
    behind, and would not use it. In a job of a run nothing is compared: other machines have other clocks.

    Raises:
        BadInput: a lock, or a benchmark, which a job writes when it ends, is dated in the future.
    """
    if VARIABLE in os.environ:
        return
    folder = Path(results)
    dated = [
        path.stat().st_mtime for path in (folder / RUN, folder / JOBS, *folder.glob("benchmarks/*/*")) if path.exists()
    ]
    ahead = max(dated, default=0.0) - time.time()
    if ahead > AHEAD:
        raise BadInput(
            f"{folder}: its last job ended {ahead:.0f} s in the future, the clock has been set back; expected one that "
            f"goes forward; if it is right now, date the results anew: find {folder} -newermt now -exec touch {{}} +"
        )


def begin_run(results: Path | str, *, slurm: str | None = None) -> None:
    """What the Snakefile does before the first job: takes the run's lock, for as long as this process lives.

    Also removes the temporary files that killed jobs left. Ends the process, in one line and with status 2, where
    another run or a job of one that was killed is at work, or waits in Slurm's queue.

    Args:
        results: folder of the scale's results.
        slurm: name of the run's jobs in Slurm, if they go there.
    """
    try:
        folder = Path(results).resolve()
        with _alone(folder, wait=False) as (handle, record):
            record |= {"arguments": sys.argv[1:], "slurm": slurm}
            with naming(folder / RUN):
                _write(handle, record)
            os.dup(handle)  # never closed, and no child inherits it
            remove_leftovers(folder)
        os.environ[VARIABLE] = f"{record['id']} {folder}"
    except (BadInput, OSError) as error:
        reason = error if isinstance(error, BadInput) else f"{error.strerror}: {error.filename}"
        print(f"budgeted-lora: {reason}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)


def join_run(what: str) -> None:
    """What a job does first: shares the lock of its run's jobs, for as long as its process lives.

    So does the Snakemake that a batch system starts for a job, before it removes the outputs of the job's last try.

    Raises:
        BadInput: the run was killed before this job began.
    """
    if VARIABLE not in os.environ:
        return
    folder = Path(os.environ[VARIABLE].partition(" ")[2])
    handle = os.open(folder / JOBS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    lock(handle, shared=True, wait=True)
    if orphaned():
        os.close(handle)
        raise BadInput(f"{folder}: the run that started this job has ended; expected it alive (make resume)")
    with naming(folder / JOBS):
        os.write(handle, f"{os.getpid()} {socket.gethostname()} {what}\n".encode())


def orphaned() -> bool:
    """Whether a run started this job and is no more."""
    if VARIABLE not in os.environ:
        return False
    own, _, folder = os.environ[VARIABLE].partition(" ")
    handle = os.open(Path(folder) / RUN, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return _read(handle).get("id") != own or lock(handle, shared=True)
    finally:
        os.close(handle)


def resume_run(results: Path, *, wait: bool) -> list[str]:
    """Makes way for a run that goes on where a killed one stopped: no one is left at work, Snakemake's lock is gone.

    Args:
        wait: whether to wait for jobs that the killed run left, or to refuse. Those in Slurm are cancelled, not
            waited for: what they would still compute counts as unfinished, and they go on from their saved state.

    Returns:
        Snakemake's arguments as they were.

    Raises:
        BadInput: no run was started here, it is still alive, or jobs are left.
    """
    folder = results.resolve()
    if not (folder / RUN).exists():
        raise BadInput(f"{results}: no run was started here; expected one to go on with (make reproduce)")
    with _alone(folder, wait=wait) as (_, record):
        if record["arguments"] is None:
            raise BadInput(f"{results / RUN}: does not say what was run; start it as before (make reproduce)")
        unlock = [sys.executable, "-m", "snakemake", "--unlock", *record["arguments"]]
        done = subprocess.run(unlock, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise BadInput(f"snakemake --unlock: status {done.returncode} ({said})")
    return record["arguments"]


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders of writers that were killed; call it only where no one writes."""
    for path in sorted(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path, *, wait: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Holds both locks. Yields the descriptor of the run's lock and its record: the last run's, with a new id."""
    with naming(folder / RUN):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / RUN, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        before = _read(handle)
        for attempt in range(TRIES):
            if lock(handle):
                break
            time.sleep(PAUSE if attempt < TRIES - 1 else 0)
        else:
            raise BadInput(f"{folder}: process {before.get('pid')} is running this workflow; wait for it, or end it")
        record = {"id": uuid.uuid4().hex, "pid": os.getpid()}
        record |= {key: before.get(key) for key in ("arguments", "slurm")}
        with naming(folder / RUN):
            _write(handle, record)  # with a new id: jobs that are left know from it that they are
        jobs = os.open(folder / JOBS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if record["slurm"]:
                _clear_queue(record["slurm"], folder, cancel=wait)
            _await_jobs(jobs, folder, wait=wait)
            os.ftruncate(jobs, 0)
            yield handle, record
        finally:
            os.close(jobs)
    finally:
        os.close(handle)


def _clear_queue(name: str, folder: Path, *, cancel: bool) -> None:
    if cancel:
        cancel_jobs(name)
    elif jobs := queued_jobs(name):
        raise BadInput(
            f"{folder}: {len(jobs)} jobs of a run that was killed are left in Slurm's queue; "
            f"expected none (make resume cancels them, or: scancel --name={name})"
        )


def _await_jobs(handle: int, folder: Path, *, wait: bool) -> None:
    told = False
    while not lock(handle):
        who = "; ".join(_living(os.pread(handle, 1 << 20, 0).decode(errors="replace").splitlines()))
        left = f"{folder}: jobs of a run that was killed are still at work ({who or 'on another machine'})"
        if not wait:
            raise BadInput(f"{left}; wait for them (make resume does), or end them")
        if not told:
            print(f"budgeted-lora: {left}; waiting for them", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _living(lines: list[str]) -> list[str]:
    """What those do whose line "<process> <machine> <what it does>" names this machine and a process that is there."""
    found = []
    for line in lines:
        pid, _, rest = line.partition(" ")
        machine, _, what = rest.partition(" ")
        if machine != socket.gethostname():
            continue
        try:
            os.kill(int(pid), 0)
        except PermissionError:
            pass
        except (ValueError, OSError):
            continue
        found.append(f"process {pid} {what}")
    return found


def _read(handle: int) -> dict[str, Any]:
    """The record in a lock file; empty where there is none, or where its writer was killed as it wrote."""
    try:
        record = json.loads(os.pread(handle, 1 << 20, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write(handle: int, record: dict[str, Any]) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(record).encode(), 0)


def discard(folder: Path) -> None:
    """Removes a state's folder, once the results are in place and whoever started the job can take note of them.

    The results of a job whose Snakemake was killed count as unfinished and are made again: from this state, at once.
    """
    if not orphaned():
        shutil.rmtree(folder)
