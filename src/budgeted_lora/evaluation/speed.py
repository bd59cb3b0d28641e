"""Measured speedup of compression: modules, prefill and decode, dense and compressed in turn (method.md 6 and 7).

Time does not depend on the values of the weights, so each planned structure is measured once, with random weights.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, projections
from budgeted_lora.method.projections import install
from budgeted_lora.models.compressed import untrained
from budgeted_lora.models.load import mistral_config, new_model

WARM_UP = 2  # discarded passes per arm
DECODE_PROMPT = 16  # tokens in the cache before decoding starts
SAMPLE_SECONDS = 0.01  # shortest sample; shorter calls are repeated within one sample
ARMS = ("dense", "compressed", "lora_unmerged")
Models = Mapping[str, nn.Module]  # by arm


@dataclass(frozen=True)
class SpeedShape:
    """The student to time: its shape in the cost model and what else its forward pass depends on."""

    shape: ModelShape
    heads: int
    kv_heads: int
    vocab_size: int
    rank: int


def factor_ranks(shape: ModelShape, modules: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rank of every factorised projection; projections kept dense are absent.

    Args:
        modules: one record per projection with name, decision, rank (of the low-rank path), svd_rank and macs.

    Raises:
        BadInput: the modules are not those of the shape, or a module's MACs contradict its ranks.
    """
    expected = {projection.name: projection for projection in projections(shape)}
    if {module["name"] for module in modules} != set(expected):
        raise BadInput(f"structure: {len(modules)} modules; expected the {len(expected)} projections of {shape}")
    ranks = {}
    for module in modules:
        projection = expected[module["name"]]
        rank = None if module["decision"] == "keep" else module["rank"] + module["svd_rank"]
        macs = projection.macs if rank is None else projection.low_rank_macs(rank)
        if macs != module["macs"]:
            raise BadInput(
                f"structure: {projection.name} has {module['macs']} MACs with decision {module['decision']} and rank "
                f"{rank}; expected {macs} MACs"
            )
        if rank is not None:
            ranks[projection.name] = rank
    return ranks


def build(student: SpeedShape, ranks: Mapping[str, int], *, length: int, device: torch.device) -> dict[str, nn.Module]:
    """Random models by arm: dense student, compressed student, dense student with unmerged LoRA."""
    shape = student.shape
    sizes = {"layers": shape.layers, "hidden": shape.hidden, "ffn": shape.ffn}
    sizes |= {"heads": student.heads, "kv_heads": student.kv_heads, "vocab_size": student.vocab_size}
    sizes["head_dim"] = shape.attention // student.heads
    config = mistral_config(**sizes, context=length, end_id=0)
    dense = new_model(config, seed=0)
    models = {"dense": dense, "compressed": untrained(dense, ranks), "lora_unmerged": new_model(config, seed=0)}
    sizes = {"rank": student.rank, "alpha": 2.0 * student.rank}
    for module in install(models["lora_unmerged"], **sizes, dropout=0.0, gates=False, seed=0).values():
        module.weight.requires_grad_(True)  # a dense path that trains is never merged
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {name: model.to(device=device, dtype=dtype).eval() for name, model in models.items()}


def clocked(run: Callable[[], Any], *, device: torch.device, at_least: float = SAMPLE_SECONDS) -> Callable[[], float]:
    """A function that times `run` and returns seconds per call; it repeats short calls for `at_least` seconds."""
    run()
    calls = max(1, math.ceil(at_least / max(_elapsed(run, calls=1, device=device), 1e-9)))
    return lambda: _elapsed(run, calls=calls, device=device)


def _elapsed(run: Callable[[], Any], *, calls: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    arms: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """`repeats` samples per arm in seconds; each round runs all arms and starts with another one than the last."""
    names = list(arms)
    for name in names * warm_up:
        arms[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(arms[name]())
    return samples


def describe(samples: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Median and quartiles (seconds) per arm, and speedups.

    A speedup is the median of the ratios within a round, where both arms ran under the same load; so are its quartiles.
    """
    result: dict[str, Any] = {}
    for name, seconds in samples.items():
        q1, median, q3 = (float(value) for value in np.percentile(seconds, [25, 50, 75]))
        result[name] = {"median_s": median, "q1_s": q1, "q3_s": q3, "samples_s": [float(value) for value in seconds]}
    for name, slow in {"speedup": "dense", "speedup_vs_lora": "lora_unmerged"}.items():
        if slow in samples:
            ratio = np.asarray(samples[slow]) / np.asarray(samples["compressed"])
            keys = f"{name}_q1", name, f"{name}_q3"
            result |= zip(keys, map(float, np.percentile(ratio, [25, 50, 75])), strict=True)
    return result


def time_modules(
    models: Models, names: Sequence[str], *, tokens: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Times the named projections one after another on random activations [tokens, d_in]."""
    arms = {}
    for arm, model in models.items():
        dtype = next(model.parameters()).dtype
        widths = [models["dense"].get_submodule(name).in_features for name in names]
        inputs = {width: torch.randn(tokens, width, device=device, dtype=dtype) for width in set(widths)}
        calls = [(model.get_submodule(name), inputs[width]) for name, width in zip(names, widths, strict=True)]

        def run(calls: list[tuple[nn.Module, torch.Tensor]] = calls) -> None:
            for module, activations in calls:
                module(activations)

        arms[arm] = clocked(run, device=device)
    return {"tokens": tokens, **describe(take_turns(arms, repeats=repeats))}


def time_kinds(
    models: Models, ranks: Mapping[str, int], *, tokens: int, repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """Times one projection of each kind (widths and rank) against the dense layer it replaces.

    Weights stay in the cache between calls here, unlike in a pass over the whole model.
    """
    kinds: dict[tuple[int, int, int], list[str]] = {}
    for name, rank in ranks.items():
        layer = models["dense"].get_submodule(name)
        kinds.setdefault((layer.in_features, layer.out_features, rank), []).append(name)
    pair = {arm: models[arm] for arm in ("dense", "compressed")}
    records = []
    for (d_in, d_out, rank), names in kinds.items():
        kind = {"d_in": d_in, "d_out": d_out, "rank": rank, "modules": names}
        kind["mac_ratio"] = d_in * d_out / (rank * (d_in + d_out))
        records.append(kind | time_modules(pair, names[:1], tokens=tokens, repeats=repeats, device=device))
    return records


def time_prefill(
    models: Models, *, batch: int, length: int, keep: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Times a forward pass over [batch, length] tokens that fills a cache.

    Args:
        keep: last positions whose logits are computed; 0 computes all.
    """
    ids = _tokens(models["dense"], batch=batch, length=length, device=device)
    arms = {
        arm: clocked(lambda model=model: model(input_ids=ids, use_cache=True, logits_to_keep=keep), device=device)
        for arm, model in models.items()
    }
    return {"batch": batch, "length": length, **describe(take_turns(arms, repeats=repeats))}


def time_decode(
    models: Models, *, batch: int, prompt: int, tokens: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Times decoding: seconds per step of the whole batch, without the prefill of the prompt."""
    ids = _tokens(models["dense"], batch=batch, length=prompt, device=device)

    def decode(model: nn.Module) -> float:
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        _wait(device)
        start = time.perf_counter()
        for _ in range(tokens):
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
        _wait(device)
        return (time.perf_counter() - start) / tokens

    arms = {arm: lambda model=model: decode(model) for arm, model in models.items()}
    return {"batch": batch, "prompt": prompt, "tokens": tokens, **describe(take_turns(arms, repeats=repeats))}


def _tokens(model: nn.Module, *, batch: int, length: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator).to(device)
