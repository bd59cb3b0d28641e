"""How far a scale is: jobs done, trainings at work, the time left; and that looking on changes nothing."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.command_line import Outcome
from fixtures.tiny_scale import SCALE, TINY, write_scale

from budgeted_lora import files
from budgeted_lora.commands import show_watch
from budgeted_lora.commands.chain import chain
from budgeted_lora.commands.watch import Other, View, Watcher, bar_of, scales_at_work
from budgeted_lora.planning.costs import START_UP_SECONDS
from budgeted_lora.training.progress import HISTORY
from budgeted_lora.workflow.graph import Graph

Run = Callable[..., Outcome]
DEAD = 2**22 + 1  # above the largest process number of Linux


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Two cells of one recipe, in a working folder without results."""
    monkeypatch.chdir(tmp_path)
    return write_scale(tmp_path, SCALE)


def finish(graph: Graph, cell: str, *names: str, seconds: float) -> None:
    """Makes up the files of some stages of a cell."""
    for stage in chain(graph, cell):
        if stage.name in names:
            for path in stage.files:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"provenance": {"seconds": seconds}}))


def begin_training(cell: str, *, pid: int, rows: int, speed: float = 100.0) -> Path:
    """Makes up the state of a training after some steps."""
    folder = TINY / "state" / f"{cell}-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "lock").write_text(str(pid))
    values = {"loss": 4.25, "target_fraction": 0.5, "retained_fraction": 0.625, "tokens_per_second": speed}
    lines = [",".join(HISTORY)]
    for step in range(1, rows + 1):
        row = {name: "" for name in HISTORY} | values | {"step": step}
        lines.append(",".join(str(row[name]) for name in HISTORY))
    (folder / "history.csv").write_text("\n".join(lines) + "\n7,half of a ro")
    return folder


def look(graph: Graph, **about: object) -> View:
    return Watcher(graph, about).look()


def test_a_training_at_work_is_read_from_its_history(graph: Graph) -> None:
    cell = next(iter(graph.cells))
    begin_training(cell, pid=os.getpid(), rows=2)
    [one] = look(graph).trainings
    recipe = graph.recipe_of(cell)
    left = (recipe.steps - 2) * recipe.batch_windows * recipe.sequence_length / 100.0
    assert (one.cell, one.step, one.steps) == (cell, 2, recipe.steps)
    assert (one.tokens_per_second, one.loss) == (pytest.approx(100.0), 4.25)
    assert (one.target_fraction, one.retained_fraction) == (0.5, 0.625)
    assert one.seconds_left == pytest.approx(left)


def test_a_training_of_less_than_a_token_a_second_has_no_time_left(graph: Graph) -> None:
    begin_training(next(iter(graph.cells)), pid=os.getpid(), rows=2, speed=0)
    [one] = look(graph).trainings
    assert (one.step, one.tokens_per_second, one.seconds_left) == (2, None, None)


def test_tasks_of_teachers_and_untrained_students_are_jobs_too(graph: Graph, tmp_path: Path) -> None:
    tables = {"table2": SCALE["tables"]["table6"]}
    asked = write_scale(tmp_path, SCALE, {"tables": tables, "evaluation": {"lm_eval": ["capitals"]}})
    [tasks] = [kind for kind in look(asked).kinds if kind.kind == "tasks"]
    assert tasks.count == len(asked.task_scores()) > len(asked.cells) == 2


def test_a_long_history_is_read_from_its_end(graph: Graph) -> None:
    cell = next(iter(graph.cells))
    begin_training(cell, pid=os.getpid(), rows=2000)
    assert look(graph).trainings[0].step == 2000


def test_a_training_that_begins_or_has_died(graph: Graph) -> None:
    first, second = graph.cells
    begin_training(first, pid=DEAD, rows=2)
    (begin_training(second, pid=os.getpid(), rows=0) / "history.csv").unlink()
    [one] = look(graph).trainings
    assert (one.cell, one.step, one.seconds_left) == (second, 0, None)


def test_what_is_left_follows_what_finished_jobs_took(graph: Graph) -> None:
    first, second = graph.cells
    before = {kind.kind: kind for kind in look(graph).kinds}
    assert (before["train"].done, before["train"].count) == (0, 2)
    finish(graph, first, "train", seconds=300.0)
    after = {kind.kind: kind for kind in look(graph).kinds}
    assert (after["train"].done, after["train"].count) == (1, 2)
    assert after["train"].mean_seconds == after["train"].seconds_left == 300.0 + START_UP_SECONDS
    finish(graph, first, "compress", seconds=7.0)  # of which the plan says nothing
    compress = {kind.kind: kind for kind in look(graph).kinds}["compress"]
    assert compress.seconds_left == 7.0 + START_UP_SECONDS

    begin_training(second, pid=os.getpid(), rows=1)
    [one] = look(graph).trainings
    assert {kind.kind: kind for kind in look(graph).kinds}["train"].seconds_left == one.seconds_left


def test_a_training_at_work_tells_of_those_that_wait(graph: Graph) -> None:
    """Both have one plan: the second takes what the first will have taken in all."""
    first, _ = graph.cells
    begin_training(first, pid=os.getpid(), rows=3)
    view = look(graph)
    [one] = view.trainings
    train = {kind.kind: kind for kind in view.kinds}["train"]
    assert train.seconds_left == pytest.approx(one.seconds_left * (1 + one.steps / (one.steps - 3)))


def test_a_cache_that_was_pruned_after_use_is_not_missed(graph: Graph, tmp_path: Path) -> None:
    graph = write_scale(tmp_path, SCALE, {"training": {"teacher_cache": "hidden"}})

    def caches() -> int:
        return {kind.kind: kind for kind in look(graph).kinds}["cache"].done

    assert caches() == 0
    for cell in graph.cells:
        finish(graph, cell, "train", seconds=1.0)
    assert caches() == 1


def test_jobs_side_by_side_are_those_of_the_run(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("budgeted_lora.commands.watch.gpus", lambda: [])
    assert [look(graph, cores=cores, gpus=gpus).at_once for cores, gpus in ((8, 2), (3, None), (1, 4))] == [2, 3, 1]
    alone, together = (look(graph, cores=cores).seconds_left for cores in (1, 2))
    assert alone / 2 <= together < alone


def test_other_jobs_with_the_bar_of_their_log(graph: Graph) -> None:
    logs = TINY / "logs" / "pretrain_teacher"
    logs.mkdir(parents=True)
    (logs / "A.log").write_text(
        "pretrain A:   5%|x | 1/20 [00:01<00:19, 1.0step/s]\rpretrain A:  3/20 [00:03<01:17, 1/s]"
    )
    here = f"{os.getpid()} {socket.gethostname()}"
    line = f"pretrain_teacher {TINY}/teachers/A/model"
    (TINY / "jobs.lock").write_text(
        f"{DEAD} {socket.gethostname()} evaluate {TINY}/x\n{here} {line}\n{here} train_cell c\n"
    )
    assert look(graph).others == (Other(line, 3, 20, 77.0),)
    assert bar_of(logs, ("B",)) == ()


def test_a_training_on_another_machine_lives_while_its_history_grows(graph: Graph) -> None:
    """Its process cannot be looked for here, and an ended job stays in the list of the run."""
    cell = next(iter(graph.cells))
    folder = begin_training(cell, pid=DEAD, rows=2)
    lines = [f"7 elsewhere train_cell {TINY}/cells/{cell}", f"8 elsewhere evaluate {TINY}/teachers/A", ""]
    (TINY / "jobs.lock").write_text("\n".join(lines))
    view = look(graph)
    assert ([one.cell for one in view.trainings], view.others) == ([cell], ())
    os.utime(folder / "history.csv", (0, 0))
    assert look(graph).trainings == ()


def test_values_and_targets_are_those_of_the_last_run(run: Run, graph: Graph) -> None:
    rows = [{"method": "kd_full", "seed": [0, 1, 2]}]
    about = {"targets": ["table7"], "config": {"tables": {**SCALE["tables"], "table7": rows}}}
    TINY.mkdir(parents=True)
    (TINY / "run.lock").write_text(json.dumps({"id": "1", "pid": DEAD, "arguments": [], "slurm": None, "about": about}))

    def trainings(*words: str) -> int:
        kinds = json.loads(run("watch", "--scale", "tiny", "--json", *words).out)["kinds"]
        return next((kind["count"] for kind in kinds if kind["kind"] == "train"), 0)

    assert trainings() == 3
    assert trainings("--target", "all") == 5
    assert trainings("--config", "fit=warn", "--target", "all") == 2


def test_it_prints_once_and_takes_no_lock_of_a_training(
    run: Run, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that finds its own lock held ends."""
    cell = next(iter(graph.cells))
    folder, taken = begin_training(cell, pid=os.getpid(), rows=2), []
    monkeypatch.setattr(files, "lock", lambda handle, **_: taken.append(os.readlink(f"/proc/self/fd/{handle}")) or True)
    done = run("watch", "--scale", "tiny")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("tiny: 0 of ")
    assert "no run is at work here" in done.out
    assert f"{cell}     2   6       100  4.2500     0.500  0.625" in done.out
    assert str((folder / "lock").resolve()) not in taken


def test_an_interrupt_ends_it_quietly(
    graph: Graph, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(show_watch.time, "sleep", sleep)
    show_watch.follow(Watcher(graph), every=0.5)
    assert looks == [0.5, 0.5]
    assert capsys.readouterr().out.count("tiny: 0 of ") == 2


def test_it_ends_when_all_is_done(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(graph)
    for job in watcher.jobs:
        for path in job.files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    monkeypatch.setattr(show_watch.time, "sleep", lambda _: pytest.fail("it went on"))
    show_watch.follow(watcher, every=1.0)
    assert "all" in show_watch.render_view(watcher.look()).splitlines()[0]


def test_a_scale_or_target_that_is_not_there_is_one_line(run: Run, graph: Graph) -> None:
    assert "nowhere.yaml" in run("watch", "--scale", "nowhere").refusal()
    for words in (["watch", "--scale", "tiny"], ["doctor", "--scale", "tiny"]):
        message = run(*words, "--target", "tabel6").refusal()
        assert "scale tiny has no target 'tabel6'; expected one of its targets: all, main, " in message


def test_a_run_of_another_scale_is_named(tmp_path: Path) -> None:
    for name in ("idle", "busy", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.lock").touch()
    with (tmp_path / "busy" / "run.lock").open() as handle:
        assert files.lock(handle.fileno())
        assert scales_at_work(tmp_path / "here") == ("busy",)
    assert scales_at_work(tmp_path / "here") == ()
