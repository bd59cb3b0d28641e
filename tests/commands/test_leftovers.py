"""What killed jobs and imports leave behind: shown by `prune`, removed by the next run, kept while its writer lives."""

from pathlib import Path

import pytest
from fixtures.tiny_scale import SCALE, write_scale

from budgeted_lora.commands.archive import staging
from budgeted_lora.commands.prune import leftovers, remove
from budgeted_lora.stages import collect_corpus as stage
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.runs import VARIABLE, begin_run

LEFT = (
    "results/tiny/data/.collect.x7ab/train.parquet",
    "results/tiny/data/.collect.x7ab.tmp/train.parquet",
    "results/tiny/cells/c/.trained.a1.tmp/model.safetensors",
    "results/.import-tiny-abcdefgh/tiny/cells/c/train.json",
    "reports/.import-tiny-abc_efgh/tiny/index.html",
)
KEPT = (
    "results/.import-tiny-2-abcdefgh/tiny-2/a",
    "results/.import-other-abcdefgh/other/a",
    "results/tiny/.outside.json",
)


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    for name in (*LEFT, *KEPT):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    return write_scale(tmp_path, SCALE)


def remaining() -> list[str]:
    return sorted(name for name in (*LEFT, *KEPT) if Path(name).exists())


def test_prune_shows_and_removes_them(graph: Graph) -> None:
    listed = leftovers(graph)
    assert {str(item.path) for item in listed} >= {str(Path(name).parent) for name in LEFT[:2]} | {
        "results/tiny/cells/c"  # whole, since no cell of the configuration is called so
    }
    assert {item.path.name for item in listed if "import" in item.path.name} == {
        Path(name).parts[1] for name in LEFT[3:]
    }
    remove(graph, listed)
    assert remaining() == sorted(KEPT)


def test_the_next_run_removes_them(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # begin_run sets it
    begin_run(graph.results)
    assert remaining() == sorted(KEPT)


def test_a_living_import_keeps_its_folder(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with staging(Path("results"), "tiny") as folder:
        (folder / "a").write_text("x")
        assert folder not in [item.path for item in leftovers(graph)]
        begin_run(graph.results)
        assert (folder / "a").is_file()


def test_a_corpus_is_collected_in_a_folder_of_such_a_name(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    seen = []

    def die(documents: object, training: Path, **options: object) -> None:
        seen.extend(item.path for item in leftovers(graph))
        raise Killed

    monkeypatch.setattr(stage.documents, "split_documents", die)
    before = {item.path for item in leftovers(graph)}
    with pytest.raises(Killed):
        stage.collect_corpus(
            corpus=graph.config.corpus.model_copy(update={"packages": ["json"]}),
            out=Path(graph.results) / "data/documents.parquet",
            record=Path(graph.results) / "data/corpus.json",
            scale="tiny",
        )
    names = [path.name for path in seen if path not in before]
    assert any(name.startswith(".collect.") for name in names)


def test_prune_takes_curves_of_other_cells(graph: Graph) -> None:
    cell = next(iter(graph.cells))
    for name in (cell, "gone"):
        Path("results/tiny/tensorboard", name).mkdir(parents=True)
    curves = [item for item in leftovers(graph) if item.path.parent.name == "tensorboard"]
    assert [(item.path.name, item.why) for item in curves] == [("gone", "curves of another configuration")]
