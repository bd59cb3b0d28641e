"""Making a teacher: it learns, repeats to the byte, and stops when it must."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.training_world import SHAPE, VOCABULARY, make_world
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from budgeted_lora.config.sections import Pretraining, Teacher
from budgeted_lora.data.tokens import TokenFile, Windows, write_tokens
from budgeted_lora.errors import BadInput, TrainingDiverged
from budgeted_lora.files import sha256_file
from budgeted_lora.models.load import load_model, mistral_config, new_model
from budgeted_lora.stages.pretrain_teacher import pretrain_teacher
from budgeted_lora.training import pretrain as module
from budgeted_lora.training.pretrain import (
    PretrainPlan,
    next_token_loss,
    optimizers,
    pretrain,
    rate_factor,
    window_order,
)
from budgeted_lora.training.state import TrainingState

LENGTH, STEPS = 16, 25
PLAN = {
    "legs": [STEPS * 4 * LENGTH], "sequence_length": LENGTH, "packing": "packed", "batch_windows": 4,
    "micro_batch_windows": 2, "learning_rate": 1e-2, "matrix_learning_rate": None, "weight_decay": 0.1,
    "warmup_fraction": 0.1, "clip": 1.0, "seed": 0, "compile": False,
}  # fmt: skip


def plan(**changed: object) -> PretrainPlan:
    return PretrainPlan(**(PLAN | changed))


def model(*, seed: int = 0) -> torch.nn.Module:
    return new_model(mistral_config(layers=2, **SHAPE), seed=seed)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    earlier = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(earlier)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """Documents of 1 to 39 tokens that count upwards in steps of 1 or 2 from anywhere: half a bit a document."""
    generator, path = np.random.default_rng(0), tmp_path_factory.mktemp("tokens") / "train.bin"
    texts = []
    for length in generator.integers(0, 39, 60):
        counting = generator.integers(0, 60) + np.arange(length) * generator.integers(1, 3)
        texts.append((counting % (VOCABULARY - 1) + 1).tolist())
    write_tokens(path, iter(texts), vocab_size=VOCABULARY, eos_id=0)
    return TokenFile.open(path)


# --- learning


@pytest.mark.parametrize("matrix_rate", [None, 2e-2], ids=["adamw", "muon"])
@pytest.mark.parametrize("packing", ["packed", "document"])
def test_the_loss_falls(tokens: TokenFile, packing: str, matrix_rate: float | None) -> None:
    losses = pretrain(model(), tokens, plan(packing=packing, matrix_learning_rate=matrix_rate)).losses
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(np.log(VOCABULARY), abs=0.15)
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_the_same_plan_gives_the_same_bytes(tokens: TokenFile) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))  # the global generator must not matter
        trained = model()
        losses = pretrain(trained, tokens, plan(seed=seed, legs=[6 * 4 * LENGTH])).losses
        runs.append((losses, {name: tensor.numpy().tobytes() for name, tensor in trained.state_dict().items()}))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def first_gradient(tokens: TokenFile, monkeypatch: pytest.MonkeyPatch, **changed: object) -> dict[str, torch.Tensor]:
    """The gradient that the first optimizer step would use, in float64, and the loss as `loss`."""
    seen: dict[str, torch.Tensor] = {}
    network = model().double()

    class Recorder(torch.optim.SGD):
        def step(self) -> None:
            seen.update({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})

    monkeypatch.setattr(module, "optimizers", lambda network, _: [Recorder(network.parameters(), lr=1.0)])
    batch = PLAN["batch_windows"] * LENGTH
    [loss] = pretrain(network, tokens, plan(legs=[batch], clip=1e9, **changed)).losses
    return seen | {"loss": torch.tensor(loss)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("packing", ["packed", "document"])
def test_accumulation_does_not_change_the_first_gradient(
    tokens: TokenFile, monkeypatch: pytest.MonkeyPatch, packing: str, seed: int
) -> None:
    """Documents differ in length, so a mean of means would not be the mean."""
    whole = first_gradient(tokens, monkeypatch, packing=packing, seed=seed, micro_batch_windows=4)
    assert len(whole) == 1 + len(list(model().parameters()))
    for size in (1, 2):
        parts = first_gradient(tokens, monkeypatch, packing=packing, seed=seed, micro_batch_windows=size)
        for name, gradient in whole.items():
            assert torch.allclose(parts[name], gradient, rtol=1e-5, atol=1e-9), (name, size)


def test_rows_of_one_token_are_passed_over(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train.bin", iter([[]] * 3 + [[1, 2, 3]]), vocab_size=VOCABULARY, eos_id=0)
    short = TokenFile.open(tmp_path / "train.bin")
    losses = pretrain(model(), short, plan(packing="document", micro_batch_windows=1, legs=[2 * 4 * LENGTH])).losses
    assert all(np.isfinite(losses))


def test_padding_is_not_scored(tokens: TokenFile) -> None:
    network = model()
    ids, mask = Windows(tokens, LENGTH, "document").read(np.arange(6))
    assert not mask.all()
    noise = np.where(mask, ids, 7)
    losses = [next_token_loss(network, torch.from_numpy(x), torch.from_numpy(mask)).item() for x in (ids, noise)]
    assert losses[0] == losses[1]


def test_the_loss_is_the_cross_entropy_of_the_models_own_logits(tokens: TokenFile) -> None:
    network = model().eval()
    ids, mask = (torch.from_numpy(x) for x in Windows(tokens, LENGTH, "document").read(np.arange(3)))
    with torch.no_grad():
        chances = network(input_ids=ids).logits.double().log_softmax(-1)
    picked = [
        -chances[row, i, ids[row, i + 1]] for row in range(3) for i in range(LENGTH - 1) if bool(mask[row, i + 1])
    ]
    assert next_token_loss(network, ids, mask).item() == pytest.approx(float(sum(picked)) / len(picked), rel=1e-5)


# --- optimizers, order, rate


@pytest.mark.parametrize("matrix_rate", [None, 2e-2], ids=["adamw", "muon"])
def test_every_weight_has_one_optimizer_and_vectors_do_not_decay(matrix_rate: float | None) -> None:
    network = model()
    made = optimizers(network, plan(matrix_learning_rate=matrix_rate))
    groups = [(type(item).__name__, group) for item in made for group in item.param_groups]
    owner = {id(p): (kind, group["weight_decay"]) for kind, group in groups for p in group["params"]}
    assert sum(len(group["params"]) for _, group in groups) == len(owner) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        kind = "Muon" if matrix_rate and name.endswith("_proj.weight") else "AdamW"
        assert owner[id(parameter)] == (kind, 0.0 if parameter.ndim == 1 else 0.1), name


@given(windows=st.integers(1, 30), count=st.integers(1, 100), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_every_window_comes_once_an_epoch(windows: int, count: int, seed: int) -> None:
    order = window_order(windows, count=count, seed=seed)
    assert len(order) == count
    for start in range(0, count, windows):
        epoch = order[start : start + windows]
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(range(windows))
    assert np.array_equal(order, window_order(windows, count=count, seed=seed))


def test_order_depends_on_seed_and_epoch() -> None:
    order = window_order(50, count=100, seed=0)
    assert order[:50].tolist() != order[50:].tolist()
    assert order.tolist() != window_order(50, count=100, seed=1).tolist()


@given(steps=st.integers(2, 1000), warmup_fraction=st.floats(0, 0.5))
@settings(deadline=None, max_examples=100)
def test_rate_rises_to_its_peak_and_ends_near_zero(steps: int, warmup_fraction: float) -> None:
    factors = [rate_factor(step, steps=steps, warmup_fraction=warmup_fraction) for step in range(steps)]
    peak = factors.index(max(factors))
    warmup = max(1, round(warmup_fraction * steps))
    assert peak in (warmup - 1, warmup)
    assert factors[peak] == pytest.approx(1.0)
    assert min(factors) > 0
    assert max(factors) <= 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(1 / (steps - warmup))


# --- legs


def test_each_leg_has_a_schedule_of_its_own() -> None:
    made = plan(legs=[6 * 4 * LENGTH, 10 * 4 * LENGTH + 7])
    assert (made.leg_steps, made.steps, made.later_starts) == ([6, 10], 16, [6])
    one, two = plan(legs=made.legs[:1]), plan(legs=made.legs[1:])
    assert made.rate_factors == one.rate_factors + two.rate_factors
    assert made.rate_factors[6] == 1.0 > made.rate_factors[5]


@pytest.mark.parametrize("matrix_rate", [None, 2e-2], ids=["adamw", "muon"])
def test_a_leg_goes_on_from_half_precision_weights_alone(
    tokens: TokenFile, tmp_path: Path, matrix_rate: float | None
) -> None:
    """As a shipped teacher is trained further: its weights are here, its optimizers' state is not."""
    legs, given = [3 * 4 * LENGTH, 4 * 4 * LENGTH], {"matrix_learning_rate": matrix_rate}
    whole, kept = model(), model()
    losses = pretrain(whole, tokens, plan(legs=legs, **given)).losses
    pretrain(kept, tokens, plan(legs=legs[:1], **given))
    further, state = kept.half().float(), TrainingState(tmp_path)
    state.save(further, *optimizers(further, plan(legs=legs, **given)), values={"losses": [float("nan")] * 3})
    again = model(seed=1)
    run = pretrain(again, tokens, plan(legs=legs, **given), state=state)
    assert run.losses[3:] == losses[3:]
    assert run.timed_steps == 4  # nobody knows how long the others took
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_time_of_a_run_is_that_of_all_its_processes(
    tokens: TokenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, made = TrainingState(tmp_path), plan(legs=[5 * 4 * LENGTH])
    monkeypatch.setattr(module.time, "perf_counter", iter(range(100)).__next__)  # a second a look
    first = pretrain(model(), tokens, made, state=state)
    assert (first.timed_steps, first.seconds) == (5, 5.0)
    longer = plan(legs=[*made.legs, 3 * 4 * LENGTH])
    run = pretrain(model(), tokens, longer, state=state)
    assert (run.timed_steps, run.seconds) == (8, 8.0)


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(tokens: TokenFile) -> None:
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        network = model()
        losses[dtype] = pretrain(network, tokens, plan(), dtype=dtype).losses
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert losses[torch.bfloat16] != losses[torch.float32]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)


# --- stopping


def test_a_loss_that_is_no_number_stops_at_its_step(tokens: TokenFile) -> None:
    network = model()
    with torch.no_grad():
        network.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"mine: loss nan at step 0; lower pretraining\.learning_rate"):
        pretrain(network, tokens, plan(), title="mine")


def test_a_rate_out_of_all_bounds_stops(tokens: TokenFile) -> None:
    with pytest.raises(TrainingDiverged, match=r"at step [1-9]"):
        pretrain(model(), tokens, plan(learning_rate=1e30))


def test_less_than_one_step_is_refused(tokens: TokenFile, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"63 tokens from .* expected at least one window and one step of 64 tokens"):
        pretrain(model(), tokens, plan(legs=[63]))
    write_tokens(tmp_path / "train.bin", iter([[1, 2]]), vocab_size=VOCABULARY, eos_id=0)
    with pytest.raises(BadInput, match="from 0 windows of"):
        pretrain(model(), TokenFile.open(tmp_path / "train.bin"), plan())


# --- the stage


@pytest.fixture
def made_from(tmp_path: Path) -> dict[str, object]:
    """Arguments of `pretrain_teacher` on random tokens."""
    make_world(tmp_path)
    spec = Teacher(layers=2, hidden=16, ffn=48, heads=2, kv_heads=1, tokens=5 * 4 * LENGTH + 7)
    return {
        "name": "A", "spec": spec, "pretraining": Pretraining(batch_windows=4, micro_batch_windows=2),
        "sequence_length": LENGTH, "rows": "packed", "tokens": tmp_path / "train.bin",
        "tokenizer": tmp_path / "tokenizer", "out": tmp_path / "model", "record": tmp_path / "teacher.json",
        "history": tmp_path / "history.csv", "state": tmp_path / "state", "scale": "tiny", "threads": 1,
        "device": "cpu",
    }  # fmt: skip


def test_the_stage_writes_model_record_and_history(made_from: dict, tmp_path: Path) -> None:
    pretrain_teacher(**made_from)
    record = json.loads((tmp_path / "teacher.json").read_text())
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert record["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert (record["steps"], record["tokens"]) == (5, 5 * 4 * LENGTH)
    windows = Windows(TokenFile.open(tmp_path / "train.bin"), LENGTH, "packed").count
    assert record["epochs"] == pytest.approx(20 / windows)
    assert record["sha256"] == sha256_file(tmp_path / "model" / "model.safetensors")
    assert record["provenance"]["values"]["threads"] == 1
    rows = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    assert rows[0] == ["step", "loss"]
    assert [int(step) for step, _ in rows[1:]] == list(range(5))
    assert record["final_loss"] == pytest.approx(np.mean([float(loss) for _, loss in rows[1:]]), abs=1e-5)
    config = load_model(tmp_path / "model").config
    assert (config.vocab_size, config.eos_token_id, config.max_position_embeddings) == (VOCABULARY, 0, LENGTH)
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (
        tmp_path / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_the_stage_repeats_its_bytes(made_from: dict, tmp_path: Path) -> None:
    pretrain_teacher(**made_from)
    pretrain_teacher(**made_from | {"out": tmp_path / "again"})
    assert sha256_file(tmp_path / "again") == sha256_file(tmp_path / "model")


@pytest.mark.parametrize("legs", [None, [3 * 4 * LENGTH, 2 * 4 * LENGTH]], ids=["one leg", "two legs"])
@pytest.mark.parametrize("matrix_rate", [None, 2e-2], ids=["adamw", "muon"])
@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_killed_run_goes_on_to_the_same_bytes(
    made_from: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
    matrix_rate: float | None,
    legs: list[int] | None,
) -> None:
    """The kill comes in the backward pass of a step; what was saved every second step is gone on from."""
    recipe = made_from["pretraining"].model_copy(update={"matrix_learning_rate": matrix_rate})
    spec = made_from["spec"].model_copy(update={"tokens": legs or made_from["spec"].tokens})
    made_from |= {"pretraining": recipe, "spec": spec}
    pretrain_teacher(**made_from | {"out": tmp_path / "whole"})
    monkeypatch.setattr(pretrain, "__kwdefaults__", pretrain.__kwdefaults__ | {"checkpoint_every": 2})
    calls = []

    def dying(*inputs: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        if len(calls) > 2 * killed_at:  # two micro-batches a step
            raise KeyboardInterrupt
        return next_token_loss(*inputs)

    monkeypatch.setattr(module, "next_token_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain_teacher(**made_from)
    assert not (tmp_path / "model").exists()
    counted = []
    monkeypatch.setattr(module, "next_token_loss", lambda *inputs: counted.append(None) or next_token_loss(*inputs))
    pretrain_teacher(**made_from)
    assert len(counted) == 2 * (5 - killed_at // 2 * 2)
    assert sha256_file(tmp_path / "model") == sha256_file(tmp_path / "whole")
    assert not list((tmp_path / "state").iterdir())


def test_a_teachers_own_rate_replaces_the_common_one(made_from: dict, tmp_path: Path) -> None:
    spec = made_from["spec"].model_copy(update={"learning_rate": 1e-12})
    pretrain_teacher(**made_from | {"spec": spec})
    untrained = model().state_dict()
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        assert torch.equal(tensor, untrained[name].half()), name


def test_the_stage_refuses_what_does_not_fit(made_from: dict, tmp_path: Path) -> None:
    spec = made_from["spec"]
    with pytest.raises(BadInput, match=r"teacher_ladder.A.tokens must say how long"):
        pretrain_teacher(**made_from | {"spec": spec.model_copy(update={"tokens": None})})
    with pytest.raises(BadInput, match="one step of 64 tokens"):
        pretrain_teacher(**made_from | {"spec": spec.model_copy(update={"tokens": 63})})
    other = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w1"))
    other.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    with pytest.raises(BadInput, match=f"vocabulary of {VOCABULARY}, but the tokenizer has 50"):
        pretrain_teacher(**made_from)
    assert not (tmp_path / "model").exists()
