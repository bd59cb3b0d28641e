"""Stage fetch_shard: download one shard of a Hub dataset at its pinned commit and compare it with the Hub's digest."""

import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from budgeted_lora.config.corpus import HubDataset
from budgeted_lora.errors import BadInput
from budgeted_lora.files import sha256_file
from budgeted_lora.provenance import Clock, write_result

COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_shard(*, hub: HubDataset, pattern: str, out: Path, record: Path, downloads: Path, scale: str) -> None:
    """Downloads the one file that matches `pattern` to `out` and records its source.

    Args:
        downloads: folder of the unfinished download, on the file system of `out`.

    Raises:
        BadInput: no commit is pinned, no file or several files match, the Hub cannot be reached or requires a login, or
            the download differs from the Hub's file.
    """
    clock = Clock()
    if not COMMIT.fullmatch(hub.revision or ""):
        raise BadInput(
            f"corpus.hub.revision must pin a commit of {hub.name} by its 40 hex digits, since a branch can move; "
            f"it is {hub.revision!r}"
        )
    dataset = f"{hub.name} at {hub.revision}"
    try:
        file = find_file(hub, pattern)
        path = download(hub, file.path, downloads)
    except BadInput:
        raise
    except Exception as error:  # no network, no login, ...: the HTTP library has exception types of its own
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{dataset}: {pattern} cannot be downloaded ({type(error).__name__}: {reason})") from None
    digest, expected = sha256_file(path), file.lfs.sha256 if file.lfs else None
    if path.stat().st_size != file.size or (expected and digest != expected):
        path.unlink()
        raise BadInput(f"{dataset}: {file.path} arrived with another size or SHA-256 than the Hub's; rerun")
    out.parent.mkdir(parents=True, exist_ok=True)
    path.replace(out)
    payload = {"file": file.path, "bytes": file.size, "sha256": digest, "sha256_of_the_hub": expected}
    values = {"hub": hub.model_dump(), "pattern": pattern}
    write_result(record, payload, scale=scale, cell=None, values=values, inputs=[], clock=clock)


def find_file(hub: HubDataset, pattern: str) -> Any:
    """The Hub's entry of the one file whose path matches. Raises BadInput if no file or several files match."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    folder = str(PurePosixPath(pattern).parent)
    listed = folder if folder != "." and not set("*?[") & set(folder) else None  # None lists the whole dataset
    entries = HfApi().list_repo_tree(
        hub.name, path_in_repo=listed, recursive=listed is None, revision=hub.revision, repo_type="dataset"
    )
    matches = [entry for entry in entries if isinstance(entry, RepoFile) and fnmatchcase(entry.path, pattern)]
    if len(matches) != 1:
        raise BadInput(
            f"{hub.name} at {hub.revision}: {len(matches)} files match {pattern} (corpus.shards.pattern), expected one"
        )
    return matches[0]


def download(hub: HubDataset, name: str, folder: Path) -> Path:
    """Downloads a file into `folder`, under its own name.

    Deletes what a killed download left: the library starts again under another name each time.
    """
    from huggingface_hub import hf_hub_download

    for leftover in folder.rglob("*.incomplete"):
        leftover.unlink()
    return Path(hf_hub_download(hub.name, name, repo_type="dataset", revision=hub.revision, local_dir=folder))
