"""Whether a machine can run a scale: any line can be short or missing, and then says what to do and stops a run."""

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.machines import GIB, GPU, LARGE, PINNED, ROOT, check, elsewhere, graph_of, states  # noqa: F401

from budgeted_lora.commands import app as cli
from budgeted_lora.planning import checks, doctor, machine
from budgeted_lora.planning.checks import Check, devices, host, local_inputs, storage
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import GPUS, Slots
from budgeted_lora.planning.doctor import examine, packages, pinned, software
from budgeted_lora.planning.findings import troubles
from budgeted_lora.planning.machine import this_machine
from budgeted_lora.planning.start import refuse_what_cannot_fit
from budgeted_lora.planning.storage import disk
from budgeted_lora.workflow.targets import limited

pytestmark = pytest.mark.usefixtures("elsewhere")


# --- hardware


def test_a_large_machine_can_run_the_papers_scale() -> None:
    findings = [*devices(check()), *host(check()), *storage(check())]
    assert states(findings) == ["ok"] * 4
    assert "80.0 GiB, the plan needs 13." in findings[0].detail
    assert "2 side by side" in findings[2].detail


def test_no_gpu_and_too_small_a_gpu() -> None:
    [finding] = devices(check(gpus=()))
    assert (finding.name, finding.state) == ("GPU", "missing")
    small = replace(GPU, name="small", memory_bytes=8 * GIB)
    findings = list(devices(check(gpus=(GPU, small))))
    assert states(findings) == ["ok", "short"]
    assert findings[1].detail.startswith("small (GPU-1): 8.0 GiB, the plan needs 13.")
    assert "training" in findings[1].detail
    assert "micro_batch_windows" in findings[1].remedy
    assert states(list(devices(check("single-gpu", gpus=(replace(GPU, memory_bytes=24 * GIB),))))) == ["ok"]


def test_what_the_driver_does_not_tell_is_no_trouble() -> None:
    [finding] = devices(check(gpus=(replace(GPU, memory_bytes=None),)))
    assert finding.state == "ok"
    assert "unknown memory" in finding.detail
    [finding] = devices(check(gpus=(replace(GPU, capability=7.0),)))
    assert "no bfloat16" in finding.detail


def test_a_scale_that_takes_what_is_there_runs_on_either() -> None:
    [finding] = devices(check("mini", gpus=()))
    assert (finding.state, finding.detail) == ("ok", "CPU, 32 cores (device: auto)")
    [finding, _] = devices(check("mini"))
    assert finding.name == "GPU"


def test_a_build_of_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "package_version", lambda _: "2.13.0+cpu")
    assert "2.13.0+cpu is a build without CUDA" in next(iter(devices(check()))).detail


def test_an_optional_package_is_needed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert list(checks.extras(graph_of("smoke"))) == []
    asking = graph_of("smoke", evaluation={"lm_eval": ["arc_easy"]})
    [finding] = checks.extras(asking)
    assert finding.line() == "lm_eval, which evaluation.lm_eval needs; pip install -e '.[lm-eval]'"
    assert "package missing: lm_eval, which" in doctor.refusal(asking, remote=False)
    assert list(checks.extras(limited(asking, ["table3"]))) == []
    [finding] = checks.extras(graph_of("smoke", evaluation={"int8": True}))
    assert finding.line() == "torchao, which evaluation.int8 needs; pip install -e '.[int8]'"


def test_a_folder_of_tasks_holds_some(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"

    def details() -> list[str]:
        asking = graph_of("smoke", evaluation={"lm_eval": ["capitals"], "lm_eval_folder": str(folder)})
        return [finding.detail for finding in checks.own_tasks(asking)]

    assert details() == [f"{folder}: no YAML file, as a task is"]
    folder.mkdir()
    (folder / "capitals.jsonl").touch()
    assert details() == [f"{folder}: no YAML file, as a task is"]
    (folder / "capitals.yaml").touch()
    assert details() == []


def test_host_memory() -> None:
    [finding] = host(check(host_bytes=4 * GIB))
    assert finding.state == "short"
    assert finding.detail.startswith("4.0 GiB free, training ")
    [finding] = host(check(host_bytes=20 * GIB))
    assert finding.state == "ok"
    assert "1 side by side; 2 could run by their devices, so start with --jobs 1" in finding.detail


def test_a_box_of_two_gpus_for_one_training() -> None:
    two = graph_of("paper", gpus_per_run=2)
    findings = [*devices(Check(two, LARGE)), *host(Check(two, LARGE)), *storage(Check(two, LARGE))]
    assert states(findings) == ["ok"] * 5
    assert findings[0].detail == "2 visible, each student trains on 2: 1 at once; other jobs take one each"
    training = Check(two, LARGE).costs.largest_training_host()[0]
    assert training > 2 * Check(graph_of("paper"), LARGE).costs.largest_training_host()[0]
    enough, little = (replace(LARGE, host_bytes=size) for size in (training, training - GIB))
    [memory] = host(Check(two, enough))
    assert (memory.state, "2 side by side" in memory.detail) == ("ok", True), "two other jobs take less"
    [memory] = host(Check(two, little))
    assert (memory.state, "GiB free, training " in memory.detail) == ("short", True)
    three = replace(LARGE, gpus=(*LARGE.gpus, replace(GPU, id="GPU-3")))
    assert "1 at once, 1 left for other jobs; other jobs" in next(devices(Check(two, three))).detail
    [memory] = host(Check(two, replace(three, host_bytes=training + GIB)))
    assert "3 could run by their devices, so start with --jobs" in memory.detail
    alone = next(devices(Check(two, replace(LARGE, gpus=(GPU,)))))
    assert (alone.state, alone.detail) == ("short", "1 visible, each student trains on 2")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gpus": (GPU,)}, "GPU short: 1 visible, each student trains on 2; lower gpus_per_run"),
        ({"host_bytes": 20 * GIB}, "memory short: 20.0 GiB free, training "),
    ],
)
def test_a_run_that_cannot_share_gpus_does_not_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changed: dict, said: str
) -> None:
    """What one GPU a run would not be short of."""
    monkeypatch.setattr(doctor, "machine_for", lambda _: replace(LARGE, **changed))
    refuse_what_cannot_fit(graph_of("paper", **PINNED), remote=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        refuse_what_cannot_fit(graph_of("paper", gpus_per_run=2, **PINNED), remote=False)
    assert f"scale paper cannot run here: {said}" in capsys.readouterr().err


def test_states_of_trainings_that_share_gpus_count_once() -> None:
    """Two GPUs train two students or one: a state less on the disk."""
    apart, together = (Check(graph_of("paper", gpus_per_run=ranks), LARGE) for ranks in (1, 2))
    written = [float(next(storage(item)).detail.split(", ")[1].split()[0]) for item in (apart, together)]
    assert written[0] - written[1] == pytest.approx(1.1 * 2.4, abs=0.2)


def test_processes_of_a_training_on_a_cpu() -> None:
    shared = Check(graph_of("mini", gpus_per_run=2), replace(LARGE, gpus=(), cores=6))
    assert next(devices(shared)).detail == "CPU, 6 cores (device: auto); each student trains in 2 processes"
    assert (shared.slots.count, shared.slots.trainings) == (6, 3)


def test_disk_counts_what_is_there_and_where_downloads_go(tmp_path: Path) -> None:
    [finding] = storage(check(disk_bytes=10**10))
    assert finding.state == "short"
    assert "free at" in finding.detail
    assert "most of it is cells" in finding.remedy
    need = float(finding.detail.split(", ")[1].split()[0])
    with_file = tmp_path / "results" / "paper" / "data" / "documents.parquet"
    with_file.parent.mkdir(parents=True)
    with with_file.open("wb") as stream:
        stream.truncate(10**10)  # a hole takes no disk
    [finding] = storage(check(disk_bytes=10**10))
    assert float(finding.detail.split(", ")[1].split()[0]) == pytest.approx(need - 10, abs=0.2)
    first, second = storage(check(one_disk=False, cache_bytes=10**9))
    assert (first.state, second.state) == ("ok", "short")
    assert "HF_HOME" in second.remedy
    assert "for 7.2 GB of downloads" in second.detail
    other, one = (
        tmp_path / "hub" / f"models--{name}" / "blobs" for name in ("x--y", "MohammedSabry--biinduct-1b-baseline")
    )
    for folder in (other, one):
        folder.mkdir(parents=True)
        with (folder / "file").open("wb") as stream:
            stream.truncate(4 * 10**9)
    [_, second] = storage(check(one_disk=False, cache_bytes=10**9))
    assert "for 3.2 GB of downloads" in second.detail, "only what this scale reads is there already"


def test_on_a_cluster_this_node_is_not_judged() -> None:
    tiny = {"gpus": (), "host_bytes": GIB}
    assert states([*devices(check(remote=True, **tiny)), *host(check(remote=True, **tiny))]) == ["ok"]
    assert states(list(storage(check(remote=True, disk_bytes=10**9)))) == ["short"], "its disk is the cluster's"


def test_this_machine_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = this_machine(tmp_path / "not" / "there")
    assert findings.cores >= 1
    assert findings.host_bytes > 0
    assert findings.disk_bytes > 0
    assert findings.one_disk
    listing = "GPU-a, NVIDIA A100-SXM4-80GB, 81920, 8.0\nGPU-b, Tesla V100, 16384, 7.0\nGPU-d, GB10, [N/A], 12.1\n"
    monkeypatch.setattr(machine, "visible_devices", lambda: ["GPU-b", "MIG-c", "GPU-d"])
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, listing, ""))
    v100, mig, shared = machine.gpus()
    assert (v100.name, v100.memory_bytes, v100.has_bfloat16) == ("Tesla V100", 16 * GIB, False)
    assert (mig.memory_bytes, mig.has_bfloat16) == (None, True)
    assert (shared.name, shared.memory_bytes, shared.has_bfloat16) == ("GB10", None, True)


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"max": "2000000\n", "now": "500000\n", "none": "max\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", (tmp_path / "none", tmp_path / "max"))
    monkeypatch.setattr(machine, "CGROUP_USED", (tmp_path / "now", tmp_path / "now"))
    assert machine.host_memory() == 1_500_000


# --- software


def test_packages_against_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"numpy": "2.3.1", "torch": "2.13.0+cu130", "pydantic": "1.10"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    required = ["numpy>=2.0", "torch>=2.9", "pydantic>=2.9", "typer>=0.15", 'pytest>=8; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: required)
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    (tmp_path / "requirements.lock").write_text("# all\nnumpy==2.4.0\ntorch==2.13.0\npydantic==2.11\ntyper==0.20\n")
    short, missing, rest = packages(pinned(tmp_path / "requirements.lock"))
    assert (short.state, short.detail) == ("short", "pydantic 1.10, needs >=2.9")
    assert (missing.state, missing.detail) == ("missing", "typer (needs >=0.15)")
    assert rest.state == "ok"
    assert "2 of 4" in rest.detail
    assert "numpy 2.3.1 (lock: 2.4.0)" in rest.detail
    assert "torch" not in rest.detail, "the build is no other version"
    assert "no requirements.lock here" in list(packages({}))[-1].detail


def test_python_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, state in {"3.10.9": "short", "3.11.0": "ok", "3.13.7": "ok", "3.14.0": "short"}.items():
        monkeypatch.setattr(doctor.platform, "python_version", lambda version=version: version)
        assert software(Path("none"))[0].state == state


def test_slurm_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/sbatch" if name == "sbatch" else None)
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: "2.0")
    plugin, tools = doctor.slurm_tools()
    assert plugin.state == "ok"
    assert (tools.state, tools.detail) == ("missing", "no squeue, scancel, sacct on PATH")

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", absent)
    assert next(iter(doctor.slurm_tools())).remedy == "pip install snakemake-executor-plugin-slurm"


def test_write_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(list(checks.writable([tmp_path / "results" / "new"]))) == ["ok"]

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refuse)
    [finding] = checks.writable([tmp_path / "results"])
    assert finding.detail == f"{tmp_path / 'results'}: cannot be written (Read-only file system)"


# --- other inputs


def test_probes_corpus_and_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [probes, validation] = local_inputs(check())
    assert (probes.name, probes.state) == ("probes", "missing")
    assert validation.state == "ok"
    short = Check(graph_of("paper", corpus={"shards": {"held_out": 22}}), LARGE)
    finding = list(local_inputs(short))[-1]
    assert (finding.name, finding.state) == ("validation", "short")
    assert "raise corpus.shards.held_out" in finding.remedy
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    [finding] = local_inputs(Check(graph_of("mini", teachers="pretrain"), LARGE))
    assert finding.name == "compiler"
    files = Check(graph_of("mini", corpus={"source": "files", "files": [str(tmp_path / "*.txt")]}), LARGE)
    assert [item.name for item in local_inputs(files)] == ["corpus"]


# --- the command, and the start of a run


def ran(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["budgeted-lora", "doctor", "--config-folder", str(ROOT / "config"), *words])
    capsys.readouterr()
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, capsys.readouterr().out


def test_exit_status_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_for", lambda _: replace(LARGE, gpus=()))
    status, out = ran(capsys, monkeypatch, "--scale", "mini")
    assert (status, out.splitlines()[-1]) == (0, "mini can run here")
    status, out = ran(capsys, monkeypatch, "--scale", "paper")
    assert status == 2
    assert out.splitlines()[-1] == "paper cannot run here: 6 of 12 lines say why"
    assert "missing  GPU " in out
    status, out = ran(capsys, monkeypatch, "--scale", "paper", "--json")
    assert status == 2
    findings = json.loads(out)
    assert all(item.keys() == {"name", "state", "detail", "remedy"} for item in findings)
    assert all(bool(item["remedy"]) == (item["state"] != "ok") for item in findings)
    status, out = ran(capsys, monkeypatch, "--scale", "mini", "--slurm")
    assert "whose GPUs cannot be checked from here" in out


def test_every_trouble_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_for", lambda _: replace(LARGE, gpus=(), host_bytes=1, disk_bytes=1))
    findings = troubles(examine(graph_of("paper"), slurm=False))
    assert {"GPU", "memory", "disk", "Hub model", "Hub dataset", "probes"} <= {item.name for item in findings}
    assert all(item.remedy and "\n" not in item.line() for item in findings)


def test_a_run_that_cannot_fit_does_not_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "machine_for", lambda _: replace(LARGE, gpus=()))
    refuse_what_cannot_fit(graph_of("mini"), remote=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as ended:
        refuse_what_cannot_fit(graph_of("paper", **PINNED), remote=False)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("budgeted-lora: scale paper cannot run here: GPU missing: device: cuda, but none is visible")
    assert line.endswith("--config fit=warn starts it)\n")
    assert line.count("\n") == 1
    refuse_what_cannot_fit(graph_of("paper", fit="warn", **PINNED), remote=False)
    assert capsys.readouterr().err.startswith("budgeted-lora: warning: scale paper cannot run here: GPU missing")
    refuse_what_cannot_fit(graph_of("paper", **PINNED), remote=True)
    assert capsys.readouterr().err == ""


def test_a_target_is_not_refused_for_what_it_does_not_make(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is enough for the main tables, not for every compression of the thresholds."""
    graph = graph_of("paper", **PINNED)
    needed = {
        targets: disk(ScaleCosts(limited(graph, targets), GPUS["a100-80gb"]), slots=Slots(2, 1)).total
        for targets in (("main",), (), ("sensitivity",))
    }
    assert needed["main",] < needed["sensitivity",] < needed[()]
    room = (needed["main",] + needed["sensitivity",]) // 2
    monkeypatch.setattr(doctor, "machine_for", lambda _: replace(LARGE, disk_bytes=room))
    refuse_what_cannot_fit(graph, targets=["main"], remote=False)
    refuse_what_cannot_fit(graph, targets=["table2", "figure2"], remote=False)
    assert capsys.readouterr().err == ""
    for targets in ((), ("all",), ("main", "ablations"), ("sensitivity",), ("reports/paper/index.html",)):
        with pytest.raises(SystemExit):
            refuse_what_cannot_fit(graph, targets=targets, remote=False)
        assert "disk short: " in capsys.readouterr().err
    on_disk = [ran(capsys, monkeypatch, "--scale", "paper", *more)[1] for more in ((), ("--target", "main"))]
    assert ["short    disk" in said for said in on_disk] == [True, False]


def test_snakemake_refuses_before_the_first_job(tmp_path: Path) -> None:
    """Unpinned revisions keep the paper's scale from starting anywhere; its dry run is in test_workflow."""
    for name in ("workflow", "config", "profiles", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "Snakefile").write_bytes((ROOT / "Snakefile").read_bytes())
    command = [sys.executable, "-m", "snakemake", "table1", "--cores", "1", "--config", "scale=paper"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("budgeted-lora: scale paper cannot run here: ")
    assert "pin corpus.hub.revision" in line
    assert not (tmp_path / "results" / "paper" / "logs").exists()
