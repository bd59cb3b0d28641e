"""What `doctor` says of the Hub and of a corpus in shards: on the network, off it, in the cache, in local files."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from fixtures.machines import COMMIT, LARGE, PINNED, elsewhere, graph_of, states  # noqa: F401
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from budgeted_lora.config.anatomy import SIZES
from budgeted_lora.planning.checks import Check, local_inputs
from budgeted_lora.planning.findings import Finding
from budgeted_lora.planning.hub import check_hub, repositories

pytestmark = pytest.mark.usefixtures("elsewhere")


# --- the Hub


class Api:
    """What the Hub would answer; a dataset holds the paper's shards but for those without."""

    def __init__(
        self, gated: object = False, error: Exception | None = None, closed: bool = False, without: tuple = (),
        about: dict | None = None,
    ) -> None:  # fmt: skip
        self.about = about or {}
        self.gated, self.error, self.closed = gated, error, closed
        self.numbers = [number for number in range(100) if number not in without]

    def list_repo_tree(self, _: str, folder: str | None, *, recursive: bool, **__: object) -> list[SimpleNamespace]:
        assert (folder, recursive) == ("data", False)
        names = ["notes.txt", *(f"train-{number:05d}-of-01650-abc.parquet" for number in self.numbers)]
        return [SimpleNamespace(path=f"data/{name}") for name in names]

    def repo_info(self, *_: object, **__: object) -> "Api":
        if self.error is not None:
            raise self.error
        return self

    def hf_hub_download(self, name: str, file: str, *, revision: str) -> str:
        """The config.json of a checkpoint of the paper's ladder."""
        [spec] = [spec for spec in PINNED["teacher_ladder"].values() if spec["hub"] == name]
        about = {theirs: spec[ours] for ours, theirs in SIZES.items()}
        Path(file).write_text(json.dumps(about | {"model_type": "mistral", "vocab_size": 32_000} | self.about))
        assert revision == COMMIT
        return file

    def auth_check(self, *_: object, **__: object) -> None:
        if self.closed:
            raise made(GatedRepoError)


def made(kind: type[Exception]) -> Exception:
    """An error of the Hub without the HTTP response that it wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "403")
    return error


def hub_states(monkeypatch: pytest.MonkeyPatch, api: Api, **overrides: object) -> list[Finding]:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    return check_hub(graph_of("paper", **overrides).config, Path("results/paper"), ask=True)


def test_a_scale_that_reads_no_hub_asks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the Hub"))
    assert check_hub(graph_of("mini").config, Path("results/mini"), ask=True) == []


def test_revisions_must_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = hub_states(monkeypatch, Api(error=AssertionError("asked the Hub")))
    assert states(findings) == ["missing"] * 4
    assert findings[0].remedy == "pin teacher_ladder.0.13B.revision to the 40 hex digits of a commit"
    assert findings[3].remedy.startswith("pin corpus.hub.revision")


def test_what_the_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(hub_states(monkeypatch, Api(), **PINNED)) == ["ok"] * 4
    assert states(hub_states(monkeypatch, Api(gated="auto"), **PINNED)) == ["ok"] * 4
    findings = hub_states(monkeypatch, Api(gated="auto", closed=True), **PINNED)
    assert states(findings) == ["missing"] * 4
    assert (
        findings[0]
        .line()
        .endswith("gated, and closed to this account; ask its owners for access, then `hf auth login`")
    )
    findings = hub_states(monkeypatch, Api(error=made(RepositoryNotFoundError)), **PINNED)
    assert "not on the Hub under that name and commit; correct teacher_ladder.0.13B" in findings[0].line()
    findings = hub_states(monkeypatch, Api(error=OSError("no route\nto host")), **PINNED)
    assert "the Hub cannot be reached (no route to host)" in findings[0].line()
    assert all("\n" not in item.line() for item in findings)


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"model_type": "phi3"}, "model_type is 'phi3', whose projections are fused (qkv_proj and gate_up_proj)"),
        ({"hidden_size": 700, "head_dim": 64}, "hidden_size is 700, but teacher_ladder.0.13B says 768"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named_before_its_download(
    monkeypatch: pytest.MonkeyPatch, about: dict, why: str
) -> None:
    findings = hub_states(monkeypatch, Api(about=about), **PINNED)
    assert states(findings) == ["missing"] * 3 + ["ok"]
    assert why in findings[0].line()
    assert findings[0].remedy == "correct teacher_ladder.0.13B, or choose another checkpoint"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_takes_what_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    (tmp_path / "hub" / "models--MohammedSabry--biinduct-1b-baseline" / "snapshots" / COMMIT).mkdir(parents=True)
    findings = hub_states(monkeypatch, Api(error=AssertionError("asked the Hub")), **PINNED)
    assert states(findings) == ["missing", "missing", "ok", "missing"]
    assert f"unset {variable}, or fetch it on a machine with a network: hf download" in findings[0].remedy
    assert findings[3].remedy.startswith(f"unset {variable}, or run `snakemake --until fetch_")


def test_what_was_fetched_is_asked_for_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("teachers/0.13B/teacher.json", "data/manifest.json"):
        path = tmp_path / "results" / "paper" / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    assert len(hub_states(monkeypatch, Api(), **PINNED)) == 2


# --- a corpus in shards

SHARDS = Path("results/paper/data/shards")


def dataset(monkeypatch: pytest.MonkeyPatch, api: Api | None = None, **overrides: object) -> Finding:
    """The line of the paper's corpus."""
    api = api or Api(error=AssertionError("asked the Hub"))
    return hub_states(monkeypatch, api, **(PINNED | overrides))[-1]


def fetched(*shards: int, tokenised: bool = False) -> None:
    """Shards as their jobs leave them."""
    for number in shards:
        folder = SHARDS / f"{number:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("shard.json",) if tokenised else ("source.parquet", "source.json"):
            (folder / name).write_text("{}")


def test_offline_says_which_shards_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    findings = dataset(monkeypatch)
    assert findings.state == "missing"
    assert (
        "44 of 44 shards are not in results/paper/data/shards (00000 to 00043), and HF_HUB_OFFLINE is"
        in findings.detail
    )
    assert "snakemake --until fetch_shard --config scale=paper fit=warn`" in findings.remedy
    assert "and copy results/paper/data/shards" in findings.remedy
    fetched(0, 1, 2, 5, 6)
    fetched(9, tokenised=True)
    (SHARDS / "00011").mkdir()
    (SHARDS / "00011" / "source.parquet").write_text("half a download has no record yet")
    findings = dataset(monkeypatch)
    assert (
        "38 of 44 shards are not in results/paper/data/shards (00003 to 00004, 00007 to 00008, 00010 to 0"
        in findings.detail
    )
    fetched(*range(44))
    findings = dataset(monkeypatch)
    assert (findings.state, findings.detail.split(": ")[1]) == ("ok", "all 44 shards are in results/paper/data/shards")


def test_shards_in_the_hub_s_cache_can_be_read_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job asks the Hub for its shard; the cache serves as a local folder once it holds them all."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "hub" / "datasets--EleutherAI--the_pile_deduplicated" / "snapshots" / COMMIT / "data"
    cached.mkdir(parents=True)
    for number in range(44):
        findings = dataset(monkeypatch)
        assert findings.state == "missing"
        assert ("the local cache has" in findings.detail) == (number > 0)
        (cached / f"train-{number:05d}-of-01650-abc.parquet").touch()
        if number == 2:
            assert "the local cache has 3 of them" in dataset(monkeypatch).detail
    findings = dataset(monkeypatch)
    assert (findings.state, findings.remedy) == (
        "missing",
        f"unset HF_HUB_OFFLINE, or set corpus.hub.name to {cached.parent}, which has all 44",
    )
    hub = {"name": str(cached.parent), "revision": COMMIT}
    local = graph_of("paper", **(PINNED | {"corpus": {"hub": hub}}))
    assert [item.kind for item in repositories(local.config, Path("results/paper"))] == ["model"] * 3
    assert [item.name for item in local_inputs(Check(local, LARGE))] == ["validation"]


def test_without_a_network_the_missing_shards_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(*range(40))
    findings = dataset(monkeypatch, Api(error=OSError("no route to host")))
    assert (
        "4 of 44 shards are not in results/paper/data/shards (00040 to 00043): the Hub cannot be reached"
        in findings.detail
    )
    assert findings.state == "missing"
    findings = dataset(monkeypatch, Api())
    assert (findings.state, findings.detail.endswith("(00040 to 00043): can be downloaded")) == ("ok", True)
    quick = check_hub(graph_of("paper", **PINNED).config, Path("results/paper"), ask=False)[-1]
    assert (quick.state, quick.detail.endswith("to be downloaded")) == ("ok", True)


def test_shards_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = dataset(monkeypatch, Api(without=(3, 4, 43, 60)))
    assert findings.state == "missing"
    assert findings.detail.endswith("no file, or several, for 3 shards (00003 to 00004, 00043)")
    assert "corpus.shards.pattern" in findings.remedy


def test_files_that_are_fewer_than_shards(tmp_path: Path) -> None:
    corpus = {"source": "files", "files": [str(tmp_path / "*.jsonl.zst")], "hub": None}
    corpus["shards"] = {"pattern": None, "train": 4, "held_out": 6}

    def lines() -> list[Finding]:
        return list(local_inputs(Check(graph_of("paper", **(PINNED | {"corpus": corpus})), LARGE)))

    first = lines()[0]
    assert (first.name, first.state) == ("corpus", "missing")
    assert first.detail == f"no file matches {tmp_path}/*.jsonl.zst for 6 shards"
    for number in range(6):
        (tmp_path / f"{number:02d}.jsonl.zst").write_bytes(bytes(10**6))
        first = lines()[0]
        if number == 1:
            matched, needed = first.detail.split("), ")
            assert matched == "2 files match corpus.files (00.jsonl.zst, 01.jsonl.zst"
            assert needed == "6 are read (corpus.shards: train 4, held_out 6)"
            assert first.remedy == "add 4, or read at most 2: lower corpus.shards"
        if number == 4:
            assert "5 files match corpus.files (00.jsonl.zst, 01.jsonl.zst, 02.jsonl.zst, 2 more)" in first.detail
    assert [item.name for item in lines()] == ["validation"]
    assert f"about {int(6 * 10**6 / 0.45 / 4.5 * 0.002):,} tokens" in lines()[0].detail, "by what the files hold"


def test_a_local_folder_in_the_hub_s_form(tmp_path: Path) -> None:
    folder = tmp_path / "pile" / "data"
    folder.mkdir(parents=True)
    for number in range(44):
        (folder / f"train-{number:05d}-of-01650-abc.parquet").touch()
    corpus = {"hub": {"name": str(folder.parent), "revision": COMMIT}}

    def line() -> Finding:
        return next(local_inputs(Check(graph_of("paper", **(PINNED | {"corpus": corpus})), LARGE)))

    assert line().name == "validation"
    (folder / "train-00007-of-01650-xyz.parquet").touch()
    assert "several files for shard 00007 (train-00007-of-01650-abc.parquet, " in line().detail
    for path in folder.glob("train-0000[67]*"):
        path.unlink()
    assert "no file for 2 of its shards (00006 to 00007), 44 are read" in line().detail
