"""One set-up, said three times: pyproject.toml, requirements.lock and environment.yml must agree.

What the extras add is pinned apart, so that only those who need it install it.
"""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from budgeted_lora import __version__

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


LOCKS = ("requirements.lock", "profiles/slurm/requirements.lock", "requirements-extras.lock")
# Extras for measurements besides, which no lock holds: their results record the versions.
MEASURING = {"int8", "lm-eval"}


@cache
def pins(*locks: str) -> dict[str, str]:
    """Canonical name and exact version of every line of these locks, of all without any."""
    text = "".join((ROOT / lock).read_text() for lock in locks or LOCKS)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {}
    for line in lines:
        name, version = line.split("==")
        found[canonicalize_name(name)] = version
    assert len(found) == len(lines), "a package is pinned twice"
    return found


@cache
def environment() -> tuple[list[str], list[str]]:
    """Conda's part and pip's part of environment.yml."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return [entry for entry in entries if isinstance(entry, str)], next(
        e["pip"] for e in entries if isinstance(e, dict)
    )


def wanted() -> list[Requirement]:
    groups = project()["optional-dependencies"].items()
    extras = [line for name, group in groups if name not in MEASURING for line in group]
    return [Requirement(line) for line in [*project()["dependencies"], *extras]]


@pytest.mark.parametrize("requirement", wanted(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in requirements.lock"
    assert requirement.specifier.contains(version, prereleases=True)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_holds_plain_public_pins_only(lock: str) -> None:
    for line in (ROOT / lock).read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


def test_what_only_slurm_needs_is_in_its_own_lock() -> None:
    [plugin] = (Requirement(line) for line in project()["optional-dependencies"]["slurm"])
    assert plugin.name in pins(LOCKS[1])
    assert all("slurm" in name for name in pins(LOCKS[1]))
    assert not any("slurm" in name for name in pins(LOCKS[0]))


def test_what_only_other_extras_need_is_in_their_own_lock() -> None:
    for extra in ("tensorboard", "gpu"):
        for line in project()["optional-dependencies"][extra]:
            assert canonicalize_name(Requirement(line).name) in pins(LOCKS[2])


def test_what_only_measures_besides_is_in_no_lock() -> None:
    for name in MEASURING:
        for line in project()["optional-dependencies"][name]:
            assert canonicalize_name(Requirement(line).name) not in pins()


def test_torch_and_we_ourselves_in_the_lock() -> None:
    assert pins()["torch"] == "2.13.0"
    assert "budgeted-lora" not in pins()


def test_environment_is_python_pip_and_the_lock() -> None:
    conda, pip = environment()
    names = [re.match(r"[a-z]+", entry).group() for entry in conda]
    assert names == ["python", "pip"]
    python = SpecifierSet(conda[0].removeprefix("python").strip())
    assert python == SpecifierSet(project()["requires-python"])
    ours = {canonicalize_name(name): version for name, version in (line.split("==") for line in pip)}
    assert ours == pins(LOCKS[0]), "run `make environment.yml`"


def test_supported_pythons() -> None:
    allowed = SpecifierSet(project()["requires-python"])
    assert [version for version in ("3.10", *PYTHONS, "3.14") if version in allowed] == list(PYTHONS)
    assert "(3, 11) <= sys.version_info[:2] < (3, 14)" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", sorted(pins()))
def test_pinned_version_supports_every_python(name: str) -> None:
    try:
        about = metadata(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    if about["Version"].split("+")[0] != pins()[name]:
        pytest.skip(f"{name} {about['Version']} is installed here, not the pinned {pins()[name]}")
    assert all(version in SpecifierSet(about["Requires-Python"] or "") for version in PYTHONS)


def test_lock_is_closed() -> None:
    """Whatever a pinned package needs on Linux or macOS is pinned too, at a version it accepts."""
    platforms = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]
    names = ("sys_platform", "platform_system", "platform_machine")
    settings = [
        dict(zip(names, platform, strict=True)) | {"python_version": version, "python_full_version": f"{version}.9"}
        for version in PYTHONS
        for platform in platforms
    ]
    pending = [(canonicalize_name(r.name), frozenset(r.extras)) for r in wanted()]
    seen, problems = set(), []
    while pending:
        name, extras = item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        try:
            about = metadata(name)
        except PackageNotFoundError:
            continue
        for line in about.get_all("Requires-Dist") or []:
            need = Requirement(line)
            applies = need.marker is None or any(
                need.marker.evaluate({**setting, "extra": extra}) for setting in settings for extra in ("", *extras)
            )
            key = canonicalize_name(need.name)
            if not applies or (name == "torch" and key.startswith(("nvidia-", "cuda-", "triton"))):
                continue  # the CUDA libraries come with the CUDA build, at versions it pins itself
            if key not in pins() or not need.specifier.contains(pins()[key], prereleases=True):
                problems.append(f"{name} needs {line}; the lock has {pins().get(key)}")
            pending.append((key, frozenset(need.extras)))
    assert not problems, "\n".join(problems)


def test_every_import_is_a_declared_dependency() -> None:
    providers = packages_distributions()
    extras = [line for name in MEASURING for line in project()["optional-dependencies"][name]]
    declared = {canonicalize_name(Requirement(line).name) for line in [*project()["dependencies"], *extras]}
    declared |= {"pynvml"}  # of nvidia-ml-py, the extra `gpu`; its import may fail
    missing = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"budgeted_lora"}:
                if not declared & {canonicalize_name(name) for name in providers.get(top, [top])}:
                    missing[top] = path.name
    assert not missing


@pytest.mark.parametrize("script", sorted(str(path) for path in ROOT.glob("*s/*.py")))
def test_scripts_import_what_exists(script: str) -> None:
    """Scripts that no stage imports, in tools/ and benchmarks/, follow the package."""
    for node in ast.walk(ast.parse(Path(script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("budgeted_lora"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_corpus_packages_are_pinned() -> None:
    """The documents of a docstring corpus come from locked versions, so two machines read the same texts."""
    from budgeted_lora.config.scale import load_config

    providers = packages_distributions()
    packages = load_config(ROOT / "config" / "mini.yaml").corpus.packages
    assert packages
    for package in packages:
        names = {canonicalize_name(name) for name in providers.get(package, [package])}
        assert names & set(pins()), f"corpus package {package} is not pinned"


def test_make_help_lists_every_target() -> None:
    listing = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    for target in ("setup", "reproduce", "smoke", "test", "lint", "figures", "clean"):
        assert f"make {target} " in listing


def test_make_setup_names_the_missing_python(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    run = subprocess.run(
        ["make", "-C", str(tmp_path), "setup", "PYTHON=no-such-python"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13 found (tried: no-such-python)" in run.stderr
    assert not (tmp_path / ".venv").exists()


def test_changelog_and_citation_name_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", changes, re.MULTILINE)
    assert versions == sorted(versions, reverse=True)
    assert versions[0][0] == __version__
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (about["version"], str(about["date-released"])) == versions[0]
