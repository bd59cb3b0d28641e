"""Rows 6 and 7: compressed students, module by module and whole, against dense and against two plain linear layers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks import goals
from benchmarks.context import Context
from benchmarks.measures import Measure, arm, limits, ratio, say
from benchmarks.shapes import Shape
from budgeted_lora.evaluation.speed import DECODE_PROMPT, build, factor_ranks, time_decode, time_modules, time_prefill
from budgeted_lora.method.cost import projections
from budgeted_lora.models.device import on_device
from budgeted_lora.models.load import mistral_config, new_model

PLAIN = "two plain linear layers"


def plain_factors(shape: Shape, ranks: Mapping[str, int], *, length: int, like: nn.Module) -> nn.Module:
    """The peer: transformers' own decoder with each factorised projection replaced by two linear layers."""
    config = mistral_config(
        layers=shape.layers, hidden=shape.hidden, ffn=shape.ffn, heads=shape.heads, kv_heads=shape.kv_heads,
        vocab_size=shape.vocab_size, context=length, end_id=0,
    )  # fmt: skip
    model = new_model(config, seed=0)
    for name, rank in ranks.items():
        parent, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        factors = nn.Linear(linear.in_features, rank, bias=False), nn.Linear(rank, linear.out_features, bias=False)
        setattr(model.get_submodule(parent), leaf, nn.Sequential(*factors))
    first = next(like.parameters())
    return model.to(device=first.device, dtype=first.dtype).eval()


def models(context: Context, shape: Shape, *, budget: float, length: int, device: torch.device) -> dict[str, nn.Module]:
    """Dense, compressed, and the peer."""
    ranks = factor_ranks(shape.student, shape.modules(budget=budget))
    built = build(shape.timed, ranks, length=length, device=device)
    kept = {name: built[name] for name in ("dense", "compressed")}
    return kept | {"plain": plain_factors(shape, ranks, length=length, like=kept["dense"])}


def two_lines(found: Mapping[str, Any], goal: goals.Goal | None, **common: Any) -> Iterator[Measure]:
    """The speedup over dense, and the speed over the peer, from one measurement of `evaluation.speed`."""
    samples = {name: found[name]["samples_s"] for name in ("dense", "compressed", "plain")}
    plain = ratio(samples["dense"], samples["plain"])["value"]
    yield Measure(
        **common,
        against="dense",
        peer=True,
        **ratio(samples["dense"], samples["compressed"]),
        **limits(goal),
        arms={name: arm(samples[name]) for name in ("dense", "compressed")},
        notes=[f"{PLAIN}: {plain:.2f}x"],
    )
    yield Measure(
        **common,
        against=PLAIN,
        peer=True,
        **ratio(samples["plain"], samples["compressed"]),
        arms={name: arm(samples[name]) for name in ("plain", "compressed")},
    )


@torch.inference_mode()
def measure_modules(context: Context) -> Iterator[Measure]:
    """Row 6: all projections of the student one after another, F = 0."""
    shape = context.shape("paper")
    mac_ratio = shape.mac_ratio(budget=0.0)
    counts = (1, 128) if context.quick else (1, 1024, 4096)
    names = [projection.name for projection in projections(shape.student)]
    with on_device(context.device, threads=context.threads) as place:
        built = models(context, shape, budget=0.0, length=shape.length, device=place)
        for tokens in counts:
            say(f"  paper, {tokens} tokens")
            found = time_modules(built, names, tokens=tokens, repeats=context.rounds(9, quick=3), device=place)
            yield from two_lines(
                found,
                goals.MODULES.get(tokens),
                row=6,
                what=f"modules, F = 0, {tokens:,} token{'s' * (tokens > 1)} (MAC ratio {mac_ratio:.2f})",
                shape="paper",
                threads=context.threads,
            )


@torch.inference_mode()
def measure_students(context: Context) -> Iterator[Measure]:
    """Row 7: prefill with all logits and with the last one, and decoding, at batch 1."""
    length, tokens = (64, 8) if context.quick else (512, 32)
    repeats = {"repeats": context.rounds(9, quick=3)}  # so that each arm begins a round
    for name in [name for name in context.shapes if name != "1B"]:
        shape = context.shape(name)
        for budget in (0.0, 0.4):
            say(f"  {name}, F = {budget:g}")
            with on_device(context.device, threads=context.threads) as place:
                built = models(context, shape, budget=budget, length=length, device=place)
                kinds: dict[str, Callable[[], dict[str, Any]]] = {
                    "prefill, all logits": lambda built=built, place=place: time_prefill(
                        built, batch=1, length=length, keep=0, device=place, **repeats
                    ),
                    "prefill, last logit": lambda built=built, place=place: time_prefill(
                        built, batch=1, length=length, keep=1, device=place, **repeats
                    ),
                    "decode, batch 1": lambda built=built, place=place: time_decode(
                        built, batch=1, prompt=DECODE_PROMPT, tokens=tokens, device=place, **repeats
                    ),
                }
                for kind, run in kinds.items():
                    yield from two_lines(
                        run(),
                        goals.STUDENTS[kind] if (name, budget) == ("paper", 0.0) else None,
                        row=7,
                        what=f"F = {budget:g}, {kind}",
                        shape=name,
                        threads=context.threads,
                    )
