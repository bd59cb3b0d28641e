"""Tool for maintainers: copies teachers that the pipeline made and evaluated into the package, each with its card.

snakemake table1 --config teachers=pretrain && python tools/ship_teachers.py results/mini
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from budgeted_lora.files import read_json, sha256_file, write_json, write_text
from budgeted_lora.models.checkpoint import shipped_tokenizer

LIMIT_BYTES = 25_000_000


def card(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a user must know of a shipped teacher, from the results of the run that made it."""
    made, scores, icl = (read_json(folder / name) for name in ("teacher.json", "perplexity.json", "icl.json"))
    about, values = made["provenance"], manifest["provenance"]["values"]
    return {
        "stands_for": made["stands_for"],
        "shape": made["shape"],
        "parameters": made["parameters"],
        "tokens": made["tokens"],
        "epochs": made["epochs"],
        "recipe": {**about["values"], "function_share": manifest["function_share"]},
        "perplexity": {key: scores[key] for key in ("value", "standard_error", "tokens")},
        "icl": {key: icl[key] for key in ("composite", "composite_se", "chance_composite")},
        "held_out": {
            "rule": "no document and no (probe, input) pair with MD5 mod 1000 below slice_per_mille was trained on",
            "slice_per_mille": values["slice_per_mille"],
            "hold_out_words": values["hold_out_words"],
        },
        "corpus": {key: manifest["corpus"][key] for key in ("source", "package_versions", "hash_rule")},
        "tokenizer_sha256": manifest["tokenizer"]["sha256"],
        "sha256": sha256_file(folder / "model" / "model.safetensors"),
        "made_with": {"libraries": about["libraries"], "seconds": about["seconds"], "device": about["device"]},
    }


def readme(about: dict[str, Any]) -> str:
    """The card as Markdown."""
    shape, scores, icl = about["shape"], about["perplexity"], about["icl"]
    legs = about["recipe"]["spec"]["tokens"]
    rule = "by the rule `pretrain_teacher`."
    if isinstance(legs, list):
        tokens = " and ".join(f"{leg:,}" for leg in legs)
        rule += f"\n  Legs of {tokens} tokens, each from the weights of the one before and with a schedule of its own."
    return f"""# Teacher standing for {about["stands_for"]}

A Mistral-type decoder of {shape["layers"]} layers, hidden size {shape["hidden"]}, feed-forward {shape["ffn"]},
{shape["heads"]} heads and {shape["kv_heads"]} key/value heads: {about["parameters"]:,} parameters,
stored in half precision.

- Trained on {about["tokens"]:,} tokens ({about["epochs"]:.2f} epochs) of docstrings of scientific Python packages and
  function-style demonstrations ({about["recipe"]["function_share"]:.0%} of the tokens), {rule}
- Perplexity on held-out prose {scores["value"]:.2f}
  (standard error {scores["standard_error"]:.2f}, {scores["tokens"]:,} tokens).
- ICL composite over 19 probes {100 * icl["composite"]:.1f} %
  (standard error {100 * icl["composite_se"]:.1f}); chance {100 * icl["chance_composite"]:.1f} %.
- Held out: {about["held_out"]["rule"]}; slice_per_mille is {about["held_out"]["slice_per_mille"]}.
- SHA-256 of model.safetensors: `{about["sha256"]}`.

It knows docstrings and small puzzles, nothing else; it is of use only as a teacher in this pipeline.
"""


def ship(results: Path, assets: Path) -> None:
    """Copies every teacher of a results folder into `assets/teachers` and their tokenizer into `assets/tokenizer`."""
    own = results / "data" / "teachers" / "manifest.json"  # exists if teachers and students read different mixes
    manifest = read_json(own if own.is_file() else results / "data" / "manifest.json")
    cards = {folder: card(folder, manifest) for folder in sorted((results / "teachers").iterdir())}
    shutil.rmtree(assets / "teachers", ignore_errors=True)
    shutil.rmtree(assets / "tokenizer", ignore_errors=True)
    shutil.copytree(results / "data" / "tokenizer", assets / "tokenizer", ignore=shutil.ignore_patterns(".*"))
    for folder, about in cards.items():
        target = assets / "teachers" / folder.name
        target.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(folder / "model" / name, target / name)
        write_json(target / "card.json", about)
        write_text(target / "README.md", readme(about))
    size = sum(
        path.stat().st_size
        for part in ("teachers", "tokenizer")
        for path in (assets / part).rglob("*")
        if path.is_file()
    )
    print(json.dumps({"bytes": size, "limit": LIMIT_BYTES, "fits": size <= LIMIT_BYTES}))


if __name__ == "__main__":
    ship(Path(sys.argv[1]), shipped_tokenizer().parent)
