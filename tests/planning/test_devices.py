"""Trainings that take several devices: their time, their memory, and what else runs beside them."""

import pytest
from fixtures.scales import costs_of, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.commands.show_costs import as_json, totals
from budgeted_lora.method.loop import Processes
from budgeted_lora.planning.devices import EFFICIENCY, Slots, of_one_process
from budgeted_lora.planning.memory import COLLECTIVES, PROCESS
from budgeted_lora.planning.storage import disk
from budgeted_lora.training.distributed import ProcessGroup

RECIPE = next(iter(tiny().graph.cells.values())).recipe


def test_a_training_on_two_devices() -> None:
    one, two = costs_of("paper", "a100-80gb"), costs_of("paper", "a100-80gb", gpus_per_run=2)
    for alone, shared in zip(one.cells, two.cells, strict=True):
        assert (shared.cell, shared.processes) == (alone.cell, 2)
        assert shared.train_seconds - 5 == pytest.approx((alone.train_seconds - 5) / (2 * EFFICIENCY))
        assert (shared.evaluate_seconds, shared.flops) == (alone.evaluate_seconds, alone.flops)
        assert shared.host_bytes == 2 * alone.host_bytes + PROCESS["cpu"], "each rank, and what starts them"
        summed = 4 * alone.state_bytes / 24  # gradients a second time
        assert shared.device_bytes - alone.device_bytes == pytest.approx(1.15 * summed + COLLECTIVES, abs=2)
    assert two.largest_other_host() == one.largest_other_host()
    assert [job.seconds for job in two.jobs] == [job.seconds for job in one.jobs]
    lost = sum(cell.train_seconds - 5 for cell in one.cells) * (1 / EFFICIENCY - 1) + 5 * len(one.cells)
    assert two.seconds() == pytest.approx(one.seconds() + lost)
    assert totals(two, gpus=2)["wall_hours"] > totals(one, gpus=2)["wall_hours"]
    assert totals(two, gpus=3)["wall_hours"] < totals(two, gpus=2)["wall_hours"], "the third takes the other jobs"
    about = as_json(two, gpus=5)["device"]
    assert (about["jobs_at_once"], about["gpus_per_run"], about["trainings_at_once"]) == (5, 2, 2)
    assert disk(two, slots=Slots(2, 2)).states == max(cell.state_bytes for cell in two.cells)


def test_processes_on_a_cpu_each_take_memory() -> None:
    alone, shared = tiny(), tiny(gpus_per_run=2)
    assert shared.cells[0].host_bytes == 2 * shared.cells[0].device_bytes + PROCESS["cpu"]
    assert shared.largest_host_bytes()[0] > 2 * alone.largest_training_host()[0]
    assert shared.largest_device_bytes()[0] < shared.largest_host_bytes()[0]


@settings(max_examples=60, deadline=None)
@given(processes=st.integers(1, 6), windows=st.integers(1, 12), micro=st.integers(1, 24))
def test_a_process_s_part_is_what_training_gives_it(processes: int, windows: int, micro: int) -> None:
    recipe = RECIPE.model_copy(update={"batch_windows": processes * windows, "micro_batch_windows": micro})
    part = of_one_process(recipe, processes=processes)
    last = ProcessGroup(number=processes - 1, count=processes) if processes > 1 else Processes()
    cut = last.micro_batches(processes * windows, micro_batch_windows=micro)
    mine = [len(range(*piece.indices(processes * windows))) for piece, here in cut if here]
    assert (sum(mine), max(mine)) == (part.batch_windows, min(part.micro_batch_windows, processes * windows))


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 8), per_run=st.integers(1, 4), training=st.integers(0, 50), other=st.integers(0, 50),
    have=st.integers(0, 300),
)  # fmt: skip
def test_memory_of_jobs_side_by_side(count: int, per_run: int, training: int, other: int, have: int) -> None:
    count = max(count, per_run)
    slots, sizes = Slots(count, per_run), {"training": training, "other": other}
    mixes = [(n, m) for n in range(count + 1) for m in range(count + 1) if n * per_run + m <= count]
    assert slots.trainings == max(n for n, _ in mixes)

    def most(jobs: int) -> int:
        return max(n * training + m * other for n, m in mixes if n + m <= jobs)

    assert slots.memory(**sizes) == most(count)
    fitting = [jobs for jobs in range(1, count + 1) if most(jobs) <= have]
    assert slots.jobs_within(have, **sizes) == max(fitting, default=0)


def test_the_wall_time_of_a_mix() -> None:
    assert Slots(2, 1).wall_seconds(trainings=10, others=4) == 7
    assert Slots(2, 2).wall_seconds(trainings=10, others=4) == 12, "a training leaves none to the others"
    assert Slots(3, 2).wall_seconds(trainings=10, others=4) == 10, "the others fit beside"
    assert Slots(5, 2).wall_seconds(trainings=10, others=40) == 12
