"""Scores on tasks of lm-evaluation-harness, against the same computed by hand; skipped where its package is not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.own_model import write_own_model
from fixtures.own_tasks import CAPITALS, prompt, write_tasks
from transformers import PreTrainedModel

from budgeted_lora.data.tokenizer import Opened, open_tokenizer
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import harness
from budgeted_lora.models.compressed import untrained
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.serving.export import export_model
from budgeted_lora.stages.score_tasks import score_tasks

TASKS = ["capitals", "sentences"]


def test_metrics_are_told_from_their_errors_and_filters() -> None:
    result = {"name": "t", "alias": "t", "sample_len": 4, "acc,none": 0.25, "acc_stderr,none": 0.1}
    result |= {"exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"}
    assert harness.split_metrics(result) == ({"acc": 0.25, "exact_match (strict)": 0.5}, {"acc": 0.1})


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"^package lm_eval is not installed; expected it for tasks: pip install"):
        harness.score(None, None, tasks=TASKS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with factors, in float32, and tasks."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    folder = tmp_path_factory.mktemp("harness")
    teacher = load_model(write_own_model(folder / "student"))
    student = untrained(teacher, {"model.layers.1.mlp.up_proj": 3, "model.layers.2.self_attn.q_proj": 2}).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=0.2, generator=generator)
    save_model(student, folder / "student")
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def scored(world: Path) -> dict[str, Any]:
    """What the stage writes."""
    files = sorted((world / "tasks").iterdir())
    score_tasks(
        model=world / "student", tokenizer=world / "student", out=world / "lm_eval.json", tasks=TASKS, scale="s",
        device="cpu", threads=1, batch=4, folder=world / "tasks", files=files,
    )  # fmt: skip
    return json.loads((world / "lm_eval.json").read_text())


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, tokenizer: Opened, before: str, text: str) -> float:
    """Nats of `text` after `before`, or after the end token if nothing stands before it."""
    encode = tokenizer.tokenizer.encode
    given = encode(before, add_special_tokens=False).ids if before else [tokenizer.end_id]
    whole = encode(before + text, add_special_tokens=False).ids if before else given + encode(text).ids
    logits = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
    chosen = logits.gather(1, torch.tensor(whole[1:])[:, None])[:, 0]
    return chosen[len(given) - 1 :].sum().item()


def test_scores_are_those_computed_by_hand(world: Path, scored: dict[str, Any]) -> None:
    model, tokenizer = load_model(world / "student"), open_tokenizer(world / "student")
    capitals, right, right_per_byte = list(CAPITALS.values()), [], []
    for at, country in enumerate(CAPITALS):
        nats = [log_likelihood(model, tokenizer, prompt(country), f" {name}") for name in capitals]
        right.append(max(range(6), key=nats.__getitem__) == at)
        right_per_byte.append(max(range(6), key=lambda i: nats[i] / len(capitals[i])) == at)
    found = scored["tasks"]["capitals"]
    assert found["metrics"] == {"acc": sum(right) / 6, "acc_norm": sum(right_per_byte) / 6}
    sentences = [f"The capital of {country} is {capital}." for country, capital in CAPITALS.items()]
    nats = sum(log_likelihood(model, tokenizer, "", text) for text in sentences)
    words = sum(len(text.split()) for text in sentences)
    expected = math.exp(-nats / words)
    assert scored["tasks"]["sentences"]["metrics"]["word_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_what_makes_a_score_repeatable_is_recorded(world: Path, scored: dict[str, Any]) -> None:
    found = scored["tasks"]["capitals"]
    assert (found["version"], found["shots"], found["samples"], found["cut_requests"]) == (2.0, 0, 6, 0)
    assert found["higher_is_better"] == {"acc": True, "acc_norm": True}
    assert found["standard_errors"]["acc"] > 0 or found["metrics"]["acc"] in (0, 1)
    assert scored["versions"].keys() == set(harness.VERSIONS)
    assert scored["dtype"] == "float32"
    assert str(world / "tasks" / "capitals.jsonl") in scored["provenance"]["inputs"]
    assert scored["provenance"]["values"]["tasks"] == TASKS
    assert scored["tokenizer"]["before_each_text"] is None


def test_the_command_of_the_documentation_gives_the_same_scores(world: Path, scored: dict[str, Any]) -> None:
    """`lm_eval --model hf` on an exported folder, as docs/serving.md has it."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    (world / "exported").mkdir()
    export_model(world / "student", world / "exported", dtype="float32")
    given = {"pretrained": str(world / "exported"), "trust_remote_code": True, "dtype": "float32"}
    tasks = TaskManager(include_path=world / "tasks", include_defaults=False)
    found = simple_evaluate("hf", model_args=given, tasks=TASKS, task_manager=tasks, device="cpu", batch_size=4)
    for name in TASKS:
        metrics, _ = harness.split_metrics(found["results"][name])
        assert metrics == pytest.approx(scored["tasks"][name]["metrics"], rel=1e-5)


def test_bad_tasks_are_one_line(world: Path) -> None:
    model, tokenizer = load_model(world / "student"), open_tokenizer(world / "student")
    (world / "tasks" / "lost.yaml").write_text((world / "tasks" / "capitals.yaml").read_text().replace(
        "task: capitals", "task: lost").replace("capitals.jsonl", "none.jsonl"))  # fmt: skip
    with pytest.raises(BadInput, match=r"^evaluation.lm_eval: a task or its data cannot be read \(FileNotFoundError"):
        harness.score(model, tokenizer, tasks=["lost"], folder=world / "tasks")
    tokenizer.tokenizer.no_truncation()
    model.config.max_position_embeddings = 8
    found = harness.score(model, tokenizer, tasks=["capitals"], folder=world / "tasks", limit=2)
    assert found["tasks"]["capitals"]["samples"] == 2
    assert found["tasks"]["capitals"]["cut_requests"] > 0
