"""Rows 1, 2, 4 and 9: whole training steps, each arm a process of its own."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import goals
from benchmarks.context import Context, available_bytes
from benchmarks.measures import Goal, Measure, arm, limits, ratio, say
from benchmarks.shapes import AFTER_SCHEDULE, Shape
from benchmarks.turns import Run, needed, race, seconds
from budgeted_lora.models.device import cpu_multiplies_bfloat16

NAMES = {"kd_full": "KD Full", "kd_lora": "KD LoRA", "f0.4": "F = 0.4", "f0": "F = 0"}
PEER = "Trainer + PEFT"
KINDS = {1: "online", 2: "cached"}
SAME_LOSS, SAME_IN_HALF = 1e-4, 1e-2  # largest relative difference of the first losses, in float32 and in autocast


def length(context: Context, shape: Shape) -> tuple[int, int]:
    """Rounds, and steps per turn."""
    if context.quick:
        return 2, 1
    return (7, 4) if shape.name == "mini" else (5, 1)


def against_trainer(context: Context, rows: list[int]) -> Iterator[Measure]:
    """Rows 1 and 2 in one race per shape, method and precision: the peer, ours with teacher online, with its cache."""
    for name in context.shapes:
        shape = context.shape(name)
        if reason := too_large(context, shape):
            for row in rows:
                yield Measure(row=row, what="step", shape=name, threads=context.threads, skipped=reason)
            continue
        precisions = [context.precision]
        if context.device == "cpu" and name == "paper" and not context.quick and cpu_multiplies_bfloat16():
            precisions += ["bfloat16"]
        for method in ("kd_full", "kd_lora"):
            for precision in precisions:
                yield from one_race(context, shape, method, rows=rows, precision=precision)


def too_large(context: Context, shape: Shape) -> str | None:
    """Why a shape is left out, if it is."""
    if shape.name != "1B":
        return None
    if context.quick:
        return "not in a quick run"
    wanted, free = 3 * shape.training_bytes(), available_bytes(context.device)
    if wanted > free:
        return f"three runs need about {wanted / 1e9:.0f} GB of memory; {free / 1e9:.0f} GB are free"
    return None


def one_race(context: Context, shape: Shape, method: str, *, rows: list[int], precision: str) -> Iterator[Measure]:
    rounds, steps = length(context, shape)
    options = context.run_options(shape, method, steps=needed(rounds, steps), precision=precision)
    half = precision != context.precision  # on a CPU, autocast on both sides
    runs = {"peer": partial(Run, "run_peer", options, threads=context.threads)}
    for row in rows:
        own = options | {"cached": KINDS[row] == "cached"} | ({"teacher": "half"} if half else {})
        runs[KINDS[row]] = partial(Run, "run_ours", own, threads=context.threads)
    say(f"  {shape.name}, {NAMES[method]}, {precision}: {', '.join(runs)}")
    answers, missing = race(runs, rounds=rounds, steps=steps)
    for row in rows:
        kind = KINDS[row]
        common: dict[str, Any] = {
            "row": row, "what": f"step, {NAMES[method]}{', bfloat16' if half else ''}", "against": PEER,
            "shape": shape.name, "threads": context.threads, "peer": True,
        }  # fmt: skip
        if kind not in answers or "peer" not in answers:
            absent = "peer" if "peer" in missing else kind
            own = arms(answers, shape, steps=steps, only=kind) if kind in answers else {}
            notes = [own[kind]["rate"]] if own else []
            yield Measure(**common, skipped=f"{absent} did not run: {missing[absent]}", arms=own, notes=notes)
            continue
        yield Measure(
            **common,
            **ratio(seconds(answers["peer"]), seconds(answers[kind])),
            **limits(goals.STEP[kind, method] if shape.name == "paper" else None),
            arms=arms(answers, shape, steps=steps, only=kind),
            notes=step_notes(answers, kind, shape, steps=steps, tolerance=SAME_IN_HALF if half else SAME_LOSS),
        )


def arms(answers: dict[str, Any], shape: Shape, *, steps: int, only: str) -> dict[str, Any]:
    """Seconds, tokens per second and peak memory of the peer and of one kind of ours."""
    found = {}
    for name in ("peer", only):
        if name in answers:
            own = arm(seconds(answers[name]))
            rate = steps * shape.tokens / own["median_s"]
            peak = answers[name][-1]["peak_bytes"]
            losses = [answer["loss"] for answer in answers[name]]
            found[name] = own | {
                "tokens_per_second": rate,
                "peak_bytes": peak,
                "losses": losses,
                "rate": f"{rate:,.0f} tokens/s, {peak / 2**30:.2f} GiB",
            }
    return found


def step_notes(answers: dict[str, Any], kind: str, shape: Shape, *, steps: int, tolerance: float) -> list[str]:
    """Rates, memory, and whether both computed the same loss."""
    found = arms(answers, shape, steps=steps, only=kind)
    first, last = (relative(answers["peer"][n]["loss"], answers[kind][n]["loss"]) for n in (0, -1))
    same = "" if first <= tolerance else "LOSSES DIFFER: "
    return [
        f"ours {found[kind]['rate']}; peer {found['peer']['rate']}",
        f"{same}loss differs by {first:.0e} at step 1, {last:.0e} at the end",
    ]


def relative(one: float, other: float) -> float:
    return abs(one - other) / abs(one)


def after_schedule(context: Context) -> Iterator[Measure]:
    """Row 4: time per step of a student without dense paths over that of KD Full, teacher of width 8 from its cache."""
    for name in [name for name in context.shapes if name != "1B"]:
        shape = context.shape(name)
        rounds, steps = length(context, shape)
        runs, methods = {}, ("kd_full", "f0") if context.quick else ("kd_full", "f0", "f0.4")
        for method in methods:
            changes = AFTER_SCHEDULE if method != "kd_full" else {}
            options = context.run_options(
                shape, method, steps=needed(rounds, steps), cached=True, teacher="narrow", changes=changes
            )
            runs[method] = partial(Run, "run_ours", options, threads=context.threads)
        say(f"  {name}: {', '.join(runs)}")
        answers, missing = race(runs, rounds=rounds, steps=steps)
        for method in methods[1:]:
            common: dict[str, Any] = {
                "row": 4, "what": f"{NAMES[method]} after its schedule, time per step", "against": "KD Full",
                "shape": name, "threads": context.threads, "better": "lower",
            }  # fmt: skip
            if missing:
                yield Measure(**common, skipped="; ".join(f"{run}: {why}" for run, why in missing.items()))
                continue
            goal = goals.AFTER_SCHEDULE if (method, name) == ("f0", "paper") else None
            yield Measure(
                **common | limits(goal),
                **ratio(seconds(answers[method]), seconds(answers["kd_full"])),
                arms={run: arm(seconds(answers[run])) for run in (method, "kd_full")},
                notes=["head frozen in the former, trained in the latter"] if method == "f0" else [],
            )


def against_commit(context: Context, *, checkout: Path, commit: str) -> Iterator[Measure]:
    """Row 9: one whole short training (schedule included, states from the cache), here and at another commit."""
    shape = context.shape("run")
    rounds, steps = (2, 2) if context.quick else (10, 6)
    for method in ("f0.4", "kd_full"):
        options = context.run_options(shape, method, steps=needed(rounds, steps), cached=True)
        options["changes"] = {"train_embeddings_head_norms": True, "betas": [0.9, 0.95]}
        runs = {
            "here": partial(Run, "run_ours", options, threads=context.threads),
            "there": partial(Run, "run_ours", options, threads=context.threads, source=checkout / "src"),
        }
        answers, missing = race(runs, rounds=rounds, steps=steps)
        common: dict[str, Any] = {
            "row": 9, "what": f"training, {NAMES[method]}", "against": f"commit {commit[:10]}", "shape": "mini",
            "threads": context.threads,
        }  # fmt: skip
        if missing:
            yield Measure(**common, skipped="; ".join(f"{name}: {why}" for name, why in missing.items()))
            continue
        goal: Goal | None = goals.TRAINING if method == "f0.4" else None
        rates = {name: len(seconds(own)) * steps * shape.tokens / sum(seconds(own)) for name, own in answers.items()}
        yield Measure(
            **common,
            **limits(goal),
            **ratio(seconds(answers["there"]), seconds(answers["here"])) | {"value": rates["here"] / rates["there"]},
            arms={name: arm(seconds(own)) for name, own in answers.items()},
            notes=[f"{rates['here']:,.0f} against {rates['there']:,.0f} tokens/s"],
        )
