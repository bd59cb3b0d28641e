"""Whether what a scale reads from the Hub is available: name, pinned revision, access, or a copy in the cache."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from budgeted_lora.config.anatomy import read_anatomy, refuse_other_sizes
from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.planning.findings import Finding, missing, ok
from budgeted_lora.planning.machine import folder_bytes
from budgeted_lora.workflow.shards import ShardJobs

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub that a scale reads, and the configuration key that names it."""

    key: str
    kind: str  # model or dataset
    name: str
    revision: str | None


def repositories(config: Config, results: Path) -> Iterator[Repository]:
    """Repositories that are still to be read, because their files are not in the results."""
    if config.teachers == "hub":
        for name, spec in config.teacher_ladder.items():
            if not (results / "teachers" / name / "teacher.json").is_file():
                yield Repository(f"teacher_ladder.{name}", "model", str(spec.hub), spec.revision)
    hub = config.corpus.hub
    if config.corpus.source == "hub" and not Path(hub.name).exists() and not (results / "data/manifest.json").is_file():
        yield Repository("corpus.hub", "dataset", hub.name, hub.revision)


def cache_folder() -> Path:
    """Folder of the Hub library's downloads, from the environment variables that it reads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_repository(source: Repository) -> Path:
    """Its folder in the local cache; need not exist."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=source.name, repo_type=source.kind)


def snapshot(source: Repository) -> Path:
    """Folder of its files at the pinned revision; need not exist."""
    return cached_repository(source) / "snapshots" / str(source.revision)


def to_download(config: Config, results: Path, sizes: dict[str, int]) -> int:
    """Bytes still to download of teachers that are not in the results; `sizes` has the bytes of each teacher."""
    wanted = {source.key.removeprefix("teacher_ladder."): source for source in repositories(config, results)}
    return sum(max(sizes[name] - folder_bytes(cached_repository(wanted[name])), 0) for name in sizes if name in wanted)


def offline_by() -> str | None:
    """The environment variable that forbids the libraries to use the network, if one is set."""
    return next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def check_hub(config: Config, results: Path, *, ask: bool) -> list[Finding]:
    """One finding per repository; with `ask` from the Hub itself, otherwise from the local cache alone."""
    return [_check(source, results, config, ask=ask) for source in repositories(config, results)]


def _check(source: Repository, results: Path, config: Config, *, ask: bool) -> Finding:
    name, what = f"Hub {source.kind}", f"{source.name} at {source.revision}"
    if not source.revision:
        remedy = f"pin {source.key}.revision to the 40 hex digits of a commit"
        return missing(name, f"{source.name}: no revision is pinned", remedy)
    if source.kind == "dataset" and config.corpus.shards:
        jobs = ShardJobs(config, str(results), train_tokens=config.corpus.train_tokens)
        return _check_shards(source, jobs, name=name, what=what, ask=ask, scale=config.scale)
    if snapshot(source).is_dir():  # it may be incomplete
        return ok(name, f"{what}: in the local cache")
    variable = offline_by()
    if variable is not None:
        kind = "" if source.kind == "model" else " --repo-type dataset"
        command = f"hf download {source.name} --revision {source.revision}{kind}"
        remedy = f"unset {variable}, or fetch it on a machine with a network: {command}"
        return missing(name, f"{what}: not in the local cache", remedy)
    if not ask:
        return ok(name, f"{what}: to be downloaded")
    finding = _answer(source, name=name, what=what)
    return finding if finding.state != "ok" or source.kind != "model" else _usable(source, config, finding)


def _usable(source: Repository, config: Config, finding: Finding) -> Finding:
    """What config.json, which is small, says of a checkpoint that can be downloaded."""
    from huggingface_hub import HfApi

    teacher = source.key.removeprefix("teacher_ladder.")
    try:
        file = HfApi().hf_hub_download(source.name, "config.json", revision=source.revision)
        anatomy = read_anatomy(read_json(Path(file)), where=source.name)
        given = config.teacher_ladder[teacher].given_sizes
        refuse_other_sizes(anatomy, given, where=source.name, name=teacher)
    except BadInput as error:
        return missing(finding.name, str(error), f"correct {source.key}, or choose another checkpoint")
    except Exception as error:  # errors of the HTTP library
        reason = " ".join(str(error).split())[:120]
        return missing(finding.name, f"{source.name}: no config.json to be had ({reason})", f"correct {source.key}")
    return finding


def _check_shards(source: Repository, jobs: ShardJobs, *, name: str, what: str, ask: bool, scale: str) -> Finding:
    # Shards are downloaded one by one into the results, not into the cache: here if tokenised, or with their record.
    sources = {shard: Path(jobs.source(shard)) for shard in jobs.names if not Path(jobs.record(shard)).is_file()}
    absent = [
        shard for shard, file in sources.items() if not (file.is_file() and file.with_name("source.json").is_file())
    ]
    if not absent:
        return ok(name, f"{what}: all {len(jobs.names)} shards are in {jobs.folder}")
    what = f"{what}: {len(absent)} of {len(jobs.names)} shards are not in {jobs.folder} ({spans(absent)})"
    variable = offline_by()
    if variable is not None:
        return _offline(source, jobs, absent, name=name, what=what, variable=variable, scale=scale)
    if not ask:
        return ok(name, f"{what}: to be downloaded")
    return _answer(source, name=name, what=what, patterns={shard: jobs.pattern(shard) for shard in absent})


def _offline(
    source: Repository, jobs: ShardJobs, absent: Sequence[str], *, name: str, what: str, variable: str, scale: str
) -> Finding:
    """Without a network no shard can be fetched, even from the local cache; but that can be read as a local folder."""
    folder = snapshot(source)
    lacking = [shard for shard in jobs.names if not any(folder.glob(jobs.pattern(shard)))]
    if not lacking:
        remedy = f"unset {variable}, or set corpus.hub.name to {folder}, which has all {len(jobs.names)}"
        return missing(name, f"{what}, and {variable} is set", remedy)
    cached = sum(shard not in lacking for shard in absent)
    held = f"; the local cache has {cached} of them" if cached else ""
    remedy = (
        f"unset {variable}, or run `snakemake --until fetch_shard --config scale={scale} fit=warn` on a machine with a "
        f"network and copy {jobs.folder} from it"
    )
    return missing(name, f"{what}, and {variable} is set{held}", remedy)


def spans(shards: Sequence[str]) -> str:
    """Names of shards with neighbours joined: `00000 to 00004, 00007`."""
    joined: list[list[str]] = []
    for shard in shards:
        if joined and int(shard) == int(joined[-1][-1]) + 1:
            joined[-1] = [joined[-1][0], shard]
        else:
            joined.append([shard])
    return ", ".join(" to ".join(span) for span in joined)


def _answer(source: Repository, *, name: str, what: str, patterns: dict[str, str] | None = None) -> Finding:
    """What the Hub answers.

    Args:
        patterns: the file name pattern of each shard that is to be downloaded.
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
        remedy = f"ask its owners for access{'' if get_token() else ', then `hf auth login`'}"
        return missing(name, f"{source.name}: gated, and closed to this account", remedy)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        remedy = f"correct {source.key}; a private name needs `hf auth login`"
        return missing(name, f"{what}: not on the Hub under that name and commit", remedy)
    except Exception as error:  # no network, a proxy's answer, or errors of the HTTP library
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return missing(name, f"{what}: the Hub cannot be reached ({reason})", "check the network or a proxy")
    odd = [shard for shard, pattern in (patterns or {}).items() if sum(fnmatchcase(f, pattern) for f in files) != 1]
    if odd:
        detail = f"{source.name} at {source.revision}: no file, or several, for {len(odd)} shards ({spans(odd)})"
        return missing(name, detail, "correct corpus.shards.pattern, or read fewer shards")
    return ok(name, f"{what}: can be downloaded")


def _files(api: Any, source: Repository, patterns: Sequence[str]) -> list[str]:
    """Paths in the one folder that all patterns name, or in the whole repository, as the jobs will ask for them."""
    parents = {str(PurePosixPath(pattern).parent) for pattern in patterns}
    one = parents.pop() if len(parents) == 1 else "."
    inside = one if one != "." and not set("*?[") & set(one) else None
    about = {"revision": source.revision, "repo_type": source.kind}
    return [entry.path for entry in api.list_repo_tree(source.name, inside, recursive=inside is None, **about)]
