"""The teacher cache: exact, resumable, and refused when it does not belong."""

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.training_world import LENGTH, make_recipe, make_world
from safetensors.torch import load_file

from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import sha256_file, write_record
from budgeted_lora.models.device import compute_dtype
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.stages import train_cell as stage
from budgeted_lora.stages.cache_teacher import cache_teacher
from budgeted_lora.training import cache as cache_module
from budgeted_lora.training.cache import HiddenCache, OnlineTeacher, cache_hidden, describe_cache, read_head
from budgeted_lora.training.state import locked_folder

CPU = torch.device("cpu")
WINDOWS, BATCH = 22, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"))


def make_cache(world, root, *, teacher=None, packing="packed", windows=WINDOWS, dtype=torch.float32):
    teacher = teacher or world.teacher
    model = load_model(teacher, dtype=dtype)
    cut = Windows(TokenFile.open(world.tokens), LENGTH, packing)
    about = describe_cache(model, cut, count=windows, batch_windows=BATCH, teacher=teacher)
    with locked_folder(root / "state" / "cache") as folder:
        about = cache_hidden(model, cut, about, folder=folder, out=root / "cache", device=CPU)
        shutil.rmtree(folder)
    return about


def open_cache(world, root, *, packing="packed", **changed):
    arguments = {
        "teacher": world.teacher,
        "windows": Windows(TokenFile.open(world.tokens), changed.pop("sequence_length", LENGTH), packing),
        "count": WINDOWS,
        "device": CPU,
    }
    return HiddenCache.open(root / "cache", **(arguments | changed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", ["packed", "document"])
def test_cached_logits_are_the_models_own_bit_for_bit(world, tmp_path, dtype, packing):
    about = make_cache(world, tmp_path, dtype=dtype, packing=packing)
    assert about["shape"] == [WINDOWS, LENGTH, 16]
    assert sha256_file(tmp_path / "cache" / "hidden.bin") == about["sha256"]
    cached = open_cache(world, tmp_path, packing=packing)
    tokens, model = TokenFile.open(world.tokens), load_model(world.teacher, dtype=dtype)
    for start in range(0, WINDOWS, BATCH):
        indices = np.arange(start, min(start + BATCH, WINDOWS))
        ids = torch.from_numpy(Windows(tokens, LENGTH, packing).read(indices)[0])
        hidden = cached.hidden(indices, ids)
        assert hidden.dtype == cached.head.dtype == dtype
        with torch.no_grad():
            assert torch.equal(hidden @ cached.head.T, model(ids).logits)
            assert torch.equal(hidden, OnlineTeacher(model).hidden(indices, ids))


def test_windows_are_read_in_any_order(world, tmp_path):
    make_cache(world, tmp_path)
    cached = open_cache(world, tmp_path)
    ids = torch.zeros(3, LENGTH, dtype=torch.int64)
    picked = cached.hidden(np.array([20, 3, 3]), ids)
    assert torch.equal(picked[1], picked[2])
    assert torch.equal(picked[0], cached.hidden(np.array([20]), ids)[0])
    assert not torch.equal(picked[0], picked[1])


def test_training_from_the_cache_equals_training_online(world, tmp_path):
    make_cache(world, tmp_path, windows=48)
    weights = []
    for name, cache in {"online": None, "cached": tmp_path / "cache"}.items():
        stage.train_cell(
            recipe=make_recipe("budgeted_lora"),
            cell="cell",
            scale="test",
            student=world.student,
            teacher=world.teacher,
            tokens=world.tokens,
            cache=cache,
            out=tmp_path / name,
            state=tmp_path / "state",
            device="cpu",
            threads=1,
            log_every=2,
            checkpoint_every=100,
        )
        weights.append(load_file(tmp_path / name / "trained" / "model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(world, tmp_path, monkeypatch):
    whole = make_cache(world, tmp_path / "whole")
    real, calls = cache_module.final_hidden, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cache_module, "final_hidden", dying)
    with pytest.raises(KeyboardInterrupt):
        make_cache(world, tmp_path / "cut")
    assert not (tmp_path / "cut" / "cache").exists()
    [partial] = (tmp_path / "cut" / "state").glob("*/hidden.bin")
    with partial.open("ab") as stream:
        stream.write(b"half a window")
    counted = []
    monkeypatch.setattr(cache_module, "final_hidden", lambda *a: counted.append(1) or real(*a))
    assert make_cache(world, tmp_path / "cut") == whole
    assert len(counted) == 3  # of 6 batches, 3 were whole
    assert not any((tmp_path / "cut" / "state").iterdir())


def test_a_cache_is_cut_to_the_windows_there_are(world, tmp_path):
    available = Windows(TokenFile.open(world.tokens), LENGTH, "packed").count
    assert make_cache(world, tmp_path, windows=10**6)["shape"][0] == available


def test_a_cache_that_does_not_belong_is_refused(world, tmp_path):
    make_cache(world, tmp_path)
    with pytest.raises(BadInput, match="made from teacher"):
        open_cache(world, tmp_path, teacher=world.student)
    with pytest.raises(BadInput, match="holds 22 windows, expected at least 23"):
        open_cache(world, tmp_path, count=WINDOWS + 1)
    with pytest.raises(BadInput, match="made for packed windows of 16 tokens, expected packed windows of 8"):
        open_cache(world, tmp_path, sequence_length=8)
    record = tmp_path / "cache" / "cache.json"
    about = json.loads(record.read_text())
    write_record(record, about | {"tokens": "0" * 64})
    with pytest.raises(BadInput, match="made from tokens"):
        open_cache(world, tmp_path)


def test_a_truncated_cache_is_refused(world, tmp_path):
    make_cache(world, tmp_path)
    file = tmp_path / "cache" / "hidden.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match="truncated or damaged"):
        open_cache(world, tmp_path)


def test_the_head_is_read_alone(world, tmp_path):
    assert torch.equal(read_head(world.teacher), load_model(world.teacher).lm_head.weight)
    shutil.copytree(world.teacher, tmp_path / "half")
    save_model(load_model(world.teacher), tmp_path / "half", dtype=torch.bfloat16)
    assert read_head(tmp_path / "half").dtype == torch.bfloat16
    with pytest.raises(BadInput, match=r"no lm_head\.weight"):
        read_head(tmp_path)


def test_the_stage_writes_what_a_cell_reads(world, tmp_path):
    cache_teacher(
        teacher=world.teacher,
        tokens=world.tokens,
        windows=WINDOWS,
        sequence_length=LENGTH,
        rows="packed",
        batch_windows=BATCH,
        precision="bfloat16",
        scale="test",
        out=tmp_path / "cache",
        state=tmp_path / "state",
        device="cpu",
        threads=1,
    )
    assert open_cache(world, tmp_path).dtype == compute_dtype("bfloat16", torch.device("cpu"))
    made = json.loads((tmp_path / "cache" / "provenance.json").read_text())["provenance"]
    assert (made["scale"], made["values"]["shape"]) == ("test", [WINDOWS, LENGTH, 16])
