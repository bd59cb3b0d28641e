"""The stage that cuts a student."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.tiny_decoder import tiny
from safetensors.torch import load_file

from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.stages.cut_student import cut_student


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return tiny()


def test_the_stage_cuts_a_half_precision_teacher_into_float32(teacher: torch.nn.Module, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "teacher", dtype=torch.float16)
    where = {"out": tmp_path / "model", "record": tmp_path / "student.json"}
    cut_student(teacher=tmp_path / "teacher", init="mixed", depth=3, scale="tiny", **where)
    record = json.loads((tmp_path / "student.json").read_text())
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert record["layers"] == [0, 2, 4]
    assert record["parameters"] == sum(tensor.numel() for tensor in written.values())
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    half = teacher.state_dict()["model.layers.2.mlp.up_proj.weight"].half().float()
    assert torch.equal(written["model.layers.1.mlp.up_proj.weight"], half)
    assert load_model(tmp_path / "model").config.num_hidden_layers == 3
