"""What `cells`, `why` and `prune` know of statistics, shards, the teachers' own tokens and timings of one student."""

import shutil
from pathlib import Path

import click
import pytest
from fixtures.tiny_scale import SCALE as BASE
from fixtures.tiny_scale import TINY, write_scale
from fixtures.training_world import lay_out_world

from budgeted_lora.commands.chain import chain, data_and_teachers
from budgeted_lora.commands.prune import leftovers, remove
from budgeted_lora.commands.show_status import render_why
from budgeted_lora.commands.status import CellStatus, Inspector
from budgeted_lora.config.sections import EvaluationOptions
from budgeted_lora.files import read_json, write_record, write_text
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.reporting.contents import ICL_TABLES
from budgeted_lora.stages.compress_cell import compress_cell
from budgeted_lora.stages.cut_student import cut_student
from budgeted_lora.stages.evaluate import evaluate
from budgeted_lora.stages.measure_speed import measure_speed
from budgeted_lora.stages.measure_statistics import measure_statistics
from budgeted_lora.stages.train_cell import train_cell
from budgeted_lora.workflow import options
from budgeted_lora.workflow.graph import Graph

CUT = "macsF0.4_by-outputs_undistilled-True"
SCALE = {
    "budget": {"smoothing": 0.0, "schedule": "none"}, "lora": {"statistics_windows": 2},
    "speed": {"batch": 1, "length": 8, "decode_tokens": 2, "repeats": 3},
    "sweeps": {"cut": {"macs_of_budget": [0.4], "truncation": ["outputs"], "undistilled": [True]}},
    "tables": {
        "beyond": [{"method": "budgeted_lora", "budget": 0.4, "order": "activation"}],
        "controls": [{"method": "kd_full", "compression": "cut"}],
    },
}  # fmt: skip


def scale(folder: Path, **over: object) -> Graph:
    """The scale of test_status with a student of its own structure and one that is cut without being distilled."""
    return write_scale(folder, BASE | {"tables": {}}, SCALE, over)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the stages made both students, from made-up tokens and a made-up teacher."""
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        graph = scale(folder)
        data, teacher = TINY / "data", TINY / "teachers/A/model"
        lay_out_world(data, teacher=teacher)
        student = TINY / "students/mixed"
        cut_student(
            **options.student(graph, "mixed"), teacher=teacher, out=student / "model",
            record=student / "student.json", scale="tiny",
        )  # fmt: skip
        measure_statistics(
            **options.statistics(graph), student=student / "model", tokens=data / "train.bin",
            out=student / "statistics", record=student / "statistics.json", scale="tiny", device="cpu",
            threads=graph.config.threads.training,
        )  # fmt: skip
        for cell in graph.cells:
            make_cell(graph, cell)
    return folder


def make_cell(graph: Graph, cell: str) -> None:
    """Everything that belongs to one cell alone, scored in context only by name."""
    data, student = TINY / "data", TINY / "students/mixed"
    place, recipe, threads = TINY / "cells" / cell, graph.recipe_of(cell), graph.config.threads
    train_cell(
        recipe=recipe, cell=cell, scale="tiny", student=student / "model", teacher=TINY / "teachers/A/model",
        tokens=data / "train.bin", cache=None, out=place, state=TINY / "state", device="cpu",
        threads=threads.training, log_every=2, checkpoint_every=100,
        statistics=next(map(Path, graph.statistics_read(cell)), None),
    )  # fmt: skip
    about = {"scale": "tiny", "cell": cell, "threads": threads.evaluation}
    for variant in graph.cells[cell].variants:
        out = place / "compressed" / variant
        compress_cell(
            recipe=recipe, student=student / "model", trained=place / "trained", tokens=data / "validation.bin",
            tokenizer=data / "tokenizer", variant=graph.variants[variant], out=out,
            macs=options.compression(graph, variant).get("macs"),
            statistics=student / "statistics" if graph.statistics_read(cell, variant) else None, **about,
        )  # fmt: skip
        evaluate(
            model=out / "model", tokens=data, tokenizer=data / "tokenizer", out=out,
            evaluation=EvaluationOptions(**options.evaluation(graph)), device="cpu", icl=False, **about,
        )  # fmt: skip
    if set(graph.cells[cell].tables) & ICL_TABLES:
        out = place / "compressed/default"
        made(out / "icl.json", options.evaluation(graph))
        write_text(out / "icl_examples.parquet", "x")
    if graph.structure_of(cell) in graph.timed():
        time_cell(graph, cell)


def time_cell(graph: Graph, cell: str) -> None:
    name = graph.structure_of(cell)
    measure_speed(
        **options.measure_speed(graph, name) | {"device": "cpu", "scale": "tiny", "sizes": graph.config.speed},
        tokens=TINY / "data/train.json",
        compressed=Path(graph.structure_record(name)[0]), out=TINY / f"speed/{name}.json",
    )  # fmt: skip


def made(path: Path, values: dict, inputs: tuple[Path, ...] = ()) -> None:
    """A result that says of itself that it was made with these values from these files."""
    write_result(path, {}, scale="tiny", cell=None, values=values, inputs=inputs, clock=Clock())


@pytest.fixture
def here(computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without results."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def statuses(folder: Path, **over: object) -> list[CellStatus]:
    return Inspector(scale(folder, **over)).cells()


def reasons(item: CellStatus) -> dict[str, tuple[str, ...]]:
    """Why stages are stale, by name."""
    return {status.stage.name: status.reasons for status in item.stages if status.state == "stale"}


def unused(folder: Path, **over: object) -> set[str]:
    """What prune would remove."""
    return {
        str(path.relative_to(TINY)) for item in leftovers(scale(folder, **over)) for path in (item.path, *item.also)
    }


# --- statistics, and timings of one student


def test_a_student_of_its_own_structure_is_done_with_its_statistics_and_timing(here: Path) -> None:
    own, cut = statuses(here)
    assert (own.state, own.detail, cut.state, cut.detail) == ("done", (), "done", ())
    shared = {status.stage.name: status.stage.own for status in own.stages}
    assert (shared["statistics mixed"], shared["speed"]) == (False, True)
    assert [status.stage.name for status in cut.stages if "statistics mixed" in status.stage.after] == [
        f"compress {CUT}"
    ]
    said = click.unstyle(render_why(scale(here), own))
    assert "statistics mixed (shared): done  results/tiny/students/mixed/" in said
    assert "speed: done  results/tiny/speed/" in said


def test_a_missing_timing_of_its_own_is_named(here: Path) -> None:
    shutil.rmtree(TINY / "speed")
    own, cut = statuses(here)
    assert (own.state, cut.state) == ("missing", "done")
    assert own.detail == ("has train, compress, score; lacks speed (no files yet)",)


def test_a_timing_is_stale_where_the_structure_became_another(here: Path) -> None:
    record = next((TINY / "cells").glob("budgeted*")) / "compressed/default/compression.json"
    content = read_json(record)
    write_record(record, content | {"remark": "written again"})
    assert statuses(here)[0].state == "done"
    factorised = next(module for module in content["modules"] if module["decision"] != "keep")
    factorised["lora_rank"] += 1
    write_record(record, content)
    own = statuses(here)[0]
    assert own.state == "stale"
    [line] = own.detail
    assert line.startswith(f"speed: cell_{own.cell}.json: the structure in {record} was ")
    time = read_json(TINY / f"speed/cell_{own.cell}.json")
    assert f"was {time['structure_hash']}, is " in line


def test_other_timing_settings_are_stale(here: Path) -> None:
    own = statuses(here, speed={"repeats": 4})[0]
    assert (own.state, own.detail) == ("stale", (f"speed: cell_{own.cell}.json: repeats: 3 -> 4",))


def test_a_student_compressed_anew_is_timed_anew(here: Path) -> None:
    own = statuses(here, compression={"rank_threshold": 0.4})[0]
    assert "speed: made from stale results: compress" in own.detail


def test_other_statistics_are_stale_for_what_is_cut_by_them(here: Path) -> None:
    over = {"lora": {"statistics_windows": 3}}
    own, cut = statuses(here, **over)
    assert own.state == "missing", "the windows are in the recipe: it is another cell"
    assert cut.state == "stale"
    assert reasons(cut) == {
        "statistics mixed": ("statistics.json: windows: 2 -> 3",),
        f"compress {CUT}": ("made from stale results: statistics mixed",),
        f"score {CUT}": (f"made from stale results: compress {CUT}",),
    }


def test_other_bytes_of_statistics_are_stale_for_who_was_made_from_them(here: Path) -> None:
    file = TINY / "students/mixed/statistics/statistics.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    own, cut = statuses(here)
    assert {"train", "compress", "score", "speed"} <= reasons(own).keys()
    assert reasons(cut).keys() == {f"compress {CUT}", f"score {CUT}"}


def test_prune_takes_what_jobs_of_a_cell_printed(here: Path) -> None:
    own = next(iter(scale(here).cells))
    jobs = {
        f"logs/train_cell/{own}.log", f"logs/compress_cell/{own}_default.log", f"logs/measure_speed/cell_{own}.log",
        f"benchmarks/measure_speed/cell_{own}.tsv",
    }  # fmt: skip
    for name in {*jobs, "logs/measure_speed/F0.4_r2_greedy-0000.log"}:
        write_text(TINY / name, "printed")
    assert unused(here) == set()
    assert unused(here, tables={"beyond": []}) == {f"cells/{own}", f"speed/cell_{own}.json", *jobs}


def test_prune_takes_statistics_and_timings_when_nothing_uses_them(here: Path) -> None:
    assert unused(here) == set()
    own = next(iter(scale(here).cells))
    statistics = {f"students/mixed/statistics{ending}" for ending in ("", ".json", ".sha256")}
    assert unused(here, tables={"beyond": []}) == {f"cells/{own}", f"speed/cell_{own}.json"}, "still used by the cut"
    assert unused(here, tables={"controls": [{"method": "kd_full"}]}) == {
        str(next((TINY / "cells").glob(f"kd-full*/compressed/{CUT}")).relative_to(TINY))
    }
    alone = {"tables": {"beyond": [], "controls": [{"method": "kd_full"}]}}
    assert statistics < unused(here, **alone)
    graph = scale(here, **alone)
    remove(graph, leftovers(graph))
    assert sorted(path.name for path in (TINY / "students/mixed").iterdir()) == [
        "model",
        "model.sha256",
        "student.json",
    ]
    assert leftovers(graph) == []
    [kept] = Inspector(graph).cells()
    assert kept.state == "done"


# --- token files of the teachers' own


MADE_HERE = {
    "teachers": "pretrain", "pretraining": {"function_share": 0.15},
    "corpus": {"packages": ["numpy"], "function_share": 0.6, "train_tokens": 1000},
    "teacher_ladder": {"A": {"layers": 3, "hidden": 16, "ffn": 48, "heads": 2, "kv_heads": 1, "tokens": 500}},
}  # fmt: skip


def fill(graph: Graph) -> None:
    """Writes all that data and teachers leave, each record with the values it is expected to have."""
    for stage in data_and_teachers(graph, graph.teachers):
        for path in stage.files:
            if path in stage.records:
                made(path, dict(stage.records[path]))
            elif path.name in ("model", "tokenizer"):
                write_text(path / "content", str(path))
            else:
                write_text(path, str(path))


def test_teachers_with_tokens_of_their_own(empty: Path) -> None:
    graph = scale(empty, **MADE_HERE)
    fill(graph)
    assert {path.name for path in (TINY / "data/teachers").iterdir()} >= {"manifest.json", "train.bin", "train.json"}

    def wrong(**changed: dict) -> dict[str, tuple[str, ...]]:
        [item, *_] = statuses(empty, **MADE_HERE | {key: MADE_HERE[key] | value for key, value in changed.items()})
        own = {status.stage.name for status in item.stages if status.stage.own}
        return {name: lines for name, lines in reasons(item).items() if name not in own and "mixed" not in name}

    assert wrong() == {}
    assert wrong(pretraining={"function_share": 0.2}) == {
        "tokens for teachers": ("manifest.json: function_share: 0.15 -> 0.2",),
        "teacher A": ("made from stale results: tokens for teachers",),
    }
    assert wrong(corpus={"function_share": 0.5}) == {"tokens": ("manifest.json: function_share: 0.6 -> 0.5",)}


def test_prune_keeps_the_teachers_tokens_while_they_are_read(empty: Path) -> None:
    fill(scale(empty, **MADE_HERE))
    assert unused(empty, **MADE_HERE) == set()
    assert unused(empty, **MADE_HERE | {"pretraining": {}}) == {"data/teachers"}
    assert unused(empty, **MADE_HERE | {"teachers": "shipped"}) == {"data/teachers"}
    graph = scale(empty, **MADE_HERE | {"tables": {"beyond": [], "controls": []}})
    assert not graph.cells
    assert leftovers(graph) == [], "Table 1 reads the teachers, and these read the data"


# --- shards


def sharded(source: str = "files", **shards: object) -> dict[str, dict]:
    """A corpus in shards; `hub` is downloaded."""
    corpus = {"source": source, "files": ["pile/*.jsonl.zst"], "overlap_share": 1.0, "shards": shards}
    if source == "hub":
        corpus |= {"hub": {"name": "a/b", "revision": "0" * 40}}
        corpus["shards"] |= {"pattern": "train-{shard:05d}.parquet"}
    return {"corpus": corpus}


@pytest.mark.parametrize("source", ["files", "hub"])
def test_shards_are_done_stale_or_missing(empty: Path, source: str) -> None:
    over = sharded(source, train=2)
    fill(scale(empty, **over))

    def corpus(**changed: dict) -> tuple[str, tuple[str, ...]]:
        stages = statuses(empty, **changed)[0].stages
        [status] = [status for status in stages if status.stage.name == "corpus"]
        assert status.folder == TINY / "data/shards"
        return status.state, status.reasons

    assert corpus(**over) == ("done", ())
    longer = {"corpus": over["corpus"] | {"min_characters": 90}}
    assert corpus(**longer) == ("stale", ("shard.json: min_characters: 80 -> 90",) * 2)
    assert corpus(**sharded(source, train=3))[0] == "missing"
    if source == "hub":
        (TINY / "data/shards/00001/source.json").unlink()
        assert corpus(**over) == ("missing", ("missing: source.json",))


def test_prune_keeps_the_shards_that_are_read(empty: Path) -> None:
    fill(scale(empty, **sharded("hub", train=3)))
    assert unused(empty, **sharded("hub", train=3)) == set()
    assert unused(empty, **sharded("hub", train=2)) == {"data/shards/00002"}
    assert unused(empty, **sharded("hub", train=1, held_out=3)) == set()
    downloads = {f"data/shards/0000{n}/source.{ending}" for n in range(3) for ending in ("json", "parquet")}
    assert unused(empty, **sharded("files", train=3)) == downloads
    fill(scale(empty))
    assert unused(empty) == {"data/shards"}
    whole = {f"data/{name}" for name in ("corpus.json", "documents.parquet", "documents.parquet.sha256")}
    assert unused(empty, **sharded("hub", train=3)) == whole


def test_every_stage_comes_after_what_it_is_made_from(empty: Path) -> None:
    hub = {"teachers": "folder", "teacher_ladder": {"A": MADE_HERE["teacher_ladder"]["A"] | {"folder": "a"}}}
    for over in ({}, MADE_HERE, sharded("hub", train=2), sharded("files", train=2) | hub, hub):
        graph = scale(empty, **over)
        for cell in graph.cells:
            names = [stage.name for stage in chain(graph, cell)]
            assert len(set(names)) == len(names)
            for place, stage in enumerate(chain(graph, cell)):
                assert set(stage.after) <= set(names[:place]), (over, stage.name)
