"""Tool for maintainers: a new leg of a shipped teacher begins at its weights, after its tokens."""

from pathlib import Path

import pytest
import torch

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.models.checkpoint import shipped_folder
from budgeted_lora.models.load import load_model, mistral_config, new_model
from budgeted_lora.stages.pretrain_teacher import plan_of
from budgeted_lora.training.pretrain import optimizers
from budgeted_lora.training.state import TrainingState
from tools.continue_teachers import continue_from_shipped, steps_done

ROOT = Path(__file__).resolve().parents[2]
NAME = "0.13B"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_state_holds_the_shipped_weights_and_their_steps(tmp_path: Path) -> None:
    results = tmp_path / "mini"
    (results / "state" / f"{NAME}-0123").mkdir(parents=True)
    continue_from_shipped(results, NAME)
    config = load_config(ROOT / "config" / "mini.yaml")
    spec = config.teacher_ladder[NAME]
    shape = mistral_config(**spec.shape, head_dim=None, vocab_size=2048, context=256, end_id=0)
    begun = new_model(shape, seed=1)
    plan = plan_of(spec, config.pretraining, sequence_length=config.sequence_length, rows=config.rows)
    values = TrainingState(results / "state" / f"{NAME}-0123").restore(begun, *optimizers(begun, plan))
    assert len(values["losses"]) == plan.leg_steps[0]
    shipped = load_model(shipped_folder(NAME)).float()
    for name, tensor in shipped.named_parameters():
        assert torch.equal(tensor, begun.get_parameter(name)), name


def test_a_run_that_has_not_begun_and_tokens_within_a_leg_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="0 folders of 1B; expected that of one begun run"):
        continue_from_shipped(tmp_path / "mini", "1B")
    assert steps_done([5, 3], tokens=8 * 64 + 1, step_tokens=64) == 8
    with pytest.raises(BadInput, match=r"has 6 steps; expected the end of a leg: \[5, 8\]"):
        steps_done([5, 3], tokens=6 * 64, step_tokens=64)
