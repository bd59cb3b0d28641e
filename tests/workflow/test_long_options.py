"""Options of a job that are too long for a command line travel in a file."""

from pathlib import Path

import pytest
from fixtures.scales import TINY

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.stages.arguments import convert, read_words
from budgeted_lora.workflow import options
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs

SYSTEM = 131_072  # bytes that Linux takes in one word; all of a job's command is one word of bash


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """A scale whose corpus lists 2,000 files."""
    monkeypatch.chdir(tmp_path)
    files = [f"/a/folder/with/a/long/name/of/the/corpus/it's part {number:05d}.jsonl.zst" for number in range(2000)]
    return Graph(Config.model_validate(TINY | {"corpus": {"source": "files", "files": files}}))


def test_a_job_gets_2000_files(graph: Graph) -> None:
    wanted = options.collect_corpus(graph)
    text = options.as_json(graph, wanted)
    assert len(text) < 200
    assert read_words(["collect_corpus", "--options", text])[1] == wanted
    config = ReportJobs(graph).list_options()["config"]
    text = str(options.Uncompared(graph, config))
    assert len(text) < 200
    assert convert("config", dict, text) == config


def test_equal_options_are_equal_parameters_and_others_differ(graph: Graph) -> None:
    wanted = options.collect_corpus(graph)
    assert options.as_json(graph, wanted) == options.as_json(graph, dict(wanted))
    assert options.as_json(graph, wanted) != options.as_json(graph, wanted | {"scale": "other"})


def test_short_options_stay_in_the_command(graph: Graph) -> None:
    assert options.as_json(graph, {"scale": "tiny"}) == '{"scale":"tiny"}'
    longest = {"text": "'" * options.LONGEST}
    assert options.as_json(graph, longest).startswith("@")
    assert len("'\"'\"'") * options.LONGEST < SYSTEM


def test_a_file_of_options_that_is_gone_or_damaged_is_one_line(graph: Graph) -> None:
    text = options.as_json(graph, options.collect_corpus(graph))
    Path(text[1:]).write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        read_words(["collect_corpus", "--options", text])
    assert read_words(["collect_corpus", "--options", options.as_json(graph, options.collect_corpus(graph))])
    Path(text[1:]).unlink()
    with pytest.raises(BadInput, match="no such file"):
        read_words(["collect_corpus", "--options", text])
