"""`budgeted-lora export` in a checkout with results, and what the card of the folder says."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fixtures.checkout import ROOT
from fixtures.command_line import Outcome
from fixtures.exported import MIXED, student, student_folder
from fixtures.tiny_checkout import TINY
from fixtures.training_world import make_recipe

from budgeted_lora.files import sha256_file, short_hash, write_json, write_record
from budgeted_lora.method.cost import projections
from budgeted_lora.method.projections import model_shape
from budgeted_lora.serving.card import license_of
from budgeted_lora.workflow.graph import load_graph

Run = Callable[..., Outcome]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with scale `tiny`, whose only cell has a compressed student with scores and timings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("smoke", "mini"):
        (tmp_path / "config" / f"{name}.yaml").write_bytes((ROOT / "config" / f"{name}.yaml").read_bytes())
    row = {"method": "budgeted_lora", "budget": 0.4}
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"tables": {"table2": [row]}}))
    [cell] = load_graph("config/tiny.yaml").cells
    model = student(MIXED)
    folder = Path("results/tiny/cells") / cell / "compressed" / "default"
    folder.mkdir(parents=True)
    student_folder(folder / "model", model)
    write_results(folder, cell, [projection.name for projection in projections(model_shape(model))])
    return folder


def write_results(folder: Path, cell: str, names: list[str]) -> None:
    """Records with what the card reads."""
    recipe = make_recipe("budgeted_lora", teacher="1B", order="gradient").model_dump(mode="json")
    modules = [
        {
            "name": name,
            "decision": "svd" if name in MIXED else "keep",
            "lora_rank": MIXED.get(name, 4) - 1,
            "svd_rank": 1,
        }
        for name in names
    ]
    totals = {"kept": 15, "svd": 6, "dropped": 0, "macs": 4321, "dense_macs": 6543, "speedup_vs_dense": 1.514}
    provenance = {"cell": cell, "values": {"recipe": recipe}}
    compression = {"modules": modules, "totals": totals | {"param_reduction_vs_dense_pct": 33.96}}
    write_record(folder / "compression.json", compression | {"provenance": provenance})
    score = {"value": 69.174, "standard_error": 1.07, "tokens": 20480, "conditions": {"sequence_length": 256}}
    write_record(folder / "perplexity.json", score)
    score = {"composite": 0.331, "composite_se": 0.014, "chance_composite": 0.229, "shots": 10}
    write_record(folder / "icl.json", score)
    results = folder.parents[3]
    timed = {"dtype": "float32", "threads": 1, "device": "cpu", "provenance": {"device": {"name": "Some CPU"}}}
    timed |= {"modules": {"speedup": 1.46}, "prefill": {"speedup": 1.11}, "decode": {"speedup": 0.98}}
    for name, ranks in {"other": {}, "this": MIXED}.items():
        structure = short_hash([[module, ranks.get(module)] for module in names])
        write_record(results / "speed" / f"{name}.json", timed | {"structure_hash": structure, "name": name})
    source = {"source": "folder", "provenance": {"values": {"folder": "checkpoints/big", "hub": None}}}
    write_record(results / "teachers" / "1B" / "teacher.json", source)
    Path("checkpoints/big").mkdir(parents=True)
    Path("checkpoints/big/README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# Big\n")
    corpus = {"source": "docstrings", "package_versions": {"numpy": "2", "scipy": "1"}, "hub": None}
    write_json(results / "data" / "manifest.json", {"corpus": corpus, "function_share": 0.15})


def test_a_cell_becomes_a_folder_with_a_card(checkout: Path, run: Run) -> None:
    done = run("export", "budgeted", "--to", "out", "--scale", "tiny")
    assert done.status == 0, done
    assert done.out.startswith("out: ")
    assert "weights in bfloat16" in done.out
    names = ["README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_budgeted.py"]
    assert sorted(os.listdir("out")) == [*names, "tokenizer.json", "tokenizer_config.json"]
    text = Path("out/README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("apache-2.0", "transformers")
    for words in (
        "trust_remote_code=True", "--model-impl transformers",
        "F = 0.4, schedule short, greedy controller, order gradient",
        "15 dense, 6 SVD and low rank, 0 low rank only", "4,321 of 6,543 dense (1.51x fewer)", "34.0 %",
        "69.17 ± 1.07 on 20,480 held-out tokens, windows of 256", "33.1 % ± 1.4 (10 shots, chance 22.9 %)",
        "projections 1.46x, prefill 1.11x, decoding 0.98x (Some CPU, float32, threads: 1)", "1B: a local checkpoint",
        "docstrings of Python packages (numpy, scipy); 15 % of the training tokens", "apache-2.0",
        sha256_file("out/model.safetensors"),
    ):  # fmt: skip
        assert words in text, words


def test_expanded_it_needs_no_code_and_says_what_it_costs(checkout: Path, run: Run) -> None:
    done = run("export", "budgeted", "--to", "out", "--scale", "tiny", "--dense", "--license", "mit")
    assert done.status == 0, done
    assert "factors of 6 projections multiplied out: dense cost" in done.out
    text = Path("out/README.md").read_text()
    assert "as slow and as large as the dense model" in text
    assert "trust" not in text
    assert "license: mit" in text
    assert not Path("out/modeling_budgeted.py").exists()
    assert json.loads(Path("out/config.json").read_text())["model_type"] == "mistral"


def test_a_folder_outside_a_run_gets_a_short_card(tmp_path: Path, run: Run) -> None:
    source = student_folder(tmp_path / "source", student({}, layers=1))
    assert run("export", source, "--to", tmp_path / "mine").status == 0
    text = (tmp_path / "mine" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:")
    assert "# mine" in text
    assert "not recorded; ask its makers" in text
    assert "Perplexity" not in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["budgeted"], "export budgeted: where to? name a new folder with --to, or an archive that ends in .tar.zst"),
        (["kd", "--to", "out"], "no cell of scale tiny begins with 'kd'"),
        (["budgeted", "--to", "out", "--variant", "other"], "snakemake results/tiny/cells/"),
        (["budgeted", "--to", "config"], "config: is there already; name a new folder"),
        (["budgeted", "--to", "out", "--dtype", "int4"], "dtype is 'int4'; expected bfloat16, float16, float32"),
        (["budgeted", "--to", "out", "--license", "ask me"], "--license 'ask me': expected an identifier in one word"),
        (["budgeted", "--to", "out", "--with-cache"], "exporting a student does not use --with-cache"),
        (["x.tar.gz", "--dense"], "x.tar.gz is an archive; it packs a scale and does not use --dense"),
    ],
)
def test_refusals_leave_nothing_behind(checkout: Path, run: Run, words: list[str], line: str) -> None:
    before = sorted(os.listdir())
    assert line in run("export", *words, "--scale", "tiny").refusal()
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\n---\n", "mit"), ("# No front matter\n", None), ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: see file\n---\n", None), ("---\n: {\n---\n", None), ("text\n---\nlicense: mit\n---\n", None),
    ],
)  # fmt: skip
def test_license_of_a_card(tmp_path: Path, text: str, found: str | None) -> None:
    (tmp_path / "README.md").write_text(text)
    assert license_of(tmp_path) == found
    (tmp_path / "README.md").write_bytes(text.encode() + "é".encode("latin-1"))
    assert license_of(tmp_path) == found
