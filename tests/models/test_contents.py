"""What a checkpoint says of itself against the weights that it holds."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.families import FAMILIES, LAYERS, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from budgeted_lora.config.scale import load_config
from budgeted_lora.config.sections import Teacher
from budgeted_lora.errors import BadInput
from budgeted_lora.models import contents
from budgeted_lora.models.checkpoint import EMBEDDINGS, HEAD, check_checkpoint, stored_tensors
from budgeted_lora.models.contents import check_contents
from budgeted_lora.planning.teachers import local_weights, shipped_teachers
from budgeted_lora.workflow.graph import Graph

LAST = f"model.layers.{LAYERS - 1}.mlp.down_proj.weight"
KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def rewritten(folder: Path, **changes: Tensor) -> Path:
    """A checkpoint with other tensors, by name with __ for dots."""
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {name.replace("__", "."): value for name, value in changes.items()}, folder / "model.safetensors"
    )
    return folder


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(BadInput) as caught:
        check_checkpoint(folder, name="A", spec=Teacher(folder=str(folder)), contents=True, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tied_embeddings_with_another_head_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "A", "qwen2")
    spec, embeddings = Teacher(folder=str(folder)), load_file(folder / "model.safetensors")[EMBEDDINGS]
    before = check_checkpoint(folder, name="A", spec=spec, contents=True)
    rewritten(folder, lm_head__weight=embeddings.clone())
    assert check_checkpoint(folder, name="A", spec=spec, contents=True) == before, "the same matrix once more"
    for head in (embeddings * 1.01, embeddings.float(), embeddings[:-1].clone()):
        rewritten(folder, lm_head__weight=head)
        expected = f"{HEAD} differs from {EMBEDDINGS}, but config.json says tie_word_embeddings: true"
        assert expected in refusal(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    rewritten(folder, lm_head__weight=embeddings * 1.01)
    assert check_checkpoint(folder, name="A", spec=spec, contents=True)["parameters"] > before["parameters"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_is_expected(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "A", family)
    tensors = load_file(folder / "model.safetensors")
    about = check_checkpoint(folder, name="A", spec=Teacher(folder=str(folder)))
    assert about["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    for lacking in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, folder / "model.safetensors")
        assert f"no {lacking}" in refusal(folder)


@pytest.mark.parametrize("norm", ["layers.0.input_layernorm", "layers.5.self_attn.q_norm"])
def test_a_norm_of_another_width_is_refused(tmp_path: Path, norm: str) -> None:
    folder = rewritten(write_checkpoint(tmp_path / "A", "qwen3"), **{f"model.{norm}.weight": torch.ones(7)})
    assert f"model.{norm}.weight is [7], but config.json says [" in refusal(folder)


def test_tensors_that_no_layer_uses_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "A", "mistral")
    spec = Teacher(folder=str(folder))
    before = check_checkpoint(folder, name="A", spec=spec, contents=True)
    rewritten(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert check_checkpoint(folder, name="A", spec=spec, contents=True) == before, "computed, not learnt"
    rewritten(folder, model__layers__0__self_attn__q_proj__bias=torch.ones(32))
    assert "holds model.layers.0.self_attn.q_proj.bias, which would not be used; expected" in refusal(folder)
    rewritten(folder, **{f"model.layers.{LAYERS}.mlp.{kind}_proj.weight": torch.ones(1) for kind in "abc"})
    assert f"holds model.layers.0.self_attn.q_proj.bias, model.layers.{LAYERS}.mlp" in (line := refusal(folder))
    assert " and 1 more tensors, which" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    folder = write_checkpoint(tmp_path / "A", "llama", shards=True)
    [file] = {tensor.file for name, tensor in stored_tensors(folder).items() if name == LAST}
    tensors = load_file(file)
    tensors[LAST][-1, -1] = value
    save_file(tensors, file)
    assert refusal(folder).startswith(f"{file}: {LAST} holds NaN or infinity")
    assert check_checkpoint(folder, name="A", spec=Teacher(folder=str(folder)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(deadline=None, max_examples=40)
@given(bits=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_finite_is_what_torch_calls_finite(
    tmp_path_factory: pytest.TempPathFactory, kind: torch.dtype, bits: list[int]
) -> None:
    size = kind.itemsize
    raw = b"".join(number.to_bytes(8, "little")[-size:] for number in bits)
    values = torch.frombuffer(bytearray(raw), dtype=kind)
    folder = tmp_path_factory.mktemp("bits")
    save_file({EMBEDDINGS: values}, folder / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "BLOCK", 2)
        try:
            check_contents(stored_tensors(folder))
            accepted = True
        except BadInput:
            accepted = False
    assert accepted == bool(torch.isfinite(values).all())


def test_a_context_shorter_than_what_is_read_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "A", "qwen3")  # 64 positions
    assert check_checkpoint(folder, name="A", spec=Teacher(folder=str(folder)), context=64)
    assert "max_position_embeddings is 64, but 65 tokens are read at once" in refusal(folder, context=65)


@pytest.mark.parametrize(
    "values", [{"sequence_length": 65}, {"sequence_length": 64, "evaluation": {"context": 65}}], ids=str
)
def test_a_scale_that_reads_more_is_refused_when_it_is_read(tmp_path: Path, values: dict[str, object]) -> None:
    folder = write_checkpoint(tmp_path / "A", "qwen3")
    scale = {"scale": "own", "teachers": "folder", "teacher_ladder": {"A": {"folder": str(folder)}}}
    scale |= {"student": {"layers": 2}, "lora": {"rank": 2}, "corpus": {"packages": ["networkx"]}}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(scale | values))
    with pytest.raises(
        BadInput, match=r"own\.yaml: the checkpoint of teacher_ladder\.A: max_position_embeddings is 64"
    ):
        load_config(file)
    file.write_text(yaml.safe_dump(scale | {"sequence_length": 64}))
    assert load_config(file).context == 64


# --- the doctor


def own_graph(folder: Path) -> Graph:
    scale = {"scale": "own", "teachers": "folder", "teacher_ladder": {"A": {"folder": str(folder)}}}
    scale |= {"student": {"layers": 2}, "lora": {"rank": 2}, "sequence_length": 64}
    file = folder.parent / "own.yaml"
    file.write_text(yaml.safe_dump(scale | {"corpus": {"packages": ["networkx"]}}))
    return Graph(load_config(file))


def test_the_doctor_reads_the_weights_of_local_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path / "A", "qwen2")
    graph = own_graph(folder)
    [finding] = local_weights(graph)
    assert (finding.name, finding.state) == ("weights", "ok")
    weight = load_file(folder / "model.safetensors")[LAST]
    rewritten(folder, **{LAST.replace(".", "__"): weight * float("nan")})
    [finding] = local_weights(graph)
    assert (finding.state, f"{LAST} holds NaN" in finding.detail) == ("missing", True)
    (fetched := Path(graph.results, "teachers", "A", "teacher.json")).parent.mkdir(parents=True)
    fetched.write_text("{}")
    assert list(local_weights(graph)) == [], "it was looked at when it was fetched"


def test_the_doctor_compares_the_context_of_shipped_teachers() -> None:
    scale = Path(__file__).resolve().parents[2] / "config" / "mini.yaml"
    assert list(shipped_teachers(Graph(load_config(scale)))) == []
    findings = list(shipped_teachers(Graph(load_config(scale, {"evaluation": {"context": 257}}))))
    assert len(findings) == 3
    assert findings[0].detail.startswith(
        "shipped teacher 0.13B: max_position_embeddings is 256, but 257 tokens are read"
    )
