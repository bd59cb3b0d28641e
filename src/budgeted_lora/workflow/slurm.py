"""Jobs of a killed run in Slurm's queue, found by the name that all jobs of one run share.

Snakemake's plugin for Slurm names all jobs of a run `<prefix>_<random id>`, with the prefix of the profile. That name
belongs to one run alone, so a search for it finds no job of another scale, checkout or person.
"""

import shutil
import subprocess
import sys
import time

from budgeted_lora.errors import BadInput

PLUGIN = "snakemake_executor_plugin_slurm"
ANSWER_SECONDS = 60  # a busy controller answers late
POLL_SECONDS = 2.0


def job_name(workflow: object) -> str | None:
    """Name of the Slurm jobs of a starting workflow (`workflow` in a Snakefile); None with another executor."""
    executor = getattr(getattr(workflow, "scheduler", None), "_executor", None)
    return executor.run_uuid if type(executor).__module__.split(".")[0] == PLUGIN else None


def queued_jobs(name: str) -> list[str]:
    """Ids of the jobs of this name in the queue; none without Slurm. Raises BadInput if Slurm does not answer."""
    return _ask("squeue", "--noheader", "--format=%A", f"--name={name}").split() if shutil.which("squeue") else []


def cancel_jobs(name: str) -> None:
    """Cancels the jobs of this name and waits until the last has left the queue. Raises BadInput if Slurm refuses."""
    if jobs := queued_jobs(name):
        listed = ", ".join(jobs[:10]) + (", ..." if len(jobs) > 10 else "")
        print(f"budgeted-lora: cancelling {len(jobs)} Slurm jobs that are left ({listed})", file=sys.stderr, flush=True)
    while jobs:
        _ask("scancel", f"--name={name}")  # each time: the killed Snakemake may still have had an sbatch under way
        time.sleep(POLL_SECONDS)
        jobs = queued_jobs(name)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise BadInput(f"{command[0]}: no answer from Slurm in {ANSWER_SECONDS} s; try again later") from None
    if done.returncode != 0:
        message = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BadInput(f"{' '.join(command)}: status {done.returncode} ({message}); try again once Slurm answers")
    return done.stdout
