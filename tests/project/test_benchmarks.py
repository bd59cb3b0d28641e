"""The benchmarks run, compute the same as their peers, and report what they find. No test asserts a time."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import goals, loss, macs, report, run, shapes, students
from benchmarks.context import Context
from benchmarks.measures import Goal, Measure, limits, ratio, take_turns
from benchmarks.memory import peak_of
from benchmarks.steps import SAME_LOSS, against_trainer
from budgeted_lora.method.schedule import BudgetRule

ROOT = Path(__file__).resolve().parents[2]


def line(value: float | None, *, goal: Goal | None = None, **changed: object) -> Measure:
    return Measure(row=1, what="step", against="peer", value=value, **limits(goal), **changed)


def test_a_value_is_the_median_of_ratios_within_a_round() -> None:
    assert ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == {"value": 2.0, "q1": 2.0, "q3": 2.5}


def test_every_arm_takes_its_turn_and_another_one_begins_each_round() -> None:
    order: list[str] = []
    samples = take_turns({name: lambda name=name: order.append(name) or 1.0 for name in "ab"}, rounds=2, warm_up=0)
    assert order == ["a", "b", "b", "a"]
    assert samples == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("value", "better", "verdict"),
    [
        (0.9, "higher", "BEHIND ITS PEER"),
        (1.2, "higher", "BELOW ITS GOAL"),
        (1.5, "higher", "goal reached"),
        (2.0, "higher", "aim reached"),
        (None, "higher", "not measured"),
    ],
)
def test_verdicts(value: float | None, better: str, verdict: str) -> None:
    assert line(value, goal=Goal(at_least=1.4, aim=1.6, better=better), peer=True).verdict == verdict


def test_where_less_is_better_goals_are_upper_limits() -> None:
    goal = Goal(at_least=0.45, aim=0.42, better="lower")
    verdicts = [line(value, goal=goal).verdict for value in (0.48, 0.44, 0.4)]
    assert verdicts == ["BELOW ITS GOAL", "goal reached", "aim reached"]


def test_every_row_has_a_group_and_goals_are_in_order() -> None:
    assert [row for members in run.GROUPS for row in members] == list(goals.TITLES)
    tables = [goals.STEP, goals.MODULES, goals.STUDENTS, goals.STARTS]
    own = [goal for table in tables for goal in table.values()]
    own += [goal for goal in vars(goals).values() if isinstance(goal, Goal)]
    for goal in own:
        assert (goal.aim >= goal.at_least) if goal.better == "higher" else (goal.aim <= goal.at_least)


def result(*lines: Measure) -> dict[str, object]:
    machine = {
        "gpu": None, "cuda": None, "cpu": "a processor", "cores": 2, "cpu_capability": "AVX2", "memory_gb": 8,
        "load_before": 0.1, "system": "Linux", "python": "3", "libraries": {"torch": "2", "peft": None},
        "git_commit": "0123456789abcdef", "git_dirty": True, "date": "2026-01-01",
    }  # fmt: skip
    return {"machine": machine, "quick": False, "lines": list(lines)}


def test_results_are_written_and_lines_left_out_stay(tmp_path: Path) -> None:
    goal = Goal(at_least=1.4, aim=1.6)
    first = line(0.9, goal=goal, peer=True, shape="paper", q1=0.8, q3=1.0)
    others = [replace(first, row=2, value=1.5), replace(first, threads=2, value=1.6), replace(first, shape="mini")]
    broken = replace(first, shape="", value=None, skipped="broke")
    report.write(tmp_path / "cpu", result(first, broken, *others))
    report.write(tmp_path / "cpu", result(replace(first, value=None, skipped="no peer")))
    kept = json.loads((tmp_path / "cpu.json").read_text())["lines"]
    assert [(entry["row"], entry["threads"], entry["shape"], entry["value"]) for entry in kept] == [
        (1, 1, "paper", None),
        (1, 2, "paper", 1.6),
        (1, 1, "mini", 0.9),
        (2, 1, "paper", 1.5),
    ]
    assert {entry["commit"][:4] for entry in kept} == {"0123"}
    page = (tmp_path / "cpu.md").read_text()
    assert "skipped: no peer" in page
    assert "1.50x (0.80 to 1.00)" in page
    assert "commit 0123456789 with local changes" in page
    assert "peft missing" in page
    assert "<svg" in (tmp_path / "cpu.svg").read_text()


def test_a_line_behind_its_peer_is_printed_as_such() -> None:
    assert "**BEHIND ITS PEER**" in report.page(result(line(0.9, peer=True)))


def test_the_page_on_speed_has_a_place_for_the_table() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert re.search(r"<!-- begin speed -->\n.*<!-- end speed -->", page, re.DOTALL)
    shown = report.goals_table(result(line(1.5, goal=Goal(at_least=1.4, aim=1.6)), line(1.1)))
    assert "1.50x" in shown
    assert "1.10x" not in shown


def test_peers_are_pinned_and_shared_packages_are_those_of_the_lock() -> None:
    lock = set((ROOT / "requirements.lock").read_text().splitlines())
    pins = [text for text in (ROOT / "benchmarks" / "requirements.txt").read_text().splitlines() if text[0] != "#"]
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", pin) for pin in pins)
    assert {pin for pin in pins if pin.startswith(("torch", "transformers"))} <= lock
    assert not any(pin.partition("==")[0] + "==" in text for pin in pins for text in lock if pin not in lock)


def test_committed_results_hold_no_paths() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.*"):
        assert not re.search(r"(?<![\w.])/(root|home|tmp|work|Users)/", path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("head_trained", [True, False])
def test_our_loss_is_the_peers(head_trained: bool) -> None:
    given = loss.inputs(shapes.TINY, positions=20, head_trained=head_trained, device=torch.device("cpu"))
    gradients = []
    for function in (loss.ours, loss.eager):
        given.clear()
        value = function(given)
        value.backward()
        gradients.append([value.detach(), *given.gradients()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_peak_memory_counts_what_a_call_allocates_and_does_not_return() -> None:
    def call() -> list[torch.Tensor]:
        large = torch.empty(1000, dtype=torch.float32)
        del large
        return [torch.empty(5000, dtype=torch.float32)]

    found = peak_of(call, device="cpu")
    assert 4000 <= found.extra < 20_000
    assert max(found.sizes) == found.extra


def test_the_counted_run_agrees_with_the_recorded_one() -> None:
    shape = replace(shapes.TINY, windows=1, length=8)
    full, budgeted = (
        macs.counted_run(shape, method, steps=4, device=torch.device("cpu")) for method in ("kd_full", "f0")
    )
    assert full.executed == 1.0
    assert 0 < budgeted.flops < full.flops * 2
    rule = BudgetRule(budget=0.0, start=0.0, end=0.0, smoothing=0.0)
    assert macs.executed_share(shapes.TINY, rule, steps=3) == 0.0


def test_the_plain_peer_has_the_sizes_of_the_compressed_student() -> None:
    context = Context(threads=1, device="cpu", quick=True, folder=Path())
    built = students.models(context, shapes.TINY, budget=0.0, length=16, device=torch.device("cpu"))
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in built.items()}
    assert sizes["plain"] == sizes["compressed"] < sizes["dense"]
    assert all(len(shapes.TINY.modules(budget=budget)) == 14 for budget in (0.0, 0.4))


def test_a_race_of_training_runs(tmp_path: Path) -> None:
    """Ours runs with and without cache; the line of a peer that is not installed says so."""
    context = Context(threads=1, device="cpu", quick=True, folder=tmp_path, shapes=["tiny"])
    lines = list(against_trainer(context, [1, 2]))
    assert [(line.row, line.what) for line in lines] == [
        (row, f"step, {name}") for name in ("KD Full", "KD LoRA") for row in (1, 2)
    ]
    for found in lines:
        own = found.arms["online" if found.row == 1 else "cached"]
        assert own["peak_bytes"] > 0
        if find_spec("accelerate") is None or find_spec("peft") is None:
            assert found.skipped.startswith("peer did not run")
        else:
            away = abs(own["losses"][0] - found.arms["peer"]["losses"][0]) / own["losses"][0]
            assert away <= SAME_LOSS
