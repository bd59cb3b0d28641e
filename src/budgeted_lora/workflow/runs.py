"""Which processes work on the results of a scale: at most one run of the workflow, and the jobs it started.

Snakemake's own lock is a file that outlives a killed Snakemake and cannot tell whether a process still works. Two
kernel locks show it, since they are released when their holders die: a run holds `results/<scale>/run.lock` alone, and
its jobs share `jobs.lock`. Jobs of a killed run continue as orphans; no other run starts a job until the last has
ended. If a batch system starts the jobs, each has its own Snakemake, which shares `jobs.lock` too; jobs that still wait
in Slurm's queue are found by the name in `run.lock`. Dry runs, reports, `--unlock` and `--lint` take no lock, and a
stage called by hand belongs to no run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from budgeted_lora.errors import BadInput
from budgeted_lora.files import is_locked, lock, lock_alone, naming
from budgeted_lora.workflow.slurm import cancel_jobs, queued_jobs

RUN, JOBS = "run.lock", "jobs.lock"
VARIABLE = "BUDGETED_LORA_RUN"  # tells a job its run: "<id> <folder of the locks>"
TEMPORARY = (".*.tmp", ".collect.*")  # names of unfinished files; the second is that of earlier versions
AHEAD = 60.0  # seconds by which clocks of machines that share a folder may differ


def age(date: float) -> float:
    """Seconds since a file's date (seconds since the epoch); below 0 where it lies in the future."""
    return time.time() - date


def refuse_a_clock_set_back(results: Path | str) -> None:
    """Compares the clock with the dates of earlier runs; the Snakefile does this first.

    While the clock is behind, Snakemake takes a new or edited file for older than all earlier ones and does not use it.
    A job of a run compares nothing, since other machines have other clocks.

    Raises:
        BadInput: a lock, or a benchmark, which a job writes when it ends, is dated in the future.
    """
    if VARIABLE in os.environ:
        return
    folder = Path(results)
    times = [
        path.stat().st_mtime for path in (folder / RUN, folder / JOBS, *folder.glob("benchmarks/*/*")) if path.exists()
    ]
    ahead = -age(max(times, default=0.0))
    if ahead > AHEAD:
        raise BadInput(
            f"{folder}: its last job ended {ahead:.0f} s in the future, so the clock has been set back; expected one "
            f"that only goes forward. If it is correct now, run: find {folder} -newermt now -exec touch {{}} +"
        )


def begin_run(results: Path | str, *, slurm: str | None = None, about: Mapping[str, Any] | None = None) -> None:
    """Takes the run's lock for the life of this process; the Snakefile does this before the first job.

    Also removes the temporary files of killed jobs. Exits with status 2 and a one-line message if another run, or a job
    of a killed one, works here or waits in Slurm's queue.

    Args:
        results: folder of the scale's results.
        slurm: name of the run's jobs in Slurm, if they run there.
        about: what `watch` is to know of the run, see `what_runs`.
    """
    try:
        folder = Path(results).resolve()
        with _alone(folder, wait=False) as (handle, record):
            record |= {"arguments": sys.argv[1:], "slurm": slurm, "about": dict(about or {})}
            with naming(folder / RUN):
                _write(handle, record)
            os.dup(handle)  # never closed, and no child inherits it
            remove_leftovers(Path(results))
        os.environ[VARIABLE] = f"{record['id']} {folder}"
    except (BadInput, OSError) as error:
        reason = error if isinstance(error, BadInput) else f"{error.strerror}: {error.filename}"
        print(f"budgeted-lora: {reason}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)


def what_runs(workflow: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a person who looks on cannot see in the results: targets, values laid on top, and Snakemake's counters.

    Args:
        workflow: Snakemake's, of which the targets and the numbers of cores and GPUs are read; None without a limit.
    """
    counters = {name: workflow.global_resources.get(key) for name, key in (("cores", "_cores"), ("gpus", "gpu"))}
    limits = {name: getattr(counter, "value", counter) for name, counter in counters.items()}
    return {"targets": sorted(workflow.dag_settings.targets), "config": dict(overrides), **limits}


def join_run(what: str) -> None:
    """Shares the lock of the run's jobs for the life of this process; every job does this first.

    So does the Snakemake that a batch system starts for a job, before it removes the outputs of an earlier try.

    Args:
        what: the job, for people who ask which jobs are left.

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
    """Whether the run that started this job has died."""
    if VARIABLE not in os.environ:
        return False
    own, _, folder = os.environ[VARIABLE].partition(" ")
    handle = os.open(Path(folder) / RUN, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return _read(handle).get("id") != own or lock(handle, shared=True)
    finally:
        os.close(handle)


def run_folder() -> Path | None:
    """Folder of the scale whose run started this process; None for a stage that is called by hand."""
    folder = os.environ.get(VARIABLE, "").partition(" ")[2]
    return Path(folder) if folder else None


def is_at_work(results: Path | str) -> bool:
    """Whether a run holds the lock of a scale, or this process belongs to one."""
    return VARIABLE in os.environ or is_locked(Path(results) / RUN)


def resume_run(results: Path, *, wait: bool) -> list[str]:
    """Prepares to continue a killed run: no job of it works any longer, and Snakemake's lock is gone.

    Args:
        wait: wait for jobs of the killed run instead of refusing. Jobs in Slurm are cancelled instead: their results
            would count as unfinished, and they continue from their saved state.

    Returns:
        Snakemake's arguments as they were.

    Raises:
        BadInput: no run was started here, it is still alive, or jobs are left.
    """
    folder = results.resolve()
    if not (folder / RUN).exists():
        raise BadInput(f"{results}: no run was started here; expected one to continue (make reproduce)")
    with _alone(folder, wait=wait) as (_, record):
        if record["arguments"] is None:
            raise BadInput(f"{results / RUN}: does not say what was run; start it as before (make reproduce)")
        unlock = [sys.executable, "-m", "snakemake", "--unlock", *record["arguments"]]
        done = subprocess.run(unlock, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            message = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise BadInput(f"snakemake --unlock: status {done.returncode} ({message})")
    return record["arguments"]


def temporary(folder: Path) -> list[Path]:
    """Temporary files and folders of writers, living or killed, except those inside one another."""
    found = sorted({path for pattern in TEMPORARY for path in folder.rglob(pattern)})
    return [path for path in found if not any(parent in found for parent in path.parents)]


def interrupted_imports(results: Path) -> list[Path]:
    """Folders from which a killed import was to move files; a living import locks its folder.

    Args:
        results: results/<scale>; reports/ lies beside results/.
    """
    roots = (results.parent.parent / "reports", results.parent)
    found = [path for root in roots for path in sorted(root.glob(f".import-{results.name}-{'[!-]' * 8}"))]
    return [path for path in found if not is_locked(path)]


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left; call it only while nothing writes."""
    for path in [*temporary(folder), *interrupted_imports(folder)]:
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
        if not lock_alone(handle):
            raise BadInput(f"{folder}: process {before.get('pid')} is running this workflow; wait for it, or end it")
        record = {"id": uuid.uuid4().hex, "pid": os.getpid()}
        record |= {key: before.get(key) for key in ("arguments", "slurm")}
        with naming(folder / RUN):
            _write(handle, record)  # a new id tells the jobs that are left that their run has died
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
            f"{folder}: {len(jobs)} jobs of a killed run are left in Slurm's queue; "
            f"expected none (make resume cancels them, or: scancel --name={name})"
        )


def _await_jobs(handle: int, folder: Path, *, wait: bool) -> None:
    if lock(handle):
        return
    jobs = living(os.pread(handle, 1 << 20, 0).decode(errors="replace").splitlines())
    who = "; ".join(f"process {job.pid} {job.what}" for job in jobs)
    left = f"{folder}: jobs of a killed run still work ({who or 'on another machine'})"
    if not wait:
        raise BadInput(f"{left}; wait for them (make resume does), or end them")
    print(f"budgeted-lora: {left}; waiting for them", file=sys.stderr, flush=True)
    lock(handle, wait=True)


class Job(NamedTuple):
    """A job as it has entered itself: its process on a machine, its stage and what it writes."""

    pid: int
    machine: str
    what: str


def living(lines: Iterable[str], *, elsewhere: bool = False) -> list[Job]:
    """The jobs that still live on this machine, of lines "<process> <machine> <job>".

    Args:
        elsewhere: also those of other machines, which may have ended.
    """
    jobs = []
    for line in lines:
        pid, _, rest = line.partition(" ")
        machine, _, what = rest.partition(" ")
        if pid.isdecimal() and (lives(int(pid)) if machine == socket.gethostname() else elsewhere):
            jobs.append(Job(int(pid), machine, what))
    return jobs


def lives(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def run_record(results: Path | str) -> dict[str, Any]:
    """What the last run wrote of itself when it began; empty if none has. Takes no lock."""
    path = Path(results) / RUN
    if not path.is_file():
        return {}
    with path.open("rb") as stream:
        return _read(stream.fileno())


def _read(handle: int) -> dict[str, Any]:
    """The record in a lock file; empty if there is none or its writer was killed while writing."""
    try:
        record = json.loads(os.pread(handle, 1 << 20, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write(handle: int, record: dict[str, Any]) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(record).encode(), 0)


def discard(folder: Path) -> None:
    """Removes a state's folder once the results are in place, unless the run has died.

    Results of a job whose Snakemake was killed count as unfinished; the next run makes them again from this state.
    """
    if not orphaned():
        shutil.rmtree(folder)
