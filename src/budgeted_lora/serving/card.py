"""The model card of an exported folder: what it is, how well it does, how fast, from what, and under which licence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

import budgeted_lora
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file, short_hash
from budgeted_lora.models.card import NAMES, budget_fact
from budgeted_lora.serving.export import Exported

Rows = Iterator[tuple[str, str]]
NOTES = (
    "Fewer multiply-accumulates are a count, not a timing. Perplexity and in-context score are those of the student in "
    "float32, before it was exported."
)


@dataclass(frozen=True)
class Known:
    """What the results say of a model; a file that is not there gives an empty entry.

    Attributes:
        name: of the cell, or of the folder.
        license: identifier of the teacher's licence, as the Hub spells it.
    """

    name: str
    compression: Mapping[str, Any] = field(default_factory=dict)
    perplexity: Mapping[str, Any] = field(default_factory=dict)
    icl: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None

    @property
    def recipe(self) -> Recipe | None:
        """How the student was trained."""
        values = self.compression.get("provenance", {}).get("values", {}).get("recipe")
        return Recipe.model_validate(values) if values else None


def known_of(source: Path, *, name: str, license: str | None = None) -> Known:
    """Reads the results of the run that a model folder stands in; of any other folder little is known.

    Args:
        source: `<results>/cells/<cell>/compressed/<variant>/model`, or another model folder.
        name: of a model that stands in no run.
        license: replaces what the teacher's own card says.

    Raises:
        BadInput: a record is damaged, or the licence is not one word, as the Hub wants it.
    """
    if license is not None and len(license.split()) != 1:
        raise BadInput(f"--license {license!r}: expected an identifier in one word, such as apache-2.0")
    beside = source.resolve().parent
    in_results = len(beside.parts) > 4 and (beside.parent.name, beside.parents[2].name) == ("compressed", "cells")
    compression = read_record(beside / "compression.json") if in_results else {}
    about = compression.get("provenance", {})
    if not about.get("cell"):  # a folder on its own, or one that was copied from its results
        return Known(name, license=license or license_of(source))
    results = beside.parents[3]
    teacher = results / "teachers" / about["values"]["recipe"]["teacher"]
    record = read_record(teacher / "teacher.json")
    return Known(
        name=about["cell"],
        compression=compression,
        perplexity=read_record(beside / "perplexity.json"),
        icl=read_record(beside / "icl.json"),
        speed=speed_of(results / "speed", compression),
        teacher=record,
        manifest=read_record(results / "data" / "manifest.json"),
        license=license or teachers_license(teacher / "model", record),
    )


def read_record(path: Path) -> dict[str, Any]:
    """A result file; empty if it is not there."""
    return read_json(path) if path.is_file() else {}


def speed_of(folder: Path, compression: Mapping[str, Any]) -> dict[str, Any]:
    """The timings of the structure of a compressed student; empty if it was not timed."""
    ranks = {
        module["name"]: module["lora_rank"] + module["svd_rank"]
        for module in compression["modules"]
        if module["decision"] != "keep"
    }
    structure = short_hash([[module["name"], ranks.get(module["name"])] for module in compression["modules"]])
    records = (read_json(path) for path in sorted(folder.glob("*.json")))
    return next((record for record in records if record.get("structure_hash") == structure), {})


def teachers_license(copied: Path, record: Mapping[str, Any]) -> str | None:
    """The licence in the card of a teacher's checkpoint, in the results or where it was taken from."""
    spec = record.get("provenance", {}).get("values", {})
    folders = [copied, *([Path(spec["folder"])] if spec.get("folder") else [])]
    return next(filter(None, map(license_of, folders)), None)


def license_of(folder: Path) -> str | None:
    """The `license` in the front matter of a folder's README.md."""
    path = folder / "README.md"
    parts = path.read_text(encoding="utf-8", errors="replace").split("---\n") if path.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return found if isinstance(found, str) and len(found.split()) == 1 else None


def write_card(folder: Path, exported: Exported, known: Known) -> None:
    """Writes README.md; it has the digest of every file of weights, so that a mixed-up upload can be told."""
    rows = [*model_rows(exported, known), *score_rows(known), *origin_rows(known)]
    rows += [(f"SHA-256 of {path.name}", f"`{sha256_file(path)}`") for path in sorted(folder.glob("*.safetensors"))]
    flags = " --model-impl transformers --trust-remote-code" if exported.remote_code else ""
    template = files("budgeted_lora").joinpath("assets/exported/model_card.md").read_text(encoding="utf-8")
    text = Template(template).substitute(
        license_line=f"license: {known.license}\n" if known.license else "",
        title=known.name,
        summary=summary(exported),
        trust=", trust_remote_code=True" if exported.remote_code else "",
        serve=f"vllm serve path/to/this/folder{flags}",
        transformers=version("transformers"),
        rows="\n".join(f"| {name} | {value} |" for name, value in rows),
        notes=NOTES if known.recipe else "",
        version=budgeted_lora.__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def summary(exported: Exported) -> str:
    """What the folder holds, and what loading it needs."""
    projections = f"{len(exported.ranks)} projections"
    if exported.remote_code:
        return (
            f"A {exported.family} decoder in which {projections} are two thin linear layers. `modeling_budgeted.py` "
            "beside the weights builds it from transformers' own classes; nothing else is needed."
        )
    stock = f"A {exported.family} decoder of transformers' own class; it runs no code from this folder."
    if exported.dense:
        return (
            f"{stock} The low-rank factors of {projections} are multiplied out, so it computes what the student "
            "computes, but it is as slow and as large as the dense model. It is for tools that know no factors."
        )
    return stock


def model_rows(exported: Exported, known: Known) -> Rows:
    """Size and structure."""
    yield "Weights", f"{exported.parameters:,} in {exported.dtype}"
    recipe, totals = known.recipe, known.compression.get("totals")
    if recipe is None:
        return
    yield "Method", f"{NAMES[recipe.method]}, {recipe.student_layers} layers, initialised {recipe.init}"
    settings = known.compression.get("provenance", {}).get("values", {}).get("settings", {})
    if fact := budget_fact(recipe, settings.get("budget")):
        yield "Budget", f"{fact}, order {recipe.order}" if recipe.order else fact
    if recipe.rank is not None:
        yield "LoRA", f"rank {recipe.rank}, alpha {recipe.alpha:g}"
    yield "Training", f"{recipe.tokens:,} tokens in {recipe.steps:,} steps, seed {recipe.seed}"
    counts = f"{totals['kept']} dense, {totals['svd']} SVD and low rank, {totals['dropped']} low rank only"
    yield "Projections of the student", counts
    macs = f"{totals['macs']:,} of {totals['dense_macs']:,} dense ({totals['speedup_vs_dense']:.2f}x fewer)"
    yield "Multiply-accumulates a token in the student's projections", macs
    yield "Projections smaller than dense by", f"{totals['param_reduction_vs_dense_pct']:.1f} %"


def score_rows(known: Known) -> Rows:
    """Scores of the student in float32, before export, and measured times of its structure."""
    if known.perplexity:
        score = known.perplexity
        value = f"{score['value']:.2f} ± {score['standard_error']:.2f} on {score['tokens']:,} held-out tokens"
        yield "Perplexity", f"{value}, windows of {score['conditions']['sequence_length']}"
    if known.icl:
        score = known.icl
        value = f"{100 * score['composite']:.1f} % ± {100 * score['composite_se']:.1f}"
        chance = f"chance {100 * score['chance_composite']:.1f} %"
        yield "In-context learning, composite of 19 probes", f"{value} ({score['shots']} shots, {chance})"
    if known.speed:
        timed, device = known.speed, known.speed["provenance"]["device"]["name"]
        where = f"{timed['dtype']}, threads: {timed['threads']}" if timed["device"] == "cpu" else timed["dtype"]
        parts = {"projections": "modules", "prefill": "prefill", "decoding": "decode"}
        times = ", ".join(f"{name} {timed[key]['speedup']:.2f}x" for name, key in parts.items())
        yield "Measured against the dense student", f"{times} ({device}, {where})"


def origin_rows(known: Known) -> Rows:
    """Teacher, data and licence."""
    if known.recipe is not None:
        spec = known.teacher.get("provenance", {}).get("values", {})
        made = {"pretrain": "trained by the same run", "shipped": "shipped with budgeted-lora"}
        at = f" at {spec['revision']}" if spec.get("revision") else ""
        source = made.get(known.teacher.get("source", ""), f"{spec.get('hub') or 'a local checkpoint'}{at}")
        yield "Teacher", f"{known.recipe.teacher}: {source}"
    if known.manifest:
        yield "Data", data_of(known.manifest)
    own = {"pretrain": "yours, who trained it", "shipped": "that of budgeted-lora, MIT"}
    made_here = own.get(known.teacher.get("source", ""), "not recorded; ask its makers before you pass the student on")
    yield "Licence of the teacher", known.license or made_here


def data_of(manifest: Mapping[str, Any]) -> str:
    """The corpus of a run in a few words."""
    corpus = manifest["corpus"]
    if corpus.get("hub"):
        hub = corpus["hub"]
        text = f"{hub['name']} at {hub.get('revision') or 'a moving revision'}"
    elif corpus.get("package_versions"):
        packages = corpus["package_versions"]
        text = f"docstrings of Python packages ({', '.join(packages)})"
    else:
        text = f"local files ({corpus['source']})"
    share = manifest.get("function_share")
    return text + (f"; {100 * share:.0f} % of the training tokens are function-style demonstrations" if share else "")
