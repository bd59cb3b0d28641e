"""Which layers change hidden states, and students of those that do."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_decoder import tiny
from fixtures.training_world import LENGTH, VOCABULARY, make_world

from budgeted_lora.beyond.importance import block_influence
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.models.load import load_model
from budgeted_lora.models.student import cut, layer_indices
from budgeted_lora.stages.cut_student import Calibration, cut_student

CALIBRATION = Calibration(windows=5, batch_windows=2, sequence_length=LENGTH, rows="packed")


def test_influence_is_one_minus_the_cosine_in_float64() -> None:
    """Against the hidden states that transformers returns; padding does not count."""
    model = tiny(layers=4)
    ids = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.no_grad():
        # The last one that it returns is normalised, so that of the last layer is taken from the layer itself.
        states = list(model.model(input_ids=ids, output_hidden_states=True).hidden_states)
        last = []
        model.model.layers[3].register_forward_hook(lambda _, __, output: last.append(output))
        model.model(input_ids=ids)
    states[-1] = last[0][0] if isinstance(last[0], tuple) else last[0]
    expected = []
    for before, after in pairwise(states):
        x, y = before[mask].double().numpy(), after[mask].double().numpy()
        cosines = (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
        expected.append(np.mean(1 - cosines))
    halves = [(ids[:2], mask[:2]), (ids[2:], mask[2:])]
    assert block_influence(model, halves) == pytest.approx(expected, rel=1e-6)


def test_a_layer_that_does_nothing_goes_first() -> None:
    model = tiny(layers=5)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[2].get_submodule(name).weight.zero_()
    ids = torch.arange(20).reshape(2, 10) % VOCABULARY
    scores = block_influence(model, [(ids, torch.ones_like(ids, dtype=torch.bool))])
    assert scores[2] == pytest.approx(0.0, abs=1e-12)
    assert layer_indices("importance", layers=5, depth=4, scores=scores) == [0, 1, 3, 4]
    student = cut(model, init="importance", depth=4, scores=scores)
    with torch.no_grad():
        assert torch.allclose(student(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_equal_scores_and_all_layers() -> None:
    assert layer_indices("importance", layers=4, depth=2, scores=[1.0, 2.0, 1.0, 1.0]) == [0, 1]
    assert layer_indices("importance", layers=4, depth=4, scores=[4.0, 3.0, 2.0, 1.0]) == [0, 1, 2, 3]
    for scores in (None, [1.0]):
        with pytest.raises(BadInput, match="scores, expected one for each of 4 layers"):
            layer_indices("importance", layers=4, depth=2, scores=scores)


def test_the_stage_records_what_it_measured(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def run(out: str) -> dict:
        cut_student(
            teacher=world.teacher, init="importance", depth=2, out=tmp_path / out, record=tmp_path / f"{out}.json",
            scale="tiny", importance=CALIBRATION, tokens=world.tokens,
        )  # fmt: skip
        return read_json(tmp_path / f"{out}.json")

    first, again = run("one"), run("two")
    assert len(first["importance"]) == 3
    assert first["importance"] == again["importance"]
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert first["layers"] == layer_indices("importance", layers=3, depth=2, scores=first["importance"])
    teacher, student = load_model(world.teacher).state_dict(), load_model(tmp_path / "one").state_dict()
    for position, layer in enumerate(first["layers"]):
        name = "self_attn.q_proj.weight"
        assert torch.equal(student[f"model.layers.{position}.{name}"], teacher[f"model.layers.{layer}.{name}"])
    with pytest.raises(BadInput, match="init importance needs importance and tokens"):
        cut_student(
            teacher=world.teacher, init="importance", depth=2, out=tmp_path / "no", record=tmp_path / "no.json",
            scale="tiny",
        )  # fmt: skip
