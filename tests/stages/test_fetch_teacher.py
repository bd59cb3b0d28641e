"""Teachers that exist already: shipped with the package, in a folder, on the Hub."""

import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fixtures.training_world import SHAPE, VOCABULARY
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from budgeted_lora.config.scale import load_config
from budgeted_lora.config.sections import Teacher
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file, write_json
from budgeted_lora.models import checkpoint as shipped
from budgeted_lora.models.load import load_model, mistral_config, new_model, save_model
from budgeted_lora.stages.fetch_teacher import check_card, fetch_teacher
from tools.ship_teachers import LIMIT_BYTES

ROOT = Path(__file__).resolve().parents[2]
ASSETS = Path(str(files("budgeted_lora").joinpath("assets")))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OURS = {"layers": 3, "hidden": 16, "ffn": 48, "heads": 2, "kv_heads": 1}


def write_tokenizer(folder: Path, words: list[str]) -> None:
    vocabulary = {word: number for number, word in enumerate(words)}
    Tokenizer(WordLevel(vocabulary, unk_token=words[0])).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": words[0]})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder with what a Hub snapshot holds besides."""
    folder = tmp_path / "checkpoint"
    save_model(new_model(mistral_config(layers=3, **SHAPE), seed=0), folder, dtype=torch.float16)
    write_tokenizer(folder, [f"w{i}" for i in range(VOCABULARY)])
    for name in ("README.md", "pytorch_model.bin", "optimizer.pt", "modeling_mine.py"):
        (folder / name).write_text("not to be copied")
    return folder


def fetch(tmp_path: Path, *, source: str = "folder", **spec: object) -> dict:
    rule = {"slice_per_mille": spec.pop("slice_per_mille", 40), "hold_out_words": spec.pop("hold_out_words", False)}
    first = spec.pop("first", None)
    fetch_teacher(
        name="A", source=source, spec=Teacher(**(OURS | spec)), out=tmp_path / "model",
        record=tmp_path / "teacher.json", scale="tiny", first=first, **rule,
    )  # fmt: skip
    return json.loads((tmp_path / "teacher.json").read_text())


def refusal(tmp_path: Path, **arguments: object) -> str:
    with pytest.raises(BadInput) as caught:
        fetch(tmp_path, **arguments)
    assert not (tmp_path / "teacher.json").exists()
    assert not (tmp_path / "model").exists(), "nothing is put in place before it is shown to be good"
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a local folder


def test_a_folder_is_copied_without_what_is_not_needed(checkpoint: Path, tmp_path: Path) -> None:
    record = fetch(tmp_path, folder=str(checkpoint))
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == wanted
    for name in wanted:
        assert (tmp_path / "model" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert record["source"] == "folder"
    assert record["card"] is None
    assert record["sha256"] == sha256_file(tmp_path / "model")
    assert load_model(tmp_path / "model").config.vocab_size == VOCABULARY


@pytest.mark.parametrize(
    ("key", "ours", "named"),
    [
        ("layers", 2, "num_hidden_layers is 3, but teacher_ladder.A says 2"),
        ("hidden", 32, "hidden_size is 16, but teacher_ladder.A says 32"),
        ("ffn", 64, "intermediate_size is 48, but teacher_ladder.A says 64"),
        ("heads", 4, "num_attention_heads is 2, but teacher_ladder.A says 4"),
        ("kv_heads", 2, "num_key_value_heads is 1, but teacher_ladder.A says 2"),
    ],
)
def test_a_folder_of_another_shape_is_refused(
    checkpoint: Path, tmp_path: Path, key: str, ours: int, named: str
) -> None:
    message = refusal(tmp_path, folder=str(checkpoint), **{key: ours})
    assert message == f"{checkpoint}: {named}"


def test_a_llama_without_kv_heads_has_one_a_head(checkpoint: Path, tmp_path: Path) -> None:
    """Other families of transformers have other defaults, so they must say it."""
    about = read_json(checkpoint / "config.json")
    del about["num_key_value_heads"]
    write_json(checkpoint / "config.json", about)
    assert "num_key_value_heads is None, expected a whole number" in refusal(tmp_path, folder=str(checkpoint))
    write_json(checkpoint / "config.json", about | {"model_type": "llama"})
    assert "num_key_value_heads is 2" in refusal(tmp_path, folder=str(checkpoint))
    message = refusal(tmp_path, folder=str(checkpoint), kv_heads=2)
    assert message.endswith("self_attn.k_proj.weight is [8, 16], but config.json says [16, 16]")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, folder=str(tmp_path / "gone")) == f"{tmp_path / 'gone'}: no such checkpoint folder"


def test_a_folder_without_safetensors_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "no .safetensors file" in refusal(tmp_path, folder=str(checkpoint))
    assert not (tmp_path / "model").exists()


def test_a_folder_without_configuration_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json: no such file" in refusal(tmp_path, folder=str(checkpoint))


# --- shipped with the package


@pytest.fixture
def package(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up package that ships one teacher, A, kept from the first 40 per mille; returns the teacher's folder."""
    folder = tmp_path / "package" / "assets" / "teachers" / "A"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(checkpoint / name, folder / name)
    card = {
        "stands_for": "A", "shape": OURS, "sha256": sha256_file(folder / "model.safetensors"),
        "held_out": {"slice_per_mille": 40, "hold_out_words": False},
    }  # fmt: skip
    write_json(folder / "card.json", card)
    monkeypatch.setattr(shipped, "files", lambda _: tmp_path / "package")
    return folder


def test_a_shipped_teacher_comes_with_its_card(package: Path, tmp_path: Path) -> None:
    record = fetch(tmp_path, source="shipped")
    assert record["card"] == read_json(package / "card.json")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert sha256_file(tmp_path / "model" / "model.safetensors") == record["card"]["sha256"]


def test_a_narrower_slice_is_fine(package: Path, tmp_path: Path) -> None:
    assert fetch(tmp_path, source="shipped", slice_per_mille=39)["card"]["held_out"]["slice_per_mille"] == 40


@pytest.mark.usefixtures("package")
def test_a_wider_slice_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, source="shipped", slice_per_mille=41)
    assert message.startswith(
        "corpus.slice_per_mille is 41, but only 40 per mille were held out from the shipped teacher A"
    )


@pytest.mark.usefixtures("package")
def test_held_out_words_need_a_teacher_that_did_not_see_them(package: Path, tmp_path: Path) -> None:
    assert "corpus.hold_out_words is on" in refusal(tmp_path, source="shipped", hold_out_words=True)
    card = read_json(package / "card.json")
    write_json(package / "card.json", card | {"held_out": {"slice_per_mille": 40, "hold_out_words": True}})
    fetch(tmp_path, source="shipped", hold_out_words=True)


def test_damaged_shipped_weights_are_refused(package: Path, tmp_path: Path) -> None:
    data = bytearray((package / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (package / "model.safetensors").write_bytes(data)
    assert "model.safetensors: checksum mismatch with card.json; reinstall the package" in refusal(
        tmp_path, source="shipped"
    )


@pytest.mark.usefixtures("package")
def test_a_shipped_teacher_of_another_shape_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, source="shipped", layers=4)
    assert message.startswith("teacher_ladder.A is {'layers': 4")
    assert "but the shipped teacher is {'layers': 3" in message


def test_a_teacher_that_does_not_ship_is_refused_with_those_that_do(package: Path, tmp_path: Path) -> None:
    package.rename(package.with_name("B"))
    message = refusal(tmp_path, source="shipped")
    assert message == "teacher 'A' does not ship with the package, which has B; use teachers: pretrain"
    shutil.rmtree(package.parent)
    assert "which has none" in refusal(tmp_path, source="shipped")


# --- the Hub


def test_a_pinned_commit_is_what_is_downloaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(repo: str, **options: object) -> str:
        calls.append((repo, options))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    record = fetch(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert [(repo, options["revision"]) for repo, options in calls] == [("owner/name", COMMIT)] * 2
    assert calls[0][1]["allow_patterns"] == ["config.json"]
    options = calls[1][1]
    assert "*.py" not in options["allow_patterns"]
    assert not any(pattern.endswith(("bin", "*")) for pattern in options["allow_patterns"])
    assert record["provenance"]["values"]["revision"] == COMMIT
    assert load_file(tmp_path / "model" / "model.safetensors")


def test_what_cannot_be_used_is_not_downloaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.json comes first and alone."""
    about = read_json(checkpoint / "config.json")
    write_json(checkpoint / "config.json", about | {"quantization_config": {"quant_method": "gptq"}})

    def download(_: str, *, allow_patterns: list[str], **__: object) -> str:
        assert allow_patterns == ["config.json"], "the weights were asked for"
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert message == "owner/name: its weights are quantised (gptq), expected float32, float16 or bfloat16 weights"


@pytest.mark.parametrize("revision", [None, "", "main", "v1.0", COMMIT[:12]])
def test_a_revision_that_can_move_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=revision)
    assert message.startswith(f"teacher owner/name: revision is {revision!r}; expected the 40 hex digits of a commit")


def test_an_unreachable_hub_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1, which the library reads when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert message == (
        f"owner/name at {COMMIT}: not in the Hub's cache, and HF_HUB_OFFLINE forbids the network; unset it, or run "
        f"with a network: hf download owner/name --revision {COMMIT}"
    )


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("proxy"), ValueError("bad name")])
def test_whatever_goes_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    expected = " ".join(str(error).split())
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert message == f"owner/name: cannot be downloaded ({expected})"


def test_an_unknown_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def fail(*_: object, **__: object) -> None:
        raise Unknown

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert message == (
        f"owner/name at {COMMIT}: not on the Hub under that name and commit (a private one needs `hf auth login`)"
    )


def test_a_gated_name_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gated(GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "403")

    def fail(*_: object, **__: object) -> None:
        raise Gated

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert message == "owner/name: gated; ask its owners for access and log in with `hf auth login`"


# --- whole or not


@pytest.fixture
def sharded(checkpoint: Path) -> Path:
    """The same checkpoint in two shards and an index."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, inside in parts.items():
        save_file({name: weights[name] for name in inside}, checkpoint / file)
    table = {name: file for file, inside in parts.items() for name in inside}
    write_json(checkpoint / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})
    save_file({"other": torch.zeros(1)}, checkpoint / "model-00009-of-00009.safetensors")
    return checkpoint


def test_shards_come_with_their_index_and_load(sharded: Path, tmp_path: Path) -> None:
    record = fetch(tmp_path, folder=str(sharded))
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {name for name in names if name.startswith("model")} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"
    }, "a shard that the index does not name stays behind"  # fmt: skip
    model = load_model(tmp_path / "model")
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (record["vocab_size"], record["model_type"]) == (VOCABULARY, "mistral")


def test_a_missing_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert refusal(tmp_path, folder=str(sharded)) == (
        f"{sharded}: 1 of the 2 shards that model.safetensors.index.json names are missing "
        "(model-00002-of-00002.safetensors)"
    )


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
@pytest.mark.parametrize("cut", [4, 40, -1])
def test_a_truncated_shard_is_named(sharded: Path, tmp_path: Path, file: str, cut: int) -> None:
    data = (sharded / file).read_bytes()
    (sharded / file).write_bytes(data[:cut])
    message = refusal(tmp_path, folder=str(sharded))
    assert message.startswith(f"{sharded / file}: ")
    assert "truncated" in message or "cut short" in message


def test_a_tensor_that_is_not_where_the_index_says(sharded: Path, tmp_path: Path) -> None:
    index = read_json(sharded / "model.safetensors.index.json")
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    write_json(sharded / "model.safetensors.index.json", index)
    message = refusal(tmp_path, folder=str(sharded))
    assert "puts lm_head.weight here, but the shard does not hold it" in message


@pytest.mark.parametrize(
    "index", [{}, [], {"weight_map": {}}, {"weight_map": {"a": "../other.safetensors"}}, {"weight_map": {"a": "x.bin"}}]
)
def test_an_index_that_is_none_is_refused(sharded: Path, tmp_path: Path, index: object) -> None:
    write_json(sharded / "model.safetensors.index.json", index)
    line = refusal(tmp_path, folder=str(sharded))
    expected = "expected weight_map" if isinstance(index, dict) else "holds a list; expected the index"
    assert f"model.safetensors.index.json: {expected}" in line


@pytest.mark.parametrize("damage", ["shorter", "longer", "header"])
def test_a_damaged_file_is_named(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"shorter": data[:-3], "longer": data + b"x", "header": data[:8] + b"}" + data[9:]}[damage])
    assert refusal(tmp_path, folder=str(checkpoint)).startswith(f"{file}: ")


# --- what is asked for or not


def test_another_class_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    about = read_json(checkpoint / "config.json")
    write_json(checkpoint / "config.json", about | {"model_type": "gpt2"})
    assert refusal(tmp_path, folder=str(checkpoint)) == (
        f"{checkpoint}: model_type is 'gpt2', whose projections are fused (c_attn), expected one of "
        "gemma, gemma3_text, llama, mistral, qwen2, qwen3, smollm3"
    )


def test_a_model_without_a_head_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, checkpoint / "model.safetensors")
    message = refusal(tmp_path, folder=str(checkpoint))
    assert "no lm_head.weight; its output layer is not the embedding matrix (tie_word_embeddings); expected" in message


def test_weights_stored_as_whole_numbers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(torch.int8)}, checkpoint / "model.safetensors")
    message = refusal(tmp_path, folder=str(checkpoint))
    assert message.endswith(f"model.safetensors: {name} is stored as I8, expected one of BF16, F16, F32, F64")


def test_a_configuration_that_its_weights_belie_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    about = read_json(checkpoint / "config.json")
    write_json(checkpoint / "config.json", about | {"vocab_size": 60})
    message = refusal(tmp_path, folder=str(checkpoint))
    assert message.endswith("model.embed_tokens.weight is [61, 16], but config.json says [60, 16]")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_tokenizer(checkpoint, [f"w{i}" for i in range(VOCABULARY + 1)])
    message = refusal(tmp_path, folder=str(checkpoint))
    assert message.startswith(f"{checkpoint}: vocabulary of 61, but its tokenizer has 62; teacher, student and tokens")
    write_tokenizer(checkpoint, [f"w{i}" for i in range(VOCABULARY - 1)])  # the embeddings are padded
    assert fetch(tmp_path, folder=str(checkpoint))["vocab_size"] == VOCABULARY


def test_teachers_share_one_vocabulary(checkpoint: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(checkpoint, first)
    write_tokenizer(first, [f"w{i}" for i in range(VOCABULARY - 2)] + ["w60", "w59"])
    message = refusal(tmp_path, folder=str(checkpoint), first=first)
    assert message == (
        f"{checkpoint}: 2 tokens differ from the first teacher's vocabulary ('w59' is 59 here, 60 there); "
        "all teachers must share one"
    )
    shutil.copyfile(checkpoint / "tokenizer.json", first / "tokenizer.json")
    about = read_json(first / "config.json")
    write_json(first / "config.json", about | {"vocab_size": 99})
    assert "vocabulary of 61, but the first teacher has 99" in refusal(tmp_path, folder=str(checkpoint), first=first)
    write_json(first / "config.json", about)
    assert fetch(tmp_path, folder=str(checkpoint), first=first)["vocab_size"] == VOCABULARY


# --- what the Hub recorded


@pytest.fixture
def snapshot(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint as the Hub's cache keeps it: links to blobs that are named by their digest."""
    root = tmp_path / "hub"
    folder, blobs = root / "snapshots" / COMMIT, root / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = blobs / (sha256_file(path) if path.suffix == ".safetensors" else git)
        blob.write_bytes(data)
        (folder / path.name).symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return folder


def test_downloads_are_checked_by_the_hubs_digests(snapshot: Path, tmp_path: Path) -> None:
    record = fetch(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    weights = tmp_path / "model" / "model.safetensors"
    assert not weights.is_symlink()
    assert record["hub_digests"]["model.safetensors"] == sha256_file(weights)
    assert {"config.json", "tokenizer.json"} <= record["hub_digests"].keys()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
def test_a_flipped_bit_in_a_download_is_found(snapshot: Path, tmp_path: Path, name: str) -> None:
    blob = (snapshot / name).resolve()
    data = bytearray(blob.read_bytes())
    data[-2] ^= 1
    blob.write_bytes(data)
    message = refusal(tmp_path, source="hub", hub="owner/name", revision=COMMIT)
    assert message.startswith(f"{snapshot / name}: damaged download, its digest is ")
    assert message.endswith(f"delete {blob} and rerun")


# --- the teachers that really ship


@pytest.mark.skipif(not (ASSETS / "teachers").is_dir(), reason="no teachers in this checkout")
def test_every_shipped_teacher_is_what_its_card_says() -> None:
    config = load_config(ROOT / "config" / "mini.yaml")
    encoder = open_tokenizer(shipped.shipped_tokenizer()).tokenizer
    sizes = [path.stat().st_size for part in ("teachers", "tokenizer") for path in (ASSETS / part).rglob("*.*")]
    assert sum(sizes) <= LIMIT_BYTES
    assert {path.name for path in (ASSETS / "teachers").iterdir()} == set(config.teacher_ladder)
    perplexities, composites = [], []
    for name, spec in config.teacher_ladder.items():
        folder = shipped.shipped_folder(name)
        card = check_card(
            folder,
            spec=spec,
            slice_per_mille=config.corpus.slice_per_mille,
            hold_out_words=config.corpus.hold_out_words,
        )
        assert card["stands_for"] == name
        assert card["tokenizer_sha256"] == sha256_file(shipped.shipped_tokenizer())
        assert card["held_out"]["slice_per_mille"] >= config.corpus.slice_per_mille
        assert 0.99 < card["tokens"] / sum(spec.legs) <= 1, "teachers: pretrain must make the same teacher"
        assert all(0 < card["icl"][key] < 1 for key in ("composite", "composite_se", "chance_composite"))
        assert card["sha256"] in (folder / "README.md").read_text(encoding="utf-8")
        weights = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} <= {torch.float16, torch.bfloat16}
        assert card["parameters"] == sum(tensor.numel() for tensor in weights.values())
        assert load_model(folder).config.vocab_size == encoder.get_vocab_size()
        perplexities.append(card["perplexity"]["value"])
        composites.append(card["icl"]["composite"])
    assert perplexities == sorted(perplexities, reverse=True), "larger teachers must have lower perplexities"
    assert composites == sorted(composites), "larger teachers must do better in context"
