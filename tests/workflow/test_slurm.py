"""The Slurm profile, what is left in a queue, and, where there is a real Slurm, a whole run with everything that dies.

`pytest -m slurm tests/workflow/test_slurm.py` runs `smoke` on Slurm, for some minutes; without `-m`, only quick tests.
A running Slurm is used as it is; else one is started on this machine, if a script for that is at hand (SLURM_TOOL).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from fixtures.checkout import checkout as copy_checkout
from fixtures.tiny_checkout import STEPS, target, tiny_checkout

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, write_json
from budgeted_lora.workflow import slurm
from budgeted_lora.workflow.runs import VARIABLE, begin_run, resume_run

ROOT = Path(__file__).resolve().parents[2]
TOOL = Path(os.environ.get("SLURM_TOOL", ROOT.parent / "shared" / "tools" / "slurm-single-node.sh"))
PROFILE = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text())
NAME = "budgeted-lora_0b7e"
PATIENCE = 3600  # seconds; some minutes are enough on an idle machine


def killed_run(results: Path, name: str = NAME) -> None:
    """What is left where a Snakemake with jobs in Slurm was killed."""
    write_json(results / "run.lock", {"id": "x", "pid": 1, "arguments": None, "slurm": name})


# --- a queue that is played


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of job ids for each name of jobs, and tools that read it; a cancelled job takes its time."""
    folder, tools = tmp_path / "queue", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    begin = f'#!/bin/sh\ncd "{folder}"\nfor word; do case "$word" in --name=*) name="${{word#--name=}}";; esac; done\n'
    scripts = {
        "squeue": '[ ! -e "$name" ] || cat "$name"\n[ ! -e "$name.going" ] || rm "$name" "$name.going"\n',
        "scancel": 'echo "$name" >> cancelled\n[ ! -e "$name" ] || touch "$name.going"\n',
    }
    for tool, script in scripts.items():
        (tools / tool).write_text(begin + script)
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    return folder


def test_a_run_does_not_begin_beside_jobs_that_wait(
    queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    killed_run(results)
    (queue / NAME).write_text("17\n18\n")
    for attempt in range(2):  # a refusal forgets nothing
        with pytest.raises(SystemExit) as ended:
            begin_run(results, slurm=f"another{attempt}")
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert re.fullmatch(rf"budgeted-lora: {results}: 2 jobs of a killed run .*--name={NAME}\)\n", line)
    with pytest.raises(BadInput, match="2 jobs of a killed run"):
        resume_run(results, wait=False)
    assert not (queue / "cancelled").exists()
    (queue / NAME).unlink()
    monkeypatch.setenv(VARIABLE, "")
    begin_run(results, slurm="another")
    assert read_json(results / "run.lock")["slurm"] == "another"


def test_resume_cancels_what_waits_and_no_other_job(
    queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_run(tmp_path / "results")
    (queue / NAME).write_text("17\n18\n")
    (queue / "budgeted-lora_other").write_text("19\n")
    with pytest.raises(BadInput, match="does not say what was run"):  # the next thing that it looks at
        resume_run(tmp_path / "results", wait=True)
    assert not (queue / NAME).exists()
    assert set((queue / "cancelled").read_text().split()) == {NAME}
    assert (queue / "budgeted-lora_other").exists()
    assert capsys.readouterr().err == "budgeted-lora: cancelling 2 Slurm jobs that are left (17, 18)\n"


def test_a_slurm_that_does_not_answer_is_one_line(queue: Path, tmp_path: Path) -> None:
    killed_run(tmp_path / "results")
    (tmp_path / "tools" / "squeue").write_text("#!/bin/sh\necho first >&2; echo 'no contact' >&2; exit 1\n")
    with pytest.raises(BadInput, match=rf"squeue .*--name={NAME}: status 1 \(no contact\)"):
        resume_run(tmp_path / "results", wait=True)


def test_a_machine_without_slurm_has_no_such_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.queued_jobs(NAME) == []


def test_the_name_of_a_runs_jobs() -> None:
    class Executor:
        run_uuid = NAME

    class Workflow:
        scheduler = type("Scheduler", (), {"_executor": Executor()})()

    assert slurm.job_name(object()) is None
    assert slurm.job_name(Workflow()) is None  # of another plugin
    Executor.__module__ = "snakemake_executor_plugin_slurm"
    assert slurm.job_name(Workflow()) == NAME


# --- the profile


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


def own_environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def rules() -> dict[str, str]:
    """The text of each rule that makes something; a rule that reuses another has that one's text too."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    parts = re.split(r"^ *(?:use rule (\w+) as (\w+) with|rule (\w+)):$", text, flags=re.MULTILINE)[1:]
    bodies: dict[str, str] = {}
    for base, derived, name, body in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        bodies[name or derived] = bodies.get(base, "") + body
    return {name: body for name, body in bodies.items() if "shell:" in body}


def test_the_profile_names_rules_that_there_are() -> None:
    assert {*PROFILE["groups"], *PROFILE["set-resources"]} <= rules().keys()
    assert set(PROFILE["group-components"]) <= set(PROFILE["groups"].values())


def test_gpu_rules_go_to_the_gpu_partition() -> None:
    on_gpu = {name for name, body in rules().items() if re.search(r"^\s+gpu=", body, flags=re.MULTILINE)}
    asked = {name for name, values in PROFILE["set-resources"].items() if values.get("slurm_partition") == "gpu"}
    assert on_gpu == asked - {"compress_cell"}


def test_long_rules_are_in_no_group() -> None:
    assert not {"train_cell", "pretrain_teacher", "cache_teacher", "fetch_teacher", "collect_corpus"} & set(
        PROFILE["groups"]
    )


def test_rules_of_a_group_agree_on_where_they_run() -> None:
    for group in set(PROFILE["groups"].values()):
        asked = [PROFILE["set-resources"].get(rule, {}) for rule, of in PROFILE["groups"].items() if of == group]
        for key in ("slurm_partition", "slurm_extra"):
            assert len({values.get(key) for values in asked}) == 1, (group, key)


@pytest.mark.parametrize("scale", ["smoke", "mini"])
def test_no_group_waits_for_itself(checkout: Path, scale: str) -> None:
    """Snakemake refuses that when it plans; it does so without the plugin, too."""
    folder = checkout / "profiles" / "groups"
    folder.mkdir(exist_ok=True)
    kept = {key: value for key, value in PROFILE.items() if key != "executor" and not key.startswith("slurm-")}
    (folder / "profile.yaml").write_text(yaml.safe_dump(kept))
    command = [sys.executable, "-m", "snakemake", "all", "--dry-run", "--quiet", "--config", f"scale={scale}"]
    command += ["--workflow-profile", "profiles/groups", "--cores", "4"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=checkout, env=own_environment(checkout)
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def test_an_orphans_snakemake_removes_nothing(checkout: Path) -> None:
    """A job that starts when its run is dead: its own Snakemake must end before it removes the job's outputs."""
    kept = checkout / "results" / "smoke" / "cells.csv"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("finished")
    command = [sys.executable, "-m", "snakemake", str(kept.relative_to(checkout)), "--force", "--no-hooks", "--nolock"]
    done = subprocess.run(
        [*command, "--cores", "1", "--config", "scale=smoke"], capture_output=True, text=True, check=False,
        cwd=checkout, env=own_environment(checkout) | {VARIABLE: f"dead {kept.parent}"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the run that started this job has ended" in done.stderr
    assert kept.read_text() == "finished"


# --- a real Slurm


def answers() -> bool:
    return bool(shutil.which("squeue")) and subprocess.run(["squeue"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def real_slurm() -> Iterator[None]:
    if answers():
        yield
        return
    if not (TOOL.is_file() and shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") and os.getuid() == 0):
        pytest.skip("no Slurm answers, and there is none to start")
    own = os.environ | {"SLURM1_APT": "no"}
    subprocess.run([TOOL, "start"], check=True, capture_output=True, env=own)
    yield
    subprocess.run([TOOL, "stop"], check=True, capture_output=True, env=own)


def words(*command: object) -> list[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_leftovers_in_a_real_queue(real_slurm: None, tmp_path: Path) -> None:
    def submit(name: str, *options: str) -> str:
        common = ["--parsable", "--mem=10", "--time=5", "--output=/dev/null", f"--chdir={tmp_path}"]
        [job] = words("sbatch", *common, f"--job-name={name}", *options, "--wrap=sleep 300")
        return job

    name = f"budgeted-lora_{os.getpid()}"
    left, other = [submit(name), submit(name, "--hold")], submit(f"{name}b", "--hold")
    killed_run(tmp_path / "results", name)
    try:
        assert sorted(slurm.queued_jobs(name)) == sorted(left)
        with pytest.raises(BadInput, match="2 jobs of a killed run"):
            resume_run(tmp_path / "results", wait=False)
        with pytest.raises(BadInput, match="does not say what was run"):
            resume_run(tmp_path / "results", wait=True)
        assert slurm.queued_jobs(name) == []
        assert slurm.queued_jobs(f"{name}b") == [other]
    finally:
        words("scancel", *left, other)


def wait_until(there: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)


def stop_one(results: Path, seen: set[Path]) -> tuple[int, str] | None:
    """Stops a training of the run that is alive, if it has saved a state and was not met: its process and Slurm job."""
    run = f"{read_json(results / 'run.lock')['id']} {results}" if (results / "run.lock").exists() else None
    for state in set(results.glob("state/*/state.safetensors")) - seen:
        try:
            process = int((state.parent / "lock").read_text())
            environment = Path(f"/proc/{process}/environ").read_bytes().decode()
            own = dict(word.partition("=")[::2] for word in environment.split("\0"))
            if own.get(VARIABLE) != run:
                continue
            os.kill(process, signal.SIGSTOP)
        except (OSError, ValueError):  # it has just ended
            continue
        if state.exists():
            seen.add(state)
            return process, own["SLURM_JOB_ID"]
        os.kill(process, signal.SIGCONT)
    return None


PROFILE_OPTIONS = ["--workflow-profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "2"]


class Runs:
    """Starts runs in a checkout, one after the other, each with a log; leaves none behind, and no job of one."""

    def __init__(self, checkout: Path, results: Path) -> None:
        self.checkout, self.results, self.log = checkout, results, checkout / "snakemake.log"
        self.begun: list[subprocess.Popen] = []

    def start(self, *words: str) -> subprocess.Popen:
        with self.log.open("w") as stream:
            run = subprocess.Popen(
                [sys.executable, *words], stdout=stream, stderr=subprocess.STDOUT, cwd=self.checkout,
                env=own_environment(self.checkout),
            )  # fmt: skip
        self.begun.append(run)
        return run

    def snakemake(self, *words: str) -> subprocess.Popen:
        return self.start("-m", "snakemake", *words, *PROFILE_OPTIONS)

    def resume(self, scale: str) -> subprocess.Popen:
        command = "import sys; from budgeted_lora.commands.app import main; sys.argv[0] = 'budgeted-lora'; main()"
        return self.start("-c", command, "resume", "--scale", scale)

    def job_name(self) -> str:
        return read_json(self.results / "run.lock")["slurm"]

    def ends(self) -> Counter[str]:
        """How the Slurm jobs of the last run ended."""
        return Counter(words("squeue", "--noheader", "--states=all", "--format=%T", f"--name={self.job_name()}"))

    def meet(self, run: subprocess.Popen, seen: set[Path]) -> tuple[int, str]:
        met: list[tuple[int, str]] = []

        def look() -> bool:
            met.extend(filter(None, [stop_one(self.results, seen)]))
            return bool(met) or run.poll() is not None

        wait_until(look, "a training with a state")
        assert met, self.log.read_text()[-3000:]
        return met[0]

    def clear(self) -> None:
        for run in self.begun:
            run.kill()
            run.wait()
        if (self.results / "run.lock").exists():
            slurm.cancel_jobs(self.job_name())


Begin = Callable[[Path, str], Runs]


@pytest.fixture
def begin(real_slurm: None) -> Iterator[Begin]:
    """Runs of a checkout and a scale of it."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    made: list[Runs] = []

    def go(checkout: Path, scale: str) -> Runs:
        made.append(Runs(checkout, checkout / "results" / scale))
        return made[-1]

    yield go
    for runs in made:
        runs.clear()


@pytest.mark.slurm
def test_whatever_dies(begin: Begin, tmp_path: Path) -> None:
    """Snakemake is killed and resumed; then a job is cancelled, a payload is killed, and a job runs out of time."""
    runs = begin(tiny_checkout(tmp_path / "checkout", teachers="ABCD"), "tiny")
    wanted = [*map(target, "ABCD"), "--config", "scale=tiny"]
    first = runs.snakemake(*wanted)
    seen = set()
    for _ in range(2):  # on a node with two GPUs two run, both now stopped, and two wait
        runs.meet(first, seen)
    first.kill()
    first.wait()
    name = runs.job_name()
    assert name.startswith("budgeted-lora_")
    left = slurm.queued_jobs(name)
    assert left
    refused = runs.snakemake("--nolock", *wanted)
    assert refused.wait(PATIENCE) == 2
    assert "left in Slurm's queue" in runs.log.read_text()
    assert slurm.queued_jobs(name)

    resumed, seen = runs.resume("tiny"), set()
    words("scancel", runs.meet(resumed, seen)[1])
    os.kill(runs.meet(resumed, seen)[0], signal.SIGKILL)
    words("scontrol", "update", f"JobId={runs.meet(resumed, seen)[1]}", "TimeLimit=1")
    assert resumed.wait(PATIENCE) == 0, runs.log.read_text()[-3000:]

    assert slurm.queued_jobs(name) == []
    assert runs.job_name() != name
    assert runs.ends() == {"COMPLETED": 4, "CANCELLED": 1, "FAILED": 1, "TIMEOUT": 1}
    assert all((runs.checkout / target(teacher)).is_file() for teacher in "ABCD")
    assert not list(runs.results.glob("state/*"))
    logs = [path.read_text() for path in runs.results.glob("logs/pretrain_teacher/*.log")]
    begun = [int(re.findall(rf"\| *(\d+)/{STEPS} \[00:00<\?", text)[0]) for text in logs]
    assert sum(step > 0 for step in begun) >= 3  # what died went on from its state


@pytest.mark.slurm
def test_smoke(begin: Begin, tmp_path: Path) -> None:
    runs = begin(copy_checkout(tmp_path / "checkout"), "smoke")
    run = runs.snakemake("main", "--config", "scale=smoke")
    assert run.wait(PATIENCE) == 0, runs.log.read_text()[-3000:]
    assert (runs.checkout / "reports" / "smoke" / "index.html").is_file()
    ends, made = runs.ends(), sum(1 for _ in runs.results.glob("benchmarks/**/*.tsv"))
    assert ends.keys() == {"COMPLETED"}
    assert ends["COMPLETED"] < 0.6 * made, f"{ends} Slurm jobs for {made} of Snakemake's"
