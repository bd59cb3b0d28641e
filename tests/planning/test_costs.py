"""What a scale costs before it runs: counts made by hand, memory against what autograd really keeps, the commands."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.scales import GIB, ROOT, TINY, costs_of, graph_of, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.commands import app as cli
from budgeted_lora.commands.plan import energy_of
from budgeted_lora.commands.show_costs import as_json, render_costs, totals
from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_json
from budgeted_lora.method.cost import ModelShape
from budgeted_lora.method.projections import install
from budgeted_lora.models.load import mistral_config, new_model
from budgeted_lora.planning import devices
from budgeted_lora.planning.costs import PROMPT_TOKENS, Measured, ScaleCosts, calibration_key
from budgeted_lora.planning.devices import GPUS, Slots, matching, named_device
from budgeted_lora.planning.memory import KEPT, Network, evaluation_bytes, training_bytes
from budgeted_lora.planning.storage import disk

# --- FLOPs and time, by hand


def test_flops_of_the_papers_cells() -> None:
    """Per token: a forward pass of each teacher, and a student's step, counted by hand at a vocabulary of 32,000."""
    costs = costs_of("paper", "a100-80gb").of("table2")
    forward = {"0.13B": 273e6, "0.5B": 1041e6, "1B": 2245e6}
    step = {("kd_full", None): 484e6, ("kd_lora", None): 408e6, ("budgeted_lora", 0.4): 309e6}
    seen = set()
    for cell in costs.cells:
        assert cell.tokens == 38_909 * 2**16
        assert cell.teacher_flops / cell.tokens == pytest.approx(forward[cell.teacher], rel=2e-3)
        if (cell.method, cell.budget) in step:
            seen.add((cell.method, cell.budget))
            assert cell.student_flops / cell.tokens == pytest.approx(step[cell.method, cell.budget], rel=3e-3)
    assert seen == set(step)


def test_time_is_flops_over_the_assumed_rate() -> None:
    costs = costs_of("paper", "a100-80gb")
    cell = next(cell for cell in costs.cells if cell.method == "kd_full" and cell.teacher == "1B")
    expected = cell.teacher_flops / (312e12 * 0.40) + cell.student_flops / (312e12 * 0.22)
    assert cell.train_seconds == pytest.approx(expected, abs=10)
    doubled = ScaleCosts(costs.graph, named_device("a100-80gb", costs.config, utilisation=0.8))
    halved = ScaleCosts(costs.graph, named_device("a100-80gb", costs.config, utilisation=0.4))
    assert halved.cells[0].train_seconds == pytest.approx(2 * doubled.cells[0].train_seconds, rel=1e-3)


def test_a_cache_takes_the_teacher_out_of_training() -> None:
    cached, online = tiny(), tiny(training=TINY["training"] | {"teacher_cache": "online"})
    head = 2 * 32 * 64
    assert cached.cells[0].teacher_flops == cached.cells[0].tokens * head
    [job] = [job for job in cached.jobs if job.job == "cache teacher A_400"]
    assert job.flops + cached.cells[0].teacher_flops == pytest.approx(online.cells[0].teacher_flops)
    assert job.disk_bytes == 6400 * 32 * 4
    assert not [job for job in online.jobs if job.job.startswith("cache")]


def test_the_sums_are_those_of_the_parts() -> None:
    costs = tiny()
    sums, main = totals(costs, gpus=1), totals(costs.of("main"), gpus=1)
    assert (sums["cells"], main["cells"]) == (6, 5)
    assert sums["flops"] == pytest.approx(sum(c.flops for c in costs.cells) + sum(j.flops for j in costs.jobs))
    seconds = sum(c.train_seconds + c.evaluate_seconds for c in costs.cells) + sum(j.seconds for j in costs.jobs)
    assert sums["device_hours"] == pytest.approx(seconds / 3600)
    assert totals(costs, gpus=1000)["wall_hours"] == pytest.approx(
        max([c.hours for c in costs.cells] + [j.seconds / 3600 for j in costs.jobs])
    )


def test_what_a_target_of_its_own_adds_is_what_all_lacks() -> None:
    costs = costs_of("paper")
    everyday, both = costs.of("all"), costs.of("all", "sensitivity")
    assert {cell.cell for cell in both.cells} == {cell.cell for cell in costs.cells}
    added = [cell for cell in costs.cells if cell.tables == ("sensitivity",)]
    assert len(both.cells) - len(everyday.cells) == len(added)
    lines = render_costs(costs, gpus=1).splitlines()
    [count, _, _, said] = next(line.split()[2:6] for line in lines if line.startswith("sensitivity besides "))
    assert int(count) == len(added)
    hours = sum(cell.hours for cell in added)
    assert hours - 0.05 <= float(said) <= hours + 1.0  # and the student of Table 8 that is compressed twice more


@settings(max_examples=30, deadline=None)
@given(budgets=st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True).map(sorted))
def test_a_smaller_budget_costs_less(budgets: list[int]) -> None:
    rows = [{"method": "budgeted_lora", "budget": value / 20} for value in budgets]
    small, large = tiny(tables={"table2": rows}).cells
    assert small.student_flops < large.student_flops
    assert small.teacher_flops == large.teacher_flops
    assert small.train_seconds < large.train_seconds


def test_prompts_are_paid_by_the_cells_that_answer_them() -> None:
    rows = {"table6": [{"method": "kd_lora", "rank": 2}], "beyond": [{"method": "kd_lora", "rank": 3}]}
    by_table = {cell.tables: cell for cell in tiny(tables=TINY["tables"] | rows).cells}
    alone, beyond = by_table[("table6",)], by_table[("beyond",)]
    forward = 2 * 2 * (2 * 32 * 32 + 2 * 32 * 8 + 3 * 32 * 64) + 2 * 2 * 32 * 16 + 2 * 32 * 64
    asked = 19 * 210 * 3 * PROMPT_TOKENS
    assert beyond.evaluation_flops - alone.evaluation_flops == pytest.approx(asked * forward)
    assert by_table[("table2",)].evaluation_flops == beyond.evaluation_flops


def test_untrained_students_are_scored_where_a_table_shows_them() -> None:
    rows = {"table4": [{"method": "kd_full", "init": ["first", "mixed"]}]}
    costs = tiny(tables=TINY["tables"] | rows)
    jobs = [job.job for job in costs.jobs]
    assert "evaluate untrained mixed" in jobs
    assert "evaluate untrained first" not in jobs
    assert disk(costs, slots=Slots(1)).students == 2 * 4 * costs.student(None).parameters, "but both are cut"


def test_statistics_are_measured_once_a_student() -> None:
    """By hand: both passes of 64 windows, d_in^2 more for each of 14 projections; 43 forward ones of 16."""
    rows = {"beyond": [{"method": "budgeted_lora", "budget": [0.4, 0.0], "order": "activation"}]}
    costs = tiny(tables=TINY["tables"] | rows)
    [job] = [job for job in costs.jobs if job.kind == "measure"]
    squares = 2 * (6 * 32**2 + 64**2)
    dense = 2 * (2 * 32 * 32 + 2 * 32 * 8 + 3 * 32 * 64)
    assert (job.job, job.tokens, job.disk_bytes) == ("measure statistics of mixed", 64 * 16, 4 * (squares + dense))
    forward = 2 * dense + 2 * 2 * 32 * 16 + 2 * 32 * 64
    assert job.flops == pytest.approx(64 * 16 * (3 * forward + 2 * squares) + 16 * 16 * 43 * forward)
    assert disk(costs, slots=Slots(1)).statistics == job.disk_bytes
    assert not [job for job in tiny().jobs if job.kind == "measure"]
    kept = {"table2": [{"method": "kd_full", "compression": "cut"}]}
    cut = {"cut": {"macs_of_budget": [0.4], "truncation": ["outputs"], "undistilled": [True]}}
    assert [job.kind for job in tiny(tables=kept, sweeps=cut).jobs].count("measure") == 1


# --- memory


def kept_bytes(kind: str, *, precision: str, layers: int, windows: int, hidden: int, heads: int, ffn: int) -> int:
    """What autograd keeps of a forward pass over `windows` windows of 32 tokens, weights and their casts included."""
    shape = {"hidden": hidden, "ffn": ffn, "heads": heads, "kv_heads": 1}
    config = mistral_config(layers=layers, **shape, vocab_size=32, context=64, end_id=0)
    model = new_model(config, seed=0).train()
    if kind != "dense":
        dropout = 0.05 if kind == "dropout" else 0.0
        install(model, rank=8, alpha=16, dropout=dropout, gates=True, seed=0)
    held: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 32, (windows, 32))
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        hidden_states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden_states.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize(("precision", "kind"), KEPT)
def test_what_a_layer_keeps_is_what_autograd_keeps(precision: str, kind: str) -> None:
    """The difference of differences leaves one layer and its tokens: no weight, no cast of one, no embedding."""
    sizes = {"precision": precision, "hidden": 64, "heads": 4, "ffn": 160}
    counts = {
        (layers, windows): kept_bytes(kind, layers=layers, windows=windows, **sizes)
        for layers in (1, 2)
        for windows in (2, 4)  # enough tokens for merged weights
    }
    slope = (counts[2, 4] - counts[1, 4] - counts[2, 2] + counts[1, 2]) / (2 * 32)
    expected = KEPT[precision, kind].bytes(ModelShape(1, 64, 16, 160), rank=8)
    assert slope == pytest.approx(expected, rel=0.05)


def test_training_memory_follows_batch_and_method() -> None:
    graph = graph_of("paper")
    costs = ScaleCosts(graph, GPUS["a100-80gb"])
    recipes = {graph.recipe_of(name).method: graph.recipe_of(name) for name in graph.cells}
    sizes = {"student": costs.student(None), "precision": "bfloat16", "online": True, "device": "cuda"}
    full, lora = (
        training_bytes(recipes[method], teacher=costs.teacher("0.13B"), **sizes) for method in ("kd_full", "kd_lora")
    )
    larger = training_bytes(recipes["kd_full"], teacher=costs.teacher("1B"), **sizes)
    assert larger - full == pytest.approx(1.15 * 2 * (1.126e9 - 0.152e9), rel=0.2), "mostly the teacher's weights"
    assert lora > full, "what dropout and the low-rank paths keep outweighs the moments of the dense weights"
    half = recipes["kd_full"].model_copy(update={"micro_batch_windows": 8})
    assert full - training_bytes(half, teacher=costs.teacher("0.13B"), **sizes) > 2 * GIB


def test_attention_in_blocks_keeps_its_probabilities_on_a_cpu() -> None:
    graph = graph_of("paper")
    recipe = graph.recipe_of(next(iter(graph.cells)))
    costs = ScaleCosts(graph, GPUS["a100-80gb"])
    about = {"teacher": costs.teacher("0.13B"), "precision": "float32", "online": False, "device": "cpu"}
    short, long = (recipe.model_copy(update={"sequence_length": length}) for length in (1024, 1025))
    assert (costs.student(None).heads, recipe.sequence_length) == (12, 1024)
    kept = training_bytes(short, student=costs.student(None), **about)
    alone = training_bytes(long, student=costs.student(None), **about)
    assert kept - alone == pytest.approx(1.15 * 4 * 6 * 12 * 512 * 1024 * recipe.micro_batch_windows, rel=0.05)


def test_prompts_need_their_cache() -> None:
    network = Network(ModelShape(30, 1536, 384, 6144), 32_000)
    fixed = {"tokens": 1024, "prompt_tokens": 400, "device": "cuda"}
    alone = evaluation_bytes([network], prompts=0, **fixed)
    assert evaluation_bytes([network], prompts=64, **fixed) - alone > 2 * 30 * 4 * 384 * 64 * 400 / 2
    assert evaluation_bytes([network, network], prompts=0, **fixed) > 1.9 * 4 * network.parameters


# --- the scales between


def test_a_day_or_two_on_one_card_of_24_gigabytes() -> None:
    for name, hours in {"rtx4090": 36, "rtx3090": 62}.items():
        costs = costs_of("single-gpu", name)
        assert totals(costs.of("main"), gpus=1)["device_hours"] < hours
        assert costs.largest_device_bytes()[0] < 20 * GIB, "room for a desktop and for what the estimate misses"
    paper = costs_of("paper")
    mine, papers = ([cell.tokens for cell in one.of("main").cells] for one in (costs, paper))
    assert [10 * tokens for tokens in mine] == pytest.approx(papers, rel=1e-3)
    assert costs.config.teacher_ladder == paper.config.teacher_ladder
    assert costs.config.tables == paper.config.tables


def test_half_an_hour_on_one_card() -> None:
    for name in ("rtx4090", "a100-80gb"):
        costs = costs_of("gpu-hour", name)
        assert totals(costs.of("main"), gpus=1)["device_hours"] < 0.6
        assert costs.largest_device_bytes()[0] < 20 * GIB
    shape = costs.student(None).shape
    assert (shape.layers, shape.hidden, shape.kv, shape.ffn) == (6, 768, 192, 3072)
    assert (costs.config.lora.rank, costs.precision) == (128, "bfloat16")


# --- devices


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: False)
    config = graph_of("paper").config
    assert named_device(None, config).name == "a100-80gb"
    assert named_device(None, graph_of("mini").config).name == "cpu"
    assert named_device("h100", config).computes_in("bfloat16") == "bfloat16"
    slow = named_device("cpu", config)
    assert slow.computes_in("bfloat16") == "float32"
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: True)
    fast = named_device("cpu", config)
    assert (fast.computes_in("bfloat16"), fast.computes_in("float32")) == ("bfloat16", "float32")
    assert fast.rate("bfloat16", gradients=True) == 2 * slow.rate("bfloat16", gradients=True)
    with pytest.raises(BadInput, match="--device 'v100': expected one of a100-80gb, "):
        named_device("v100", config)


@pytest.mark.parametrize(
    ("driver", "entry"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"), ("something else", "a100-80gb"),
    ],
)  # fmt: skip
def test_a_driver_s_name_finds_its_entry(driver: str, entry: str) -> None:
    device = matching(driver)
    assert device.name == driver
    assert (device.bfloat16, device.memory_bytes) == (GPUS[entry].bfloat16, GPUS[entry].memory_bytes)


# --- measured instead of assumed


def test_a_measured_time_lies_between_whole_and_without() -> None:
    costs = tiny()
    recipe = next(costs.graph.recipe_of(cell.cell) for cell in costs.cells if cell.budget == 0.0)
    measured = {calibration_key(recipe): Measured(whole=1e-3, without=5e-4, peak_bytes=1)}
    timed = ScaleCosts(costs.graph, costs.device, measured=measured)
    by_budget = {cell.budget: cell for cell in timed.cells if cell.method == "budgeted_lora"}
    # rho is 0.2 at F = 0 and 0.52 at F = 0.4 for the short schedule (method, section 6)
    assert by_budget[0.0].train_seconds == pytest.approx(6400 * (5e-4 + 0.2 * 5e-4) + 5)
    assert by_budget[0.4].train_seconds == pytest.approx(6400 * (5e-4 + 0.52 * 5e-4) + 5)
    assert [cell.measured for cell in timed.cells].count(True) == 2


@pytest.mark.parametrize("cache", ["hidden", "online"])
def test_calibration_times_every_kind_of_cell(cache: str) -> None:
    from budgeted_lora.planning.measure import calibrate

    costs = tiny(training=TINY["training"] | {"teacher_cache": cache})
    measured, skipped = calibrate(costs, threads=1)
    assert skipped == []
    assert measured.keys() == {calibration_key(costs.graph.recipe_of(name)) for name in costs.graph.cells}
    assert all(item.whole > 0 and item.without > 0 and item.peak_bytes > 0 for item in measured.values())
    assert all(cell.measured for cell in ScaleCosts(costs.graph, costs.device, measured=measured).cells)


def test_what_would_take_minutes_is_not_measured() -> None:
    from budgeted_lora.planning.measure import calibrate

    measured, skipped = calibrate(costs_of("paper", "cpu", threads={"training": 1}), threads=1)
    assert measured == {}
    assert all("per micro-batch, not measured" in line for line in skipped)


# --- the commands


class Run:
    """The command line in this process: status, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["budgeted-lora", *map(str, words)])
        self.capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *self.capsys.readouterr()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(capsys, monkeypatch)


HERE = ("--config-folder", ROOT / "config")


def test_json_of_a_scale_stays_a_list_and_costs_are_an_object(run: Run) -> None:
    status, out, err = run("plan", "--scale", "paper", "--json", *HERE)
    assert (status, err) == (0, "")
    assert all("modules" in item for item in json.loads(out))
    status, out, err = run("plan", "--scale", "paper", "--costs", "--json", "--device", "h100", "--gpus", 2, *HERE)
    assert (status, err) == (0, "")
    about = json.loads(out)
    assert about["device"]["name"] == "h100"
    assert {"cell", "tokens", "teacher_flops", "student_flops", "train_seconds", "device_bytes"} <= set(
        about["cells"][0]
    )
    assert len(about["cells"]) == about["total"]["cells"]
    assert about["main"]["cells"] < about["all"]["cells"] < about["total"]["cells"]
    assert about["total"]["wall_hours"] == pytest.approx(about["total"]["device_hours"] / 2)
    assert about == json.loads(json.dumps(as_json(costs_of("paper", "h100"), gpus=2)))


def test_text_of_a_scale_has_structures_and_costs(run: Run) -> None:
    status, out, _ = run("plan", "--scale", "paper", *HERE)
    assert status == 0
    assert "29,491,200" in out
    assert render_costs(costs_of("paper"), gpus=1) in out
    sums = out.split("GPU-hours")[1].splitlines()[1:4]
    assert [line.split("  ")[0] for line in sums] == ["main", "all", "sensitivity besides"]
    status, out, _ = run("plan", "--scale", "paper", "--costs", *HERE)
    assert "29,491,200" not in out
    assert out == render_costs(costs_of("paper"), gpus=1)


def test_values_laid_on_top_change_the_plan(run: Run) -> None:
    _, out, _ = run(
        "plan", "--scale", "paper", "--costs", "--json", "--config", "tables={table2: [{method: kd_full}]}", *HERE
    )
    assert json.loads(out)["total"]["cells"] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--scale", "paper", "--rank", 64), "--rank beside --scale, whose file defines the shape"),
        (("--scale", "paper", "--layers", 6, "--budget", 0.1), "--layers, --budget beside --scale"),
        (("--scale", "paper", "--json", "--device", "h100"), "--device with --json: a list of structures has no costs"),
        (("--scale", "paper", "--calibrate", "--device", "h100"), "--device with --calibrate"),
        (("--scale", "paper", "--calibrate", "--utilisation", 0.5), "--utilisation with --calibrate"),
        (
            ("--scale", "paper", "--config", "gpus_per_run=4", "--gpus", 3),
            "--gpus 3: each student trains on 4 (gpus_per_run); expected at least 4",
        ),
        (("--scale", "paper", "--device", "v100"), "--device 'v100': expected one of a100-80gb"),
        (("--costs",), "--costs without --scale"),
        (("--gpus", 2, "--hidden", 96), "--gpus without --scale"),
        (("--config", "rows=document"), "--config without --scale"),
    ],
)  # fmt: skip
def test_flags_that_would_be_ignored_are_refused(run: Run, words: tuple, expected: str) -> None:
    where = HERE if "--scale" in words else ()
    status, out, err = run("plan", *words, *where)
    assert (status, out) == (2, "")
    assert err.startswith(f"budgeted-lora: {expected}")
    assert err.count("\n") == 1


def test_plan_calibrates_on_this_machine(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    status, out, _ = run("plan", "--scale", "tiny", "--config-folder", tmp_path, "--costs", "--json", "--calibrate")
    assert status == 0
    about = json.loads(out)
    assert all(cell["measured"] for cell in about["cells"])
    assert len(about["measured"]) == 5


def test_energy_of_finished_trainings_tells_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By joules per FLOP; a training on a CPU says nothing."""
    monkeypatch.chdir(tmp_path)
    costs = tiny()
    assert energy_of(costs) is None
    first, second, *_ = costs.cells
    for cell, gpu in ((first, {"joules": 7.2e6}), (second, None)):
        path = Path(costs.graph.results) / "cells" / cell.cell / "train.json"
        write_json(path, {"gpu": gpu} if gpu else {})
    flops = [cell.teacher_flops + cell.student_flops for cell in costs.cells]
    energy = energy_of(costs)
    assert (energy.trainings, energy.joules) == (1, 7.2e6)
    assert energy.all_joules == pytest.approx(7.2e6 * sum(flops) / flops[0])
    assert "Energy: 1 finished training took 2 kWh" in render_costs(costs, gpus=1, energy=energy)
    assert as_json(costs, gpus=1, energy=energy)["energy"]["joules"] == 7.2e6
