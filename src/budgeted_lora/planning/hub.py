"""Whether the Hub has what a scale reads: names, pinned revisions, access, or a copy in the local cache."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from budgeted_lora.config import Config
from budgeted_lora.planning.findings import Finding, ok

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Source:
    """A repository of the Hub that a scale reads, and the key of the configuration that names it."""

    key: str
    kind: str  # model or dataset
    name: str
    revision: str | None


def sources(config: Config, results: Path) -> Iterator[Source]:
    """Repositories whose files are not in the results yet."""
    if config.teachers == "hub":
        for name, spec in config.teacher_ladder.items():
            if not (results / "teachers" / name / "teacher.json").is_file():
                yield Source(f"teacher_ladder.{name}", "model", str(spec.hub), spec.revision)
    hub = config.corpus.hub
    if config.corpus.source == "hub" and not Path(hub.name).exists() and not (results / "data/manifest.json").is_file():
        yield Source("corpus.hub", "dataset", hub.name, hub.revision)


def cache_folder() -> Path:
    """Where the Hub's library keeps downloads, by the variables it reads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_cached(source: Source) -> bool:
    """Whether a snapshot at the pinned revision lies in the local cache; not whether it is whole."""
    from huggingface_hub.file_download import repo_folder_name

    folder = cache_folder() / repo_folder_name(repo_id=source.name, repo_type=source.kind)
    return (folder / "snapshots" / str(source.revision)).is_dir()


def offline_by() -> str | None:
    """The variable that keeps the libraries off the network."""
    return next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def check_hub(config: Config, results: Path, *, ask: bool) -> list[Finding]:
    """One line a repository; none for a scale that reads no Hub.

    Args:
        ask: whether to ask the Hub itself; else only what can be told from here.
    """
    return [_check(source, ask=ask) for source in sources(config, results)]


def _check(source: Source, *, ask: bool) -> Finding:
    name = f"Hub {source.kind}"
    what = f"{source.name} at {source.revision}"
    if not source.revision:
        remedy = f"pin {source.key}.revision to the 40 hex digits of a commit"
        return Finding(name, "missing", f"{source.name}: no revision is pinned", remedy)
    if is_cached(source):
        return ok(name, f"{what}: in the local cache")
    variable = offline_by()
    if variable is not None:
        where = f"unset {variable}, or fetch it where there is a network: hf download {source.name} --revision"
        kind = "" if source.kind == "model" else " --repo-type dataset"
        return Finding(name, "missing", f"{what}: not in the local cache", f"{where} {source.revision}{kind}")
    return _asked(source, name=name, what=what) if ask else ok(name, f"{what}: to be downloaded")


def _asked(source: Source, *, name: str, what: str) -> Finding:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        about = api.repo_info(source.name, repo_type=source.kind, revision=source.revision, timeout=TIMEOUT_SECONDS)
        if about.gated:
            api.auth_check(source.name, repo_type=source.kind)
    except GatedRepoError:
        remedy = "ask its owners for access" if get_token() else "ask its owners for access, then `hf auth login`"
        return Finding(name, "missing", f"{source.name}: gated, and closed to this account", remedy)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        remedy = f"correct {source.key}; a private name needs `hf auth login`"
        return Finding(name, "missing", f"{what}: not on the Hub under that name and commit", remedy)
    except Exception as error:  # from no network to a proxy's answer; the HTTP library's own kinds among them
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return Finding(
            name, "missing", f"{what}: the Hub cannot be reached ({reason})", "see to the network or a proxy"
        )
    return ok(name, f"{what}: can be downloaded")
