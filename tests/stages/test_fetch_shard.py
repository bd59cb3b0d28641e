"""Shards from the Hub: a server on this machine answers as the Hub does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from budgeted_lora.config.corpus import HubDataset
from budgeted_lora.errors import BadInput
from budgeted_lora.files import sha256_file
from budgeted_lora.stages.fetch_shard import fetch_shard

SERVER = Path(__file__).parents[1] / "fixtures" / "hub_server.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("train-00000-of-00002-aa.parquet", "train-00001-of-00002-bb.parquet", "test-00000-of-00001-cc.parquet")
PATTERN = "data/train-{:05d}-of-00002-*.parquet"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a dataset and the address at which it is served."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "data").mkdir()
    for name in NAMES:
        (folder / "data" / name).write_bytes(name.encode() * 1000)
    command = [sys.executable, str(SERVER), str(folder), "some/dataset", COMMIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield folder, f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


def fetch(address: str, out: Path, **asked: object) -> subprocess.CompletedProcess[str]:
    """One call of the command, since the libraries read the Hub's address when they are loaded."""
    with start(address, out, **asked) as process:
        said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def start(
    address: str, out: Path, *, shard: int = 1, name: str = "some/dataset", pattern: str = PATTERN
) -> subprocess.Popen[str]:
    """As `fetch`; does not wait for it."""
    values = {"hub": {"name": name, "revision": COMMIT}, "pattern": pattern.format(shard)}
    command = [
        sys.executable, "-c", "from budgeted_lora.commands.app import main; main()", "stage", "fetch_shard",
        "--options", json.dumps(values), "--out", str(out / "source.parquet"), "--record", str(out / "source.json"), 
        "--downloads", str(out / "downloads"), "--scale", "tiny",
    ]  # fmt: skip
    own = os.environ | {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(out / "home")}
    own.pop("HF_HUB_OFFLINE", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env=own, cwd=out)


def test_a_shard_is_found_by_its_number_and_compared_with_the_hubs_digest(
    hub: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = hub
    done = fetch(address, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "source.parquet").read_bytes() == (folder / "data" / NAMES[1]).read_bytes()
    record = json.loads((tmp_path / "source.json").read_text())
    digest = sha256_file(tmp_path / "source.parquet")
    assert (record["file"], record["sha256"], record["sha256_of_the_hub"]) == (f"data/{NAMES[1]}", digest, digest)
    assert record["provenance"]["values"]["hub"]["revision"] == COMMIT


def test_a_file_that_is_not_the_hubs_is_refused(hub: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = hub
    (folder / ".wrong").write_text(f"data/{NAMES[0]}")
    done = fetch(address, tmp_path, shard=0)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"{NAMES[0]} arrived with another size or SHA-256 than the Hub's" in done.stderr
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"shard": 7}, "0 files match data/train-00007-of-00002-*.parquet (corpus.shards.pattern), expected one"),
        ({"name": "other/dataset"}, "other/dataset at 0123"),
    ],
)
def test_what_is_not_there_is_named(
    hub: tuple[Path, str], tmp_path: Path, arguments: dict[str, object], expected: str
) -> None:
    done = fetch(hub[1], tmp_path, **arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_killed_download_leaves_no_half_shard(hub: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = hub
    large = folder / "large" / "train-00000-of-00001.parquet"
    large.parent.mkdir()
    large.write_bytes(bytes(range(256)) * (1 << 17))  # 32 MiB: the library writes ten megabytes at a time
    (folder / ".stall").touch()
    with start(address, tmp_path, pattern="large/*.parquet") as process:
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end and not begun(tmp_path):
            time.sleep(0.01)
        process.kill()
    (folder / ".stall").unlink()
    assert begun(tmp_path)
    assert not (tmp_path / "source.parquet").exists()
    done = fetch(address, tmp_path, pattern="large/*.parquet")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "source.parquet").read_bytes() == large.read_bytes()
    assert not begun(tmp_path)


def begun(out: Path) -> bool:
    """Whether some of a download lies on the disk."""
    return any(path.stat().st_size for path in out.glob("downloads/**/*.incomplete"))


@pytest.mark.parametrize("revision", [None, "main", "0123"])
def test_a_revision_that_can_move_is_refused(tmp_path: Path, revision: str | None) -> None:
    with pytest.raises(BadInput, match=r"corpus\.hub\.revision must pin a commit of some/dataset"):
        fetch_shard(
            hub=HubDataset(name="some/dataset", revision=revision), pattern="x", out=tmp_path / "x",
            record=tmp_path / "y", downloads=tmp_path, scale="tiny",
        )  # fmt: skip
