"""How much disk a scale fills: every large file of the workflow is counted, once."""

from pathlib import Path

import pytest
from fixtures.scales import TINY, costs_of, tiny

from budgeted_lora.planning.devices import Slots
from budgeted_lora.planning.storage import COMPRESSED, TEXT_BYTES_PER_TOKEN, disk


def test_disk_of_a_cell_and_of_the_papers_scale() -> None:
    costs = costs_of("paper").of("table2")
    dense = 51_314_688 + 13 * 768 + 2 * 32_000 * 768
    [full, *_] = costs.cells
    assert full.disk_bytes == 2 * 4 * dense, "the trained student and its compressed form, float32"
    assert full.state_bytes == 2 * 12 * dense, "weights and two moments, a new state being written beside the old"
    space = disk(costs, slots=Slots(2))
    assert space.cells == sum(cell.disk_bytes for cell in costs.cells)
    assert space.tokens == pytest.approx(2 * 2 * (2.55e9 + 10.2e6), rel=0.05), "joined, and those of every shard"
    shards = costs.config.corpus.shards
    assert space.corpus == pytest.approx(COMPRESSED * TEXT_BYTES_PER_TOKEN * 2.55e9 / shards.train * shards.read)
    weights = 4 * sum(costs.teacher(name).parameters for name in costs.graph.teachers)
    assert (space.teachers, space.downloads) == (weights, weights), "in the Hub's cache, and a copy in the results"
    assert space.total > space.results > space.corpus + space.cells
    assert space.states == 2 * max(cell.state_bytes for cell in costs.cells)


def test_a_state_holds_what_trains() -> None:
    frozen, trained = (
        tiny(training=TINY["training"] | {"train_embeddings_head_norms": value}).cells[2] for value in (False, True)
    )
    assert frozen.method == "kd_lora"
    assert trained.state_bytes - frozen.state_bytes == 2 * 12 * (2 * 64 * 32 + 5 * 32)


def test_states_of_teachers_and_students_are_never_there_together() -> None:
    costs = tiny()
    teachers = [costs.teacher(name).parameters for name in costs.graph.teachers]
    assert disk(costs, slots=Slots(1)).states == 2 * 12 * max(teachers)
    assert disk(costs, slots=Slots(2)).states == 2 * 12 * sum(teachers)
    assert disk(tiny(teachers="shipped"), slots=Slots(1)).states == max(cell.state_bytes for cell in costs.cells)


def test_teachers_that_read_a_mix_of_their_own_have_token_files_of_their_own() -> None:
    shared, own = tiny(), tiny(pretraining={"function_share": 0.5})
    assert shared.graph.pretraining_data != own.graph.pretraining_data
    assert disk(own, slots=Slots(1)).tokens == pytest.approx(2 * disk(shared, slots=Slots(1)).tokens, abs=1)


def test_caches_of_longer_runs_and_other_rows_count_once_each() -> None:
    rows = {
        "table6": [{"method": "kd_lora", "tokens": 12800}, {"method": "kd_full", "tokens": 12800}],
        "table7": [{"method": "kd_lora", "rows": "document"}],
        "table5": [{"method": "kd_lora", "tokens": 640000}],
    }
    corpus = TINY["corpus"] | {"train_tokens": 64000}
    caches = disk(tiny(tables=TINY["tables"] | rows, corpus=corpus), slots=Slots(1)).caches
    a, b = 16 * 32 * 4, 16 * 64 * 4
    assert caches == 400 * a + 400 * b + 800 * a + 400 * a + 4000 * a, "of the longest run as many as the file has"


def test_shards_that_are_here_count_by_their_files(tmp_path: Path) -> None:
    """Local shards are read where they lie; all tokens of those trained on are kept, asked for or not."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(bytes(900_000))
    corpus = {"source": "files", "files": [str(tmp_path / "*.jsonl")], "shards": {"train": 2, "held_out": 3}}
    corpus |= {"train_tokens": 10_000, "overlap_share": 1.0, "slice_per_mille": 100, "validation_tokens": 1000}
    folders = {name: spec | {"folder": "none"} for name, spec in TINY["teacher_ladder"].items()}
    space = disk(tiny(corpus=corpus, teachers="folder", teacher_ladder=folders), slots=Slots(1))
    held_out = 2_700_000 / 4.5 / 10
    assert space.corpus == 0
    assert space.tokens == pytest.approx(2 * (10_000 + held_out) + 2 * (400_000 + held_out), rel=0.03)
    for path in tmp_path.iterdir():
        path.rename(path.with_suffix(".jsonl.zst"))
    corpus["files"] = [str(tmp_path / "*.zst")]
    packed = disk(tiny(corpus=corpus, teachers="folder", teacher_ladder=folders), slots=Slots(1))
    assert packed.tokens / space.tokens == pytest.approx(1 / COMPRESSED, rel=0.03)
