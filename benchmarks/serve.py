"""Students of the paper's shape under vLLM on a CPU: writes benchmarks/results/<device>-vllm.{json,md}.

    python -m benchmarks.serve --vllm /path/to/python [--repeats 5]

`--vllm` is the interpreter of an environment with vLLM (docs/serving.md). Weights are random: no time depends on what a
student has learnt.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe, result_name
from benchmarks.turns import ROOT
from budgeted_lora.files import write_json, write_text
from budgeted_lora.method.cost import ModelShape, dense_macs, projections
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import structure
from budgeted_lora.models.checkpoint import copy_tokenizer, shipped_tokenizer
from budgeted_lora.models.compressed import untrained
from budgeted_lora.models.load import mistral_config, new_model, save_model
from budgeted_lora.serving.export import export_model

SHAPE = ModelShape(layers=6, hidden=768, kv=192, ffn=3072)
RANK, VOCABULARY, HEADS, KV_HEADS = 128, 32_000, 12, 3
Ranks = Mapping[str, int]


def patterns(*, layers: int, rank: int) -> dict[str, Ranks]:
    """Ranks by projection of students whose layers differ in every way that a server might stumble over."""
    attention, mlp = "qkvo", ("gate", "up", "down")

    def named(chosen: Mapping[int, Iterable[str]]) -> Ranks:
        places = {kind: "self_attn" for kind in attention} | {kind: "mlp" for kind in mlp}
        return {f"model.layers.{i}.{places[kind]}.{kind}_proj": rank for i, kinds in chosen.items() for kind in kinds}

    half, last = layers // 2, layers - 1
    return {
        "dense": {},
        "factors-first": named({i: (*attention, *mlp) for i in range(half)}),
        "dense-first": named({i: (*attention, *mlp) for i in range(half, layers)}),
        "mixed-in-layers": named({0: ("q", "down"), 1: ("k", "v", "gate"), last: ("v", "o", "gate", "up")}),
        "mixed-dense-first": named({1: ("q", "down"), last - 1: ("k", "v", "up"), last: ("o", "gate", "up")}),
        "all-factors": named({i: (*attention, *mlp) for i in range(layers)}),
    }


def planned(budget: float) -> Ranks:
    """Ranks of the paper's student at a budget, in the paper's order by multiply-accumulates."""
    rule = BudgetRule(budget=budget, start=0.1, end=0.3)
    plan = structure(SHAPE, rule, rank=RANK, r_max=64, svd_threshold=0.5, schedule="short")
    return {item.projection.name: item.rank + item.svd_rank for item in plan.modules if item.decision != "keep"}


def reversed_layers(ranks: Ranks) -> Ranks:
    """The same structure with its layers in the other order, as one by loss can be: dense ones come first."""
    flipped = {str(i): str(SHAPE.layers - 1 - i) for i in range(SHAPE.layers)}
    return {".".join(flipped.get(part, part) for part in name.split(".")): rank for name, rank in ranks.items()}


def write_students(root: Path, structures: Mapping[str, Ranks], *, config: Any, dtype: str = "float32") -> list[Path]:
    """Exported folders of random students, whose greedy tokens do not repeat; named as the structures are."""
    dense, folders = new_model(config, seed=0), []
    for name, ranks in structures.items():
        model = untrained(dense, ranks)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.normal_(std=(1.2 / weight.shape[1]) ** 0.5, generator=generator)
            model.model.embed_tokens.weight.normal_(generator=generator)
        save_model(model, root / f"{name}-student")
        copy_tokenizer(shipped_tokenizer(), root / f"{name}-student")
        (root / name).mkdir()
        export_model(root / f"{name}-student", root / name, dtype=dtype)
        folders.append(root / name)
    return folders


def ask_vllm(python: str, folders: list[Path], *, repeats: int = 0) -> dict[str, Any]:
    """What `serve_vllm.py` says of folders, run by another interpreter."""
    script = Path(__file__).with_name("serve_vllm.py")
    words = [python, str(script), "--repeats", str(repeats), *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} {script.name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def speedups(found: Mapping[str, Any]) -> None:
    """Adds to each load its speedup over the dense student: the median of the ratios within a round, with quartiles."""
    dense = found["dense"]["times"]
    for folder in found.values():
        for load, times in folder["times"].items():
            for kind in ("clock", "process"):
                ratios = np.array(dense[load][f"{kind}_s"]) / np.array(times[f"{kind}_s"])
                times[f"{kind}_speedup"] = [round(float(q), 3) for q in np.percentile(ratios, [25, 50, 75])]


ABOUT = """{versions}; Transformers backend, float32, one thread, enforce_eager; {repeats} rounds, in which the students
take turns. The paper's student (6 layers of 768, vocabulary 32,000) with random weights. A speedup is the median over
rounds of the ratio to the dense student within a round, with quartiles: first by the clock, then by the process's own
time, which other work on the machine changes less. The machine's load average was {load} at the start: far above 0,
tokens per second say little, and ratios by the process's own time most."""


def table(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    lines = [
        f"# Students under vLLM on {result['machine']['cpu']}",
        "",
        ABOUT.format(versions=versions, repeats=result["repeats"], load=result["machine"]["load_before"]),
        "",
        "| student | MACs vs dense | greedy tokens equal | load | tokens/s | speedup, clock | speedup, process |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for name, folder in result["folders"].items():
        for load, times in folder["times"].items():
            cells = [name, f"{folder['mac_speedup']:.2f}x", "yes" if folder["equal"] else "NO", load]
            cells.append(f"{times['tokens_per_s']:.1f}")
            for q1, median, q3 in (times["clock_speedup"], times["process_speedup"]):
                cells.append(f"{median:.2f} ({q1:.2f} to {q3:.2f})")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", required=True, help="interpreter of an environment with vLLM")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = mistral_config(
        layers=SHAPE.layers, hidden=SHAPE.hidden, ffn=SHAPE.ffn, heads=HEADS, kv_heads=KV_HEADS,
        vocab_size=VOCABULARY, context=512, end_id=0,
    )  # fmt: skip
    structures = {
        "dense": {},
        "F0.4": planned(0.4),
        "F0.4-dense-first": reversed_layers(planned(0.4)),
        "F0": planned(0.0),
    }
    machine = describe("cpu")
    with tempfile.TemporaryDirectory() as root:
        folders = write_students(Path(root), structures, config=config)
        result = ask_vllm(arguments.vllm, folders, repeats=arguments.repeats)
    speedups(result["folders"])
    for name, ranks in structures.items():
        result["folders"][name]["mac_speedup"] = mac_speedup(ranks)
    result = {"machine": machine, "repeats": arguments.repeats} | result
    out = ROOT / "benchmarks" / "results" / f"{result_name(machine, quick=False)}-vllm"
    write_json(out.with_suffix(".json"), result)
    write_text(out.with_suffix(".md"), table(result))
    print(out.with_suffix(".md"))


def mac_speedup(ranks: Ranks) -> float:
    """Multiply-accumulates of the dense projections over those of a structure."""
    macs = [item.low_rank_macs(ranks[item.name]) if item.name in ranks else item.macs for item in projections(SHAPE)]
    return dense_macs(SHAPE) / sum(macs)


if __name__ == "__main__":
    main()
