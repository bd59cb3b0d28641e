"""Stage measure_speed: time a compressed structure against the dense student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from budgeted_lora.evaluation.speed import (
    SpeedShape,
    build,
    factor_ranks,
    time_decode,
    time_kinds,
    time_modules,
    time_prefill,
)
from budgeted_lora.files import read_json, short_hash
from budgeted_lora.method.cost import ModelShape, dense_macs, lora_macs, projections
from budgeted_lora.models.device import on_device
from budgeted_lora.provenance import Clock, write_result

DECODE_PROMPT = 16  # tokens in the cache before decoding starts


def compressed_structure(path: Path) -> dict[str, Any]:
    """The structure that a student was compressed to, from its compression.json."""
    found = read_json(path)
    modules = [module | {"rank": module["lora_rank"]} for module in found["modules"]]
    return found["totals"] | {"modules": modules}


@torch.inference_mode()
def measure_speed(
    *,
    student: Mapping[str, Any],
    tokens: Path,
    out: Path,
    scale: str,
    batch: int,
    length: int,
    decode_tokens: int,
    repeats: int,
    threads: int,
    device: str,
    structure: Mapping[str, Any] | None = None,
    compressed: Path | None = None,
) -> None:
    """Times one compressed structure against the dense student and against unmerged LoRA, and writes JSON.

    Args:
        student: fields of `SpeedShape` but for the vocabulary, which the record `tokens` of a token file gives.
        structure: `Structure.as_json()` or anything with its `modules`.
        compressed: compression.json with the structure, if it is known only after compression.
        batch, length: of the prefill; the modules are timed on batch x length and on batch tokens.
        device: "auto", "cpu" (float32) or "cuda" (bfloat16).

    Raises:
        BadInput: the structure does not fit the shape, or there is no such device.
    """
    clock = Clock()
    shape = ModelShape(**student["shape"])
    student = SpeedShape(**dict(student) | {"shape": shape, "vocab_size": read_json(tokens)["vocab_size"]})
    structure = structure if compressed is None else compressed_structure(compressed)
    ranks = factor_ranks(student.shape, structure["modules"])
    names = [module.name for module in projections(student.shape)]
    with on_device(device, threads=threads) as where:
        torch.manual_seed(0)
        prompt = min(DECODE_PROMPT, length)
        models = build(student, ranks, length=max(length, prompt + decode_tokens), device=where)
        common = {"repeats": repeats, "device": where}
        result = {
            "structure": {key: value for key, value in structure.items() if key != "modules"},
            "structure_hash": short_hash([[name, ranks.get(name)] for name in names]),
            **_mac_ratios(student, structure),
            "dtype": str(next(models["dense"].parameters()).dtype).removeprefix("torch."),
            "device": where.type,
            "threads": threads,
            "modules": time_modules(models, names, tokens=batch * length, **common),
            "modules_decode": time_modules(models, names, tokens=batch, **common),
            "kinds": time_kinds(models, ranks, tokens=batch * length, **common),
            "prefill": time_prefill(models, batch=batch, length=length, keep=1, **common),
            "prefill_all_logits": time_prefill(models, batch=batch, length=length, keep=0, **common),
            "decode": time_decode(models, batch=batch, prompt=prompt, tokens=decode_tokens, **common),
        }
        values = {
            "shape": vars(student.shape),
            "heads": student.heads,
            "kv_heads": student.kv_heads,
            "vocab_size": student.vocab_size,
            "rank": student.rank,
            "batch": batch,
            "length": length,
            "decode_tokens": decode_tokens,
            "repeats": repeats,
            "threads": threads,
        }
        write_result(out, result, scale=scale, cell=None, values=values, inputs=[], clock=clock)


def _mac_ratios(student: SpeedShape, structure: Mapping[str, Any]) -> dict[str, float]:
    """The paper's speedups: ratios of multiply-accumulates in the projections."""
    macs, dense = sum(module["macs"] for module in structure["modules"]), dense_macs(student.shape)
    unmerged = dense + lora_macs(student.shape, rank=student.rank)
    return {"mac_speedup": dense / macs, "mac_speedup_vs_lora": unmerged / macs}
