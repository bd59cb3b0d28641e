"""Row 8: our forward passes for scoring and for the teacher cache, against transformers' own."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from benchmarks import goals
from benchmarks.context import Context
from benchmarks.measures import Measure, arm, limits, ratio, say, take_turns
from budgeted_lora.data.tokens import Windows
from budgeted_lora.evaluation.perplexity import perplexity
from budgeted_lora.models.attention import attend_as_teacher
from budgeted_lora.models.decoder import load_decoder
from budgeted_lora.models.device import multiply_wide, on_device
from budgeted_lora.models.load import load_model
from budgeted_lora.training.cache import final_hidden

PEER = "transformers"


def plain_perplexity(model: Any, windows: Windows, *, batch_windows: int) -> float:
    """As one writes it with transformers: whole logits, then cross entropy in float32."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    with torch.no_grad():
        for start in range(0, windows.count, batch_windows):
            ids, _ = windows.read(np.arange(start, min(start + batch_windows, windows.count)))
            tokens = torch.from_numpy(ids).to(device)
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            total += float(functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum"))
            count += logits.shape[0]
    return math.exp(total / count)


def plain_hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(input_ids=ids, use_cache=False).last_hidden_state


def timed(run: Callable[[], Any], *, hidden: int, device: torch.device) -> Callable[[], float]:
    """A turn of `run`, with the products that the stages choose for a hidden size; 0 leaves torch's own."""

    def seconds() -> float:
        multiply_wide(hidden, device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return seconds


def measure(context: Context) -> Iterator[Measure]:
    for name in [name for name in context.shapes if name != "1B"]:
        shape, world = context.shape(name), context.world(name)
        windows = world.windows(length=shape.length)
        say(f"  {name}: {windows.count} windows of {shape.length}")
        with on_device(context.device, threads=context.threads) as place:
            scoring = load_decoder(world.teacher(), dtype=None).to(place)  # as the stages load them
            caching = attend_as_teacher(load_model(world.teacher(), dtype=None)).to(place)
            theirs = AutoModelForCausalLM.from_pretrained(world.teacher(), dtype="auto", attn_implementation="sdpa")
            theirs = theirs.eval().to(place)
            batch = torch.from_numpy(windows.read(np.arange(shape.windows))[0]).to(place)
            size = shape.windows
            scores = {
                "ours": lambda ours=scoring, windows=windows, size=size: (
                    perplexity(ours, windows, token_limit=None, batch_windows=size).value
                ),
                PEER: lambda theirs=theirs, windows=windows, size=size: plain_perplexity(
                    theirs, windows, batch_windows=size
                ),
            }
            states = {
                "ours": lambda ours=caching, batch=batch: final_hidden(ours, batch),
                PEER: lambda theirs=theirs, batch=batch: plain_hidden(theirs, batch),
            }
            one, other = scores["ours"](), scores[PEER]()
            away = float((states["ours"]() - states[PEER]()).abs().max())
            notes = {
                "scoring": f"perplexity differs by {abs(one - other) / other:.0e}",
                "teacher cache": f"states differ by {away:.0e}",
            }
            for what, arms in {"scoring": scores, "teacher cache": states}.items():
                samples = take_turns(
                    {
                        name: timed(run, hidden=shape.hidden if name == "ours" else 0, device=place)
                        for name, run in arms.items()
                    },
                    rounds=context.rounds(7),
                )
                yield Measure(
                    row=8,
                    what=f"forward pass of the teacher, {what}",
                    against=PEER,
                    shape=name,
                    threads=context.threads,
                    peer=True,
                    **ratio(samples[PEER], samples["ours"]),
                    **limits(goals.FORWARD if name == "paper" else None),
                    arms={name: arm(own) for name, own in samples.items()},
                    notes=[notes[what]],
                )
