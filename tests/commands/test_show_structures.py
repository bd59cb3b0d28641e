"""What `plan` prints of a scale: each structure once, sums once, nothing wider than a terminal."""

import json
from pathlib import Path

import pytest
from fixtures.scales import costs_of, tiny

from budgeted_lora.commands.show_costs import render_costs, render_structures, structures_json
from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import projections
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import student_shape

# ---- structure of each budget -----------------------------------------------------------------------------------


BEYOND = {
    "table2": [{"method": "kd_full"}, {"method": "budgeted_lora", "budget": [0.4, 0.0]}],
    "pareto": [{"method": "budgeted_lora", "budget": 0.0, "controller": "uniform"}],
    "table7": [{"method": "budgeted_lora", "budget": 0.4, "order": "energy"}],
    "beyond": [{"method": "budgeted_lora", "budget": [0.4, 0.0], "ranks": "allocated"}],
}


def compressed(graph: Graph, cell: str, *, variant: str = "default") -> Path:
    """The record of a compression that kept layer 0 and dropped the rest, at half the rank."""
    shape = student_shape(graph.config)
    modules = [
        {
            "name": module.name, "d": 1.0 if module.layer == 0 else 0.0, "lora_rank": 2, "svd_rank": 0,
            "decision": "keep" if module.layer == 0 else "drop",
            "macs": module.macs if module.layer == 0 else module.low_rank_macs(2),
        }
        for module in projections(shape)
    ]  # fmt: skip
    path = Path(graph.of_cells([cell], f"compressed/{variant}/compression.json")[0])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"modules": modules}))
    return path


def test_each_structure_is_printed_once() -> None:
    """Both controllers drop everything at F = 0: one line of the table, one paragraph."""
    graph = tiny(tables=BEYOND).graph
    text = render_structures(graph)
    assert len(graph.structures()) == 3
    assert [line for line in text.splitlines() if line.startswith("F =")] == [
        "F = 0, greedy and uniform controller",
        "F = 0.4, greedy controller",
    ]
    assert text.count("all 14 modules") == 1
    assert text.count(" short ") == 2
    assert text.count("from 0.1 to 0.3 of the steps") == 1
    assert "controller" not in render_structures(tiny().graph), "where there is one it goes without saying"


def test_a_structure_of_its_own_is_known_after_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = tiny(tables=BEYOND).graph
    own = [cell for cell in graph.cells if "energy" in cell or "ranks" in cell]
    before = render_structures(graph)
    assert len(own) == 3
    assert before.split("known after `compress`")[1].split("\n", 1)[1].split() == own
    planned = structures_json(graph)
    path = compressed(graph, own[0])
    after = render_structures(graph)
    assert after.split("as it was compressed\n")[1].splitlines()[:4] == [
        "  F = 0.4: 9,696 MACs per token, 1.80x on dense, 2.20x on LoRA, 54.6 % fewer than dense+LoRA",
        "  keep: layer 0 q, k, v, o, gate, up, down",
        "  svd: none",
        "  drop: layer 1 q, k, v, o, gate, up, down",
    ]
    assert after.split("known after `compress`")[1].split("\n", 1)[1].split() == own[1:]
    *rest, mine = structures_json(graph)
    assert rest == planned
    assert (mine["cell"], mine["variant"], mine["budget"]) == (own[0], "default", 0.4)
    assert (mine["kept"], mine["dropped"]) == (7, 7)
    assert {module["rank"] for module in mine["modules"]} == {2}
    alone = render_structures(tiny(tables={"table7": BEYOND["table7"]}).graph)
    assert alone.strip().startswith(own[0]), "a scale whose every order is its own has no other structure to show"
    path.write_text('{"modules": [{"name": "model.layers.9.mlp.up_proj"}]}')
    with pytest.raises(BadInput, match=r"compression.json: not the record of a compression \(KeyError"):
        render_structures(graph)


def test_structures_of_one_student_say_which_variant_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"method": "budgeted_lora", "budget": "elastic", "low_rank_init": "svd", "order": "gradient"}
    sweep = {"budget": [0.0, 0.4, 0.8], "rank_multiple": [1, 2]}
    graph = tiny(tables={"elastic": [row | {"compression": "dial"}]}, sweeps={"dial": sweep}).graph
    [cell] = graph.cells
    names = list(graph.cells[cell].variants)
    for name in names[2:4]:
        compressed(graph, cell, variant=name)
    text = render_structures(graph)
    assert [line for line in text.splitlines() if "as it was" in line] == [
        f"{cell} F0.4, as it was compressed",
        f"{cell} F0.4_multiple2, as it was compressed",
    ]
    waiting = text.split("known after `compress`:\n")[1]
    assert " ".join(waiting.split()) == f"{cell}: F0.0, F0.0_multiple2, F0.8, F0.8_multiple2"
    assert max(map(len, waiting.splitlines())) <= 100
    places = [(item["variant"], item["budget"]) for item in structures_json(graph)]
    assert places == [(name, 0.4) for name in names[2:4]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_printed_fits_a_hundred_columns(ranks: int) -> None:
    for costs in (tiny(tables=BEYOND, gpus_per_run=ranks), costs_of("paper", "a100-80gb", gpus_per_run=ranks)):
        text = render_structures(costs.graph) + render_costs(costs, gpus=2)
        assert [line for line in text.splitlines() if len(line) > 100] == []
        assert all(text.count(cell) >= 1 for cell in costs.graph.cells)
        assert ("trains on 2 of 2 devices, at 90% of the speed" in " ".join(text.split())) == (ranks == 2)


def test_sums_are_printed_once() -> None:
    costs = costs_of("paper", "a100-80gb")
    lines = render_costs(costs, gpus=2).splitlines()
    [main] = [line for line in lines if line.startswith("main")]
    assert main.split()[1:3] == ["18", f"{18 * 38_909 * 2**16:,}"]
    for word in ("GPU-hours", "on 2 GPUs", "Vocabulary", "Most memory", "in all", "data sheet"):
        assert sum(word in line for line in lines) == 1, word
    assert len([line for line in lines if line.startswith("all ")]) == 1
    small = render_costs(costs.of("main"), gpus=2).splitlines()
    assert not [line for line in small if line.startswith("all ")], "main is everything"
    host = render_costs(tiny(), gpus=1)
    assert host.count("of the host") == 1
    assert "on a GPU" not in host


def test_cells_of_equal_cost_share_their_numbers() -> None:
    rows = {"table2": [{"method": "kd_lora", "seed": [0, 1, 2]}, {"method": "kd_full"}]}
    costs = tiny(tables=rows)
    lines = render_costs(costs, gpus=1).splitlines()
    first = lines.index(costs.cells[0].cell)
    assert lines[first : first + 3] == [cell.cell for cell in costs.cells[:3]]
    assert lines[first + 3].split()[:2] == ["6,400", f"{costs.cells[0].teacher_flops:.2e}"]
    assert lines[first + 4] == costs.cells[3].cell
