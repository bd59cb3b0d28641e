"""The stage that times a structure."""

import json
import math

import pytest

from budgeted_lora.config.sections import Speed
from budgeted_lora.evaluation import speed
from budgeted_lora.evaluation.speed import SpeedShape
from budgeted_lora.files import write_json
from budgeted_lora.method.cost import ModelShape
from budgeted_lora.method.schedule import BudgetRule
from budgeted_lora.method.structure import structure
from budgeted_lora.stages.measure_speed import measure_speed

SHAPE = ModelShape(layers=6, hidden=32, kv=8, ffn=128)
STUDENT = SpeedShape(shape=SHAPE, heads=4, kv_heads=1, vocab_size=50, rank=5)


def plan(budget: float) -> dict:
    rule = BudgetRule(budget=budget, start=0.1, end=0.3)
    return structure(SHAPE, rule, rank=5, svd_threshold=0.5, r_max=4).as_json()


def test_the_stage_writes_what_the_report_reads(tmp_path):
    planned = plan(0.8)
    out = tmp_path / "speed.json"
    write_json(tmp_path / "train.json", {"vocab_size": STUDENT.vocab_size})
    student = vars(STUDENT) | {"shape": SHAPE.as_json()}
    del student["vocab_size"]
    measure_speed(
        student=student, structure=planned, tokens=tmp_path / "train.json", out=out, scale="smoke",
        sizes=Speed(batch=2, length=24, decode_tokens=3, repeats=3), threads=1, device="cpu",
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["mac_speedup"] == pytest.approx(planned["speedup_vs_dense"])
    assert result["mac_speedup_vs_lora"] == pytest.approx(planned["speedup_vs_lora"])
    for part in ("modules", "modules_decode", "prefill", "prefill_all_logits", "decode"):
        for name in ("speedup", "speedup_q1", "speedup_q3", "speedup_vs_lora"):
            assert math.isfinite(result[part][name])
            assert result[part][name] > 0
        assert all(len(result[part][arm]["samples_s"]) == 3 for arm in speed.ARMS)
    assert (result["modules"]["tokens"], result["modules_decode"]["tokens"]) == (48, 2)
    covered = sorted(name for kind in result["kinds"] for name in kind["modules"])
    assert covered == sorted(module["name"] for module in planned["modules"] if module["decision"] != "keep")
    assert result["provenance"]["values"]["shape"] == SHAPE.as_json()
    assert result["threads"] == 1
