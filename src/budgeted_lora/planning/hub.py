"""Whether the Hub has what a scale reads: names, pinned revisions, access, or a copy in the local cache."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from budgeted_lora.config.scale import Config
from budgeted_lora.planning.findings import Finding, ok
from budgeted_lora.planning.machine import folder_bytes
from budgeted_lora.workflow.shards import ShardJobs

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


def repository(source: Source) -> Path:
    """Its folder in the local cache, whether it is there or not."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=source.name, repo_type=source.kind)


def snapshot(source: Source) -> Path:
    """The folder of its files at the pinned revision."""
    return repository(source) / "snapshots" / str(source.revision)


def is_cached(source: Source) -> bool:
    """Whether a snapshot at the pinned revision lies in the local cache; not whether it is whole."""
    return snapshot(source).is_dir()


def to_download(config: Config, results: Path, sizes: dict[str, int]) -> int:
    """Bytes that the local cache does not hold yet of the teachers that are not in the results.

    Args:
        sizes: bytes of each teacher.
    """
    wanted = {source.key.removeprefix("teacher_ladder."): source for source in sources(config, results)}
    return sum(max(sizes[name] - folder_bytes(repository(wanted[name])), 0) for name in sizes if name in wanted)


def offline_by() -> str | None:
    """The variable that keeps the libraries off the network."""
    return next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def check_hub(config: Config, results: Path, *, ask: bool) -> list[Finding]:
    """One line a repository; none for a scale that reads no Hub.

    Args:
        ask: whether to ask the Hub itself; else only what can be told from here.
    """
    return [_check(source, results, config, ask=ask) for source in sources(config, results)]


def _check(source: Source, results: Path, config: Config, *, ask: bool) -> Finding:
    name, what = f"Hub {source.kind}", f"{source.name} at {source.revision}"
    if not source.revision:
        remedy = f"pin {source.key}.revision to the 40 hex digits of a commit"
        return Finding(name, "missing", f"{source.name}: no revision is pinned", remedy)
    if source.kind == "dataset" and config.corpus.shards:
        jobs = ShardJobs(config, str(results), train_tokens=config.corpus.train_tokens)
        return _check_shards(source, jobs, name=name, what=what, ask=ask, scale=config.scale)
    if is_cached(source):
        return ok(name, f"{what}: in the local cache")
    variable = offline_by()
    if variable is not None:
        where = f"unset {variable}, or fetch it where there is a network: hf download {source.name} --revision"
        kind = "" if source.kind == "model" else " --repo-type dataset"
        return Finding(name, "missing", f"{what}: not in the local cache", f"{where} {source.revision}{kind}")
    return _asked(source, name=name, what=what) if ask else ok(name, f"{what}: to be downloaded")


# --- a corpus in shards, which are downloaded one by one into the results, past the local cache


def _check_shards(source: Source, jobs: ShardJobs, *, name: str, what: str, ask: bool, scale: str) -> Finding:
    absent = [shard for shard in jobs.names if not _is_here(jobs, shard)]
    if not absent:
        return ok(name, f"{what}: all {len(jobs.names)} shards are in {jobs.folder}")
    what = f"{what}: {len(absent)} of {len(jobs.names)} shards are not in {jobs.folder} ({spans(absent)})"
    variable = offline_by()
    if variable is not None:
        return _offline(source, jobs, absent, name=name, what=what, variable=variable, scale=scale)
    if not ask:
        return ok(name, f"{what}: to be downloaded")
    return _asked(source, name=name, what=what, patterns={shard: jobs.pattern(shard) for shard in absent})


def _is_here(jobs: ShardJobs, shard: str) -> bool:
    """Whether a shard is tokenised, or downloaded and its record with it."""
    file = Path(jobs.source(shard))
    return Path(jobs.record(shard)).is_file() or (file.is_file() and file.with_name("source.json").is_file())


def _offline(
    source: Source, jobs: ShardJobs, absent: Sequence[str], *, name: str, what: str, variable: str, scale: str
) -> Finding:
    """A job asks the Hub for its shard even where the local cache has it; the cache can be read as a local folder."""
    folder = snapshot(source)
    lacking = [shard for shard in jobs.names if not any(folder.glob(jobs.pattern(shard)))]
    if not lacking:
        remedy = f"unset {variable}, or set corpus.hub.name to {folder}, where all {len(jobs.names)} lie"
        return Finding(name, "missing", f"{what}, and {variable} is set", remedy)
    cached = sum(shard not in lacking for shard in absent)
    held = f"; the local cache has {cached} of them" if cached else ""
    remedy = (
        f"unset {variable}, or where there is a network run `snakemake --until fetch_shard --config scale={scale} "
        f"fit=warn` and copy {jobs.folder} from there"
    )
    return Finding(name, "missing", f"{what}, and {variable} is set{held}", remedy)


def spans(shards: Sequence[str]) -> str:
    """Names of shards, neighbours together: `00000 to 00004, 00007`."""
    found: list[list[str]] = []
    for shard in shards:
        if found and int(shard) == int(found[-1][-1]) + 1:
            found[-1] = [found[-1][0], shard]
        else:
            found.append([shard])
    return ", ".join(" to ".join(span) for span in found)


# --- the Hub itself


def _asked(source: Source, *, name: str, what: str, patterns: dict[str, str] | None = None) -> Finding:
    """What the Hub says.

    Args:
        patterns: of each shard that will be downloaded, what its file is called.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        about = api.repo_info(source.name, repo_type=source.kind, revision=source.revision, timeout=TIMEOUT_SECONDS)
        if about.gated:
            api.auth_check(source.name, repo_type=source.kind)
        files = _files(api, source, list(patterns.values())) if patterns else []
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
    odd = [shard for shard, pattern in (patterns or {}).items() if sum(fnmatchcase(f, pattern) for f in files) != 1]
    if odd:
        said = f"{source.name} at {source.revision}: no file, or several, for {len(odd)} shards ({spans(odd)})"
        return Finding(name, "missing", said, "correct corpus.shards.pattern, or read fewer shards")
    return ok(name, f"{what}: can be downloaded")


def _files(api: Any, source: Source, patterns: Sequence[str]) -> list[str]:
    """Paths in a repository, of the folder that all patterns name if they name one: as the jobs will ask for them."""
    parents = {str(PurePosixPath(pattern).parent) for pattern in patterns}
    one = parents.pop() if len(parents) == 1 else "."
    inside = one if one != "." and not set("*?[") & set(one) else None
    about = {"revision": source.revision, "repo_type": source.kind}
    return [entry.path for entry in api.list_repo_tree(source.name, inside, recursive=inside is None, **about)]
