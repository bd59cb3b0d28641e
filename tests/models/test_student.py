"""The layers a student takes, and every weight of a cut student."""

from fractions import Fraction

import pytest
import torch
from fixtures.tiny_decoder import logits, same, tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgeted_lora.errors import BadInput
from budgeted_lora.models.student import cut, layer_indices

INITS = ("first", "middle", "last", "mixed")


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return tiny()


@pytest.mark.parametrize(
    ("init", "layers", "depth", "expected"),
    [
        ("first", 12, 6, [0, 1, 2, 3, 4, 5]),
        ("middle", 12, 6, [3, 4, 5, 6, 7, 8]),
        ("last", 12, 6, [6, 7, 8, 9, 10, 11]),
        ("mixed", 12, 6, [0, 2, 4, 7, 9, 11]),
        ("scratch", 12, 6, []),
        ("first", 30, 6, [0, 1, 2, 3, 4, 5]),
        ("middle", 30, 6, [12, 13, 14, 15, 16, 17]),
        ("last", 30, 6, [24, 25, 26, 27, 28, 29]),
        ("mixed", 30, 6, [0, 6, 12, 17, 23, 29]),
        ("middle", 7, 3, [2, 3, 4]),
        ("mixed", 7, 3, [0, 3, 6]),
        ("middle", 8, 3, [2, 3, 4]),
        ("mixed", 12, 3, [0, 6, 11]),  # 5.5 rounds to the even 6
        ("mixed", 4, 3, [0, 2, 3]),  # and 1.5 to 2
        ("first", 9, 1, [0]),
        ("middle", 9, 1, [4]),
        ("last", 9, 1, [8]),
        ("mixed", 9, 1, [0]),
        ("mixed", 2, 2, [0, 1]),
    ],
)
def test_layers_of_the_method(init: str, layers: int, depth: int, expected: list[int]) -> None:
    assert layer_indices(init, layers=layers, depth=depth) == expected


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("layers", [1, 6, 12, 30])
def test_a_student_as_deep_as_its_teacher_takes_every_layer(init: str, layers: int) -> None:
    assert layer_indices(init, layers=layers, depth=layers) == list(range(layers))


@given(init=st.sampled_from(INITS), layers=st.integers(1, 100), depth=st.integers(1, 100))
@settings(deadline=None, max_examples=300)
def test_layers_are_distinct_in_order_and_anchored(init: str, layers: int, depth: int) -> None:
    assume(depth <= layers)
    chosen = layer_indices(init, layers=layers, depth=depth)
    assert len(chosen) == depth
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < layers
    if init in ("first", "mixed"):
        assert chosen[0] == 0
    if init == "last" or (init == "mixed" and depth > 1):
        assert chosen[-1] == layers - 1
    if init == "middle":
        assert (layers - 1 - chosen[-1]) - chosen[0] in (0, 1)
    if init == "mixed" and depth > 1:  # exact arithmetic, halves to the even number
        assert chosen == [round(Fraction(i * (layers - 1), depth - 1)) for i in range(depth)]


@pytest.mark.parametrize(("depth", "layers"), [(0, 4), (5, 4), (-1, 4)])
def test_more_layers_than_there_are_is_refused(depth: int, layers: int) -> None:
    with pytest.raises(BadInput, match=f"student.layers is {depth}, expected 1 to {layers}"):
        layer_indices("mixed", layers=layers, depth=depth)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(BadInput, match="init is 'best', expected first, middle"):
        layer_indices("best", layers=4, depth=2)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_every_weight_of_a_cut_student_is_its_teachers(teacher: torch.nn.Module, init: str, depth: int) -> None:
    student, source = cut(teacher, init=init, depth=depth).state_dict(), teacher.state_dict()
    chosen = layer_indices(init, layers=5, depth=depth)
    expected = {name: tensor for name, tensor in source.items() if ".layers." not in name}
    assert set(expected) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for position, layer in enumerate(chosen):
        for name, tensor in source.items():
            if name.startswith(f"model.layers.{layer}."):
                expected[name.replace(f".layers.{layer}.", f".layers.{position}.")] = tensor
    assert same(student, expected)


@pytest.mark.parametrize("init", INITS)
def test_a_student_of_full_depth_is_the_teacher(teacher: torch.nn.Module, init: str) -> None:
    assert torch.equal(logits(cut(teacher, init=init, depth=5).eval()), logits(teacher))


def test_a_narrowed_student_lacks_exactly_its_smallest_neurons(teacher: torch.nn.Module) -> None:
    """The others stay in their order, so it computes what the full one does with the smallest silenced."""
    width = teacher.config.intermediate_size
    silenced = cut(teacher, init="first", depth=2)
    with torch.no_grad():
        for layer in silenced.model.layers:
            mlp = layer.mlp
            size = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
            mlp.down_proj.weight[:, size.argsort()[: width // 3]] = 0.0
    student = cut(teacher, init="first", depth=2, ffn=width - width // 3)
    assert student.config.intermediate_size == width - width // 3
    assert student.model.layers[1].mlp.gate_proj.weight.shape[0] == width - width // 3
    assert torch.allclose(logits(student.eval()), logits(silenced.eval()), atol=1e-5)
    assert same(
        cut(teacher, init="mixed", depth=2, ffn=width).state_dict(), cut(teacher, init="mixed", depth=2).state_dict()
    )
    for ffn in (0, width + 1):
        with pytest.raises(BadInput, match=f"ffn is {ffn}, expected 1 to {width}"):
            cut(teacher, init="mixed", depth=2, ffn=ffn)


def test_scratch_students_differ_by_seed(teacher: torch.nn.Module) -> None:
    first, again, other = (cut(teacher, init="scratch", depth=2, seed=seed).state_dict() for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_a_cut_student_is_its_own_model(teacher: torch.nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = cut(teacher, init="mixed", depth=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert same(teacher.state_dict(), before)
    assert teacher.config.num_hidden_layers == 5


def test_scratch_is_random_by_its_seed_alone(teacher: torch.nn.Module) -> None:
    torch.manual_seed(7)
    first = cut(teacher, init="scratch", depth=2, seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn), "the global generator was moved"
    assert same(cut(teacher, init="scratch", depth=2, seed=3).state_dict(), first)
    other = cut(teacher, init="scratch", depth=2, seed=4).state_dict()
    copied = cut(teacher, init="first", depth=2).state_dict()
    assert first.keys() == other.keys() == copied.keys()
    for name, tensor in first.items():
        assert not torch.equal(tensor, copied[name]), name
        if tensor.ndim == 2:
            assert not torch.equal(tensor, other[name]), name
