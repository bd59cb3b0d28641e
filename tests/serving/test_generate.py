"""`budgeted-lora generate` for model folders of every kind, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.command_line import Outcome
from fixtures.exported import MIXED, put_tokens_around, student, student_folder
from fixtures.tiny_decoder import tiny
from fixtures.training_world import SHAPE, VOCABULARY
from transformers import AutoTokenizer, PreTrainedModel

from budgeted_lora.evaluation.decoding import greedy_decode
from budgeted_lora.models.load import load_model, mistral_config, new_model
from budgeted_lora.serving.generate import Sampling, generate, model_folder

Run = Callable[..., Outcome]
PROMPT, IDS = "w3 w14 w15", [3, 14, 15]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell's folder and a teacher's."""
    root = tmp_path_factory.mktemp("models")
    student_folder(root / "cell" / "compressed" / "default" / "model", student(MIXED))
    student_folder(root / "teacher" / "model", tiny(layers=2))
    return root


def expected(model: PreTrainedModel, *, tokens: int) -> str:
    stops = torch.arange(VOCABULARY) == model.config.eos_token_id
    [ids] = greedy_decode(model, [IDS], limits=[tokens], stops=stops, batch=1)
    return " ".join(f"w{token}" for token in ids if token)


@pytest.mark.parametrize("name", ["cell", "teacher"])
def test_greedy_is_our_own_decoding(root: Path, run: Run, name: str) -> None:
    done = run("generate", root / name, PROMPT, "--tokens", 9)
    assert (done.status, done.err) == (0, "")
    assert done.out.strip() == expected(load_model(model_folder(root / name)), tokens=9)


def test_an_exported_folder_gives_what_its_student_gives(root: Path, run: Run, tmp_path: Path) -> None:
    source = model_folder(root / "cell")
    assert run("export", source, "--to", tmp_path / "out", "--dtype", "float32").status == 0
    assert run("generate", tmp_path / "out", PROMPT).out == run("generate", source, PROMPT).out


def test_no_token_is_put_around_a_prompt(root: Path, run: Run, tmp_path: Path) -> None:
    """Nor is one in training and scoring, whatever the tokenizer's post-processor says."""
    source = student_folder(tmp_path / "source", student(MIXED))
    plain = run("generate", source, PROMPT).out
    put_tokens_around(source)
    assert AutoTokenizer.from_pretrained(source)(PROMPT).input_ids == [2, *IDS, 0]
    assert run("generate", source, PROMPT).out == plain
    assert run("export", source, "--to", tmp_path / "out", "--dtype", "float32").status == 0
    assert run("generate", tmp_path / "out", PROMPT).out == plain


def test_sampling_depends_on_the_seed_alone(root: Path) -> None:
    def sample(seed: int, temperature: float) -> str:
        return generate(root / "teacher", PROMPT, tokens=12, sampling=Sampling(temperature=temperature, seed=seed))

    hot = [sample(seed, 1.5) for seed in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2]
    before = torch.random.get_rng_state()
    sample(3, 1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_greedy_decoding_ignores_settings_of_the_folder(root: Path, run: Run, tmp_path: Path) -> None:
    source = student_folder(tmp_path / "source", student(MIXED))
    plain = run("generate", source, PROMPT).out
    own = {"repetition_penalty": 5.0, "num_beams": 3, "do_sample": True, "min_p": 0.5, "eos_token_id": 0}
    (source / "generation_config.json").write_text(json.dumps(own))
    assert run("generate", source, PROMPT).out == plain


def test_the_context_is_never_passed(root: Path) -> None:
    assert len(generate(root / "teacher", PROMPT, tokens=1000).split()) <= SHAPE["context"] - len(IDS)


def test_chat_puts_the_prompt_through_the_template(root: Path, run: Run, tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "chat", tiny(layers=2))
    template = "{% for m in messages %}w3 {{ m.content }}{% endfor %}{% if add_generation_prompt %} w15{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    talked = run("generate", folder, "w14", "--chat").out
    assert talked == run("generate", folder, PROMPT).out != run("generate", folder, "w14").out
    assert run("export", folder, "--to", tmp_path / "out", "--dtype", "float32").status == 0
    assert run("generate", tmp_path / "out", "w14", "--chat").out == talked


def test_a_cell_of_several_models_lists_them(run: Run, tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    for name in ("F0.4", "F0.0"):
        student_folder(cell / "compressed" / name / "model", tiny(layers=2))
    (cell / "compressed" / "F0.8").mkdir()
    message = run("generate", cell, PROMPT).refusal()
    assert "its models are compressed/F0.0/model, compressed/F0.4/model; add one of these to the path" in message
    assert run("generate", cell / "compressed/F0.4/model", PROMPT).status == 0


def test_refusals(root: Path, run: Run, tmp_path: Path) -> None:
    message = run("generate", tmp_path, PROMPT).refusal()
    assert "nor in model or compressed/*/model below it; expected a model folder" in message
    assert "the prompt has no token" in run("generate", root / "teacher", "").refusal()
    assert "no chat template; leave out --chat" in run("generate", root / "teacher", PROMPT, "--chat").refusal()
    long = " ".join(["w3"] * SHAPE["context"])
    assert (
        "the prompt has 64 tokens, and the model's context is 64" in run("generate", root / "teacher", long).refusal()
    )
    small = new_model(mistral_config(layers=1, **SHAPE | {"vocab_size": 15}), seed=0)
    folder = student_folder(tmp_path / "small", small)
    assert "gives token 15, but the model's vocabulary has 15" in run("generate", folder, PROMPT).refusal()
    (folder / "tokenizer.json").write_text("{}")
    assert "its tokenizer cannot be opened" in run("generate", folder, PROMPT).refusal()
    (folder / "tokenizer.json").unlink()
    assert "expected a fast tokenizer beside the weights" in run("generate", folder, PROMPT).refusal()
