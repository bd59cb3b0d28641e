"""Projections in training against the formula in float64, and what they run and what they leave alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import MistralConfig, MistralForCausalLM

from budgeted_lora.errors import BadInput
from budgeted_lora.method.cost import ModelShape, projections
from budgeted_lora.method.projections import BudgetedLinear, install, model_shape, set_retentions

SIZES = {"d_in": 12, "d_out": 8}
VALUES = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "gates": True, "gate_logit": 2.0, "seed": 0}


def linear(*, d: float = 1.0, gate_logit: float | None = 2.0, dropout: float = 0.0, rank: int = 4) -> BudgetedLinear:
    """A projection 12 -> 8 in float64 with random B and gates."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZES["d_out"], SIZES["d_in"], generator=generator, dtype=torch.float64)
    module = BudgetedLinear(
        weight, rank=rank, alpha=2.0 * rank, dropout=dropout, gate_logit=gate_logit, generator=generator
    )
    with torch.no_grad():
        module.lora_b.normal_(generator=generator)
        if module.gate_logits is not None:
            module.gate_logits.normal_(generator=generator)
    module.retention = d
    return module


def model(**changes: int) -> MistralForCausalLM:
    """Two layers, hidden 32, kv 8, ffn 64."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    return MistralForCausalLM(MistralConfig(**(sizes | changes), attn_implementation="sdpa")).eval()


@pytest.mark.parametrize("d", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gated", [True, False])
def test_forward_and_gradients_follow_the_formula(d, gated):
    module = linear(d=d, gate_logit=2.0 if gated else None)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 8, dtype=torch.float64)
    module(x).backward(upstream)

    w, a, b = module.weight.detach(), module.lora_a.detach(), module.lora_b.detach()
    g = torch.sigmoid(module.gate_logits.detach()) if gated else torch.ones(4, dtype=torch.float64)
    s, xd = module.scale, x.detach()
    assert s == 2.0
    torch.testing.assert_close(module(x), d * xd @ w.T + s * ((xd @ a.T) * g) @ b.T)
    torch.testing.assert_close(x.grad, upstream @ (d * w + s * b @ torch.diag(g) @ a))
    torch.testing.assert_close(module.lora_a.grad, s * torch.diag(g) @ b.T @ upstream.T @ xd)
    torch.testing.assert_close(module.lora_b.grad, s * upstream.T @ ((xd @ a.T) * g))
    assert module.weight.grad is None
    if gated:
        slope = s * ((upstream @ b) * (xd @ a.T)).sum(0) * g * (1 - g)
        torch.testing.assert_close(module.gate_logits.grad, slope)


@settings(deadline=None, max_examples=40)
@given(
    d=st.floats(0.01, 1.0),
    gated=st.booleans(),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4)),
    seed=st.integers(0, 1000),
)
def test_the_merged_weight_gives_what_two_paths_give(d, gated, sizes, seed):
    d_in, d_out, tokens, batch = sizes
    generator = torch.Generator().manual_seed(seed)
    rank = int(torch.randint(1, min(d_in, d_out) + 1, (), generator=generator))
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    module = BudgetedLinear(
        weight, rank=rank, alpha=3.0, dropout=0.0, gate_logit=0.5 if gated else None, generator=generator
    )
    with torch.no_grad():
        module.lora_b.normal_(generator=generator)
    module.retention = d
    x = torch.randn(batch, tokens, d_in, generator=generator, dtype=torch.float64)
    upstream = torch.randn(batch, tokens, d_out, generator=generator, dtype=torch.float64)
    results = []
    for forward in (module, lambda given: module._low_rank(given) + d * torch.nn.functional.linear(given, weight)):
        given_x = x.clone().requires_grad_()
        module.zero_grad()
        y = forward(given_x)
        y.backward(upstream)
        trained = [parameter.grad.clone() for parameter in module.parameters() if parameter.requires_grad]
        results.append([y.detach(), given_x.grad, *trained])
    for merged, two_paths in zip(*results, strict=True):
        torch.testing.assert_close(merged, two_paths, rtol=1e-10, atol=1e-12)


def test_the_merged_weight_is_made_once_a_step_and_anew_after_it():
    module = linear(d=0.5).float().train()
    x = torch.randn(3, 12)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1, fused=True)

    def expected():
        low_rank = (x @ module.lora_a.T * module.scale * module.gates()) @ module.lora_b.T
        return module.retention * x @ module.weight.T + low_rank

    torch.testing.assert_close(module(x), expected())
    assert module._merged_weight() is module._merged_weight()
    module(x).sum().backward()
    optimizer.step()
    module.forget_merged()
    torch.testing.assert_close(module(x), expected())
    module.retention = 1.0
    torch.testing.assert_close(module(x), expected())
    with torch.no_grad():
        module.eval().lora_b.mul_(2.0)
    module.forget_merged()
    torch.testing.assert_close(module(x), expected())
    assert module._merged_weight() is not module._merged_weight(), "nothing is kept outside training"


def test_few_tokens_take_two_paths():
    """Below d_in d_out / (d_in + d_out) = 4.8 tokens, merging would cost more MACs than it saves."""
    module = linear(d=0.5).train()
    few, enough = torch.randn(2, 2, 12, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    module(few)
    assert module._merged is None
    two_paths = module(enough[:4])
    torch.testing.assert_close(module(enough)[:4], two_paths)
    assert module._merged is not None


@pytest.mark.parametrize(("d", "dense_passes", "thin"), [(1.0, 2, 4), (0.4, 2, 4), (0.0, 0, 6)])
def test_dropped_dense_matmul_runs_neither_forward_nor_backward(d, dense_passes, thin):
    """Counted FLOPs: the low-rank path has 6 r (d_in + d_out) per token, or 4 where its weight is merged; the dense
    one has 4 d_in d_out unless d = 0."""
    module, tokens = linear(d=d).train(), 5
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    module(x)  # merges the weight
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    assert counter.get_total_flops() == tokens * (thin * 4 * (12 + 8) + 2 * dense_passes * module.macs)


def test_dropped_dense_weight_is_not_read():
    module = linear(d=0.0)
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_dropout_acts_on_the_low_rank_path_in_training_only():
    module = linear(dropout=0.5)
    x = torch.randn(200, 12, dtype=torch.float64)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))
    with torch.no_grad():
        module.train().lora_b.zero_()
    torch.testing.assert_close(module(x), x @ module.weight.T)


def test_a_starts_kaiming_uniform_and_b_at_zero():
    generator = torch.Generator().manual_seed(1)
    module = BudgetedLinear(torch.randn(64, 400), rank=64, alpha=128, dropout=0.0, gate_logit=2.0, generator=generator)
    bound = 400**-0.5
    assert module.lora_a.abs().max() <= bound
    assert module.lora_a.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not module.lora_b.any()
    assert module.gate_logits.tolist() == [2.0] * 64
    assert module.gates()[0].item() == pytest.approx(0.8808, abs=1e-4)


def test_active_ranks_count_open_gates():
    module = linear()
    with torch.no_grad():
        module.gate_logits.copy_(torch.tensor([-3.0, 0.0, 0.1, 4.0]))
    assert module.active_ranks(threshold=0.5) == 2
    assert module.active_ranks(threshold=0.01) == 4
    assert linear(gate_logit=None).active_ranks(threshold=0.9) == 4


def test_install_covers_every_projection_and_changes_nothing_at_first():
    student = model()
    ids = torch.randint(0, 50, (2, 16))
    before = student(ids).logits
    modules = install(student, **VALUES)
    shape = ModelShape(layers=2, hidden=32, kv=8, ffn=64)
    assert model_shape(student) == shape
    assert list(modules) == [item.name for item in projections(shape)]
    assert list(modules) == [name for name, item in student.named_modules() if isinstance(item, BudgetedLinear)]
    assert [item.macs for item in modules.values()] == [item.macs for item in projections(shape)]
    assert torch.equal(student(ids).logits, before)


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("rest", [True, False])
def test_what_trains(gates, rest):
    student = model()
    modules = install(student, **(VALUES | {"gates": gates}), train_embeddings_head_norms=rest)
    leaves = {"lora_a", "lora_b"} | ({"gate_logits"} if gates else set())
    expected = {f"{name}.{leaf}" for name in modules for leaf in leaves}
    if rest:
        expected |= {name for name, _ in student.named_parameters() if not any(name.startswith(m) for m in modules)}
        assert "lm_head.weight" in expected
    assert {name for name, p in student.named_parameters() if p.requires_grad} == expected


def test_install_depends_on_its_seed_alone():
    def first_a(seed: int, noise: int) -> torch.Tensor:
        student = model()
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        modules = install(student, **(VALUES | {"seed": seed}))
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([item.lora_a.flatten() for item in modules.values()])

    assert torch.equal(first_a(0, 1), first_a(0, 2))
    assert not torch.equal(first_a(0, 1), first_a(1, 1))


def test_set_retentions_keeps_the_order():
    modules = install(model(), **VALUES)
    set_retentions(modules, [i / 14 for i in range(14)])
    assert [item.retention for item in modules.values()] == [i / 14 for i in range(14)]
    with pytest.raises(ValueError, match="zip"):
        set_retentions(modules, [1.0])


def test_open_gates_are_plain_lora():
    """With every gate at 1 and d = 1, the budgeted projection is the LoRA one."""
    gated, plain = linear(gate_logit=2.0), linear(gate_logit=None)
    with torch.no_grad():
        gated.gate_logits.fill_(50.0)
        gated.lora_b.copy_(plain.lora_b)
    x = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(gated(x), plain(x))


def test_bfloat16_autocast_stays_in_bfloat16():
    module = linear(d=0.5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.randn(3, 12)).dtype == torch.bfloat16


def test_refusals():
    with pytest.raises(BadInput, match="rank is 9; expected 1 to 8"):
        install(model(), **(VALUES | {"rank": 9}))
    misshapen = model()
    misshapen.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 65)
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj"):
        install(misshapen, **VALUES)
    twice = model()
    install(twice, **VALUES)
    with pytest.raises(BadInput, match="expected a linear layer"):
        install(twice, **VALUES)
