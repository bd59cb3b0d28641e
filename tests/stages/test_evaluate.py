import json
import shutil

import numpy as np
import pandas as pd
import pytest

from budgeted_lora.config.sections import EvaluationOptions
from budgeted_lora.data import probes as rules
from budgeted_lora.data.tokenizer import END
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_json, write_record
from budgeted_lora.method.projections import install
from budgeted_lora.models.load import load_model, mistral_config, new_model, save_model
from budgeted_lora.models.trained import save_trained
from budgeted_lora.stages import evaluate as stage
from budgeted_lora.stages import twins
from budgeted_lora.stages.arguments import convert
from budgeted_lora.stages.evaluate import evaluate
from budgeted_lora.stages.train_tokenizer import train_bpe

VOCABULARY = 500
VALUES = {
    "context": None,
    "batch_windows": 3, "shots": 10, "demonstration_seeds": [0, 2], "queries": 2, "icl_batch": 16,
    "probes": "generated", "probes_folder": None, "prompt_space": False, "sequence_length": 384, "rows": "packed",
    "validation_tokens": 2000, "slice_per_mille": 40, "hold_out_words": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder, a tokenizer, a model, and a trained student whose adapters do nothing yet."""
    root = tmp_path_factory.mktemp("evaluate")
    texts = [rules.function_document(number, seed=0, slice_per_mille=40) for number in range(300)]
    tokenizer = train_bpe(iter(texts), vocab_size=VOCABULARY)
    tokenizer.save(str(root / "tokenizer.json"))
    write_json(root / "tokenizer_config.json", {"eos_token": END})
    documents = [tokenizer.encode(text).ids for text in texts[:80]]
    end = tokenizer.token_to_id(END)
    write_tokens(root / "validation.bin", iter(documents), vocab_size=VOCABULARY, eos_id=end)
    write_tokens(root / "functions.bin", iter(documents[:20]), vocab_size=VOCABULARY, eos_id=end)
    write_tokens(root / "empty/validation.bin", iter(documents[:30]), vocab_size=VOCABULARY, eos_id=end)
    write_tokens(root / "empty/functions.bin", iter([]), vocab_size=VOCABULARY, eos_id=end)
    write_json(root / "manifest.json", {"proof": {"held_out_md5_list_sha256": {"validation": "abc"}}})
    shape = {"layers": 2, "hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 1}
    model = new_model(mistral_config(**shape, vocab_size=VOCABULARY, context=384, end_id=end), seed=0)
    save_model(model, root / "model")
    modules = install(model, rank=2, alpha=4.0, dropout=0.0, gates=True, seed=0)
    save_trained(root / "trained", model, method="budgeted_lora", modules=modules)
    return root


def run(folder, out, *, tokens=None, values=VALUES, **changes):
    evaluation = convert("evaluation", EvaluationOptions, values)
    arguments = {
        "model": folder / "model", "tokens": tokens or folder, "tokenizer": folder, "out": out,
        "evaluation": evaluation, "scale": "smoke", "cell": "c", "device": "cpu", "threads": 1, "icl": True,
    }  # fmt: skip
    evaluate(**arguments | changes)


def test_the_stage_writes_scores_windows_and_examples(folder, tmp_path):
    run(folder, tmp_path, student=folder / "model", uncompressed=folder / "trained")
    scores = json.loads((tmp_path / "perplexity.json").read_text())
    windows = pd.read_parquet(tmp_path / "perplexity_windows.parquet")
    assert scores["value"] == pytest.approx(np.exp(windows["nll"].sum() / windows["tokens"].sum()))
    assert scores["windows"] == len(windows) == 2000 // 384
    assert scores["tokens"] == windows["tokens"].sum()
    assert scores["standard_error"] > 0
    assert scores["functions"]["value"] > 1
    assert scores["bits_per_byte"] == pytest.approx(windows["nll"].sum() / np.log(2) / scores["bytes"])
    assert scores["tokens"] < scores["bytes"] < 8 * scores["tokens"]
    assert scores["uncompressed"]["bytes"] == scores["bytes"]
    assert scores["uncompressed"]["value"] == pytest.approx(scores["value"], rel=1e-6)  # B is zero
    assert scores["conditions"]["slice_sha256"] == "abc"
    assert scores["conditions"]["dtype"] == "float32"
    assert scores["provenance"]["values"] == VALUES
    assert scores["provenance"]["cell"] == "c"

    icl, examples = json.loads((tmp_path / "icl.json").read_text()), pd.read_parquet(tmp_path / "icl_examples.parquet")
    assert set(icl["probes"]) == set(rules.PROBES)
    assert icl["seeds"] == [0, 2]
    assert len(examples) == icl["examples"] == 19 * 2 * 2
    accuracies = examples.groupby("probe")["correct"].mean()
    assert icl["composite"] == pytest.approx(accuracies.mean())
    assert icl["prefix_breaks"] == 0
    assert icl["longest_prompt_with_answer"] <= 384
    assert 0 < icl["chance_composite"] <= 1
    fields = {"accuracy", "se", "n", "chance_constant", "chance_word", "ceiling"}
    assert all(fields <= set(probe) for probe in icl["probes"].values())


def test_the_same_run_gives_the_same_scores_and_leaves_other_files(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "compression.json").write_text("{}")
        run(folder, tmp_path / name)
        assert (tmp_path / name / "compression.json").read_text() == "{}"
    for file in ("perplexity_windows.parquet", "icl_examples.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_skipped_windows_are_not_scored(folder, tmp_path):
    """The same windows as of a whole run, behind the skipped ones; the key is recorded only where it is used."""
    (tmp_path / "all").mkdir()
    (tmp_path / "rest").mkdir()
    run(folder, tmp_path / "all", icl=False)
    run(folder, tmp_path / "rest", icl=False, values=VALUES | {"skip_windows": 3})
    scores = [json.loads((tmp_path / name / "perplexity.json").read_text()) for name in ("all", "rest")]
    assert ["skip_windows" in one["provenance"]["values"] for one in scores] == [False, True]
    whole, rest = (pd.read_parquet(tmp_path / name / "perplexity_windows.parquet") for name in ("all", "rest"))
    shared = min(len(whole) - 3, len(rest))
    assert shared > 0
    np.testing.assert_allclose(rest["nll"][:shared], whole["nll"][3 : 3 + shared], rtol=1e-5)
    with pytest.raises(BadInput, match="after the first 1000000; expected at least one"):
        run(folder, tmp_path / "rest", icl=False, values=VALUES | {"skip_windows": 1_000_000})


def test_perplexity_alone_and_no_function_documents(folder, tmp_path):
    run(folder, tmp_path, tokens=folder / "empty", icl=False)
    scores = json.loads((tmp_path / "perplexity.json").read_text())
    assert scores["functions"] is None
    assert scores["uncompressed"] is None
    assert scores["conditions"]["slice_sha256"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["perplexity.json", "perplexity_windows.parquet"]


def test_a_student_that_compression_left_exact_is_not_scored_twice(folder, tmp_path):
    """The folder of the trained student holds no weights here, so that scoring it would fail."""
    beside = {"student": folder / "model", "uncompressed": tmp_path / "trained", "icl": False}
    beside["uncompressed"].mkdir()
    parity = {"max_abs_logit_difference": 2e-6, "max_abs_logit": 9.5, "tokens": 64, "dtype": "float32"}
    record = tmp_path / "compression.json"
    write_json(record, {"parity": parity | {"exact": True}})
    run(folder, tmp_path / "out", compression=record, **beside)
    scores = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    said = scores["uncompressed"].pop("same_by_construction")
    assert said == {"max_abs_logit_difference": 2e-6, "max_abs_logit": 9.5, "tokens": 64}
    assert scores["uncompressed"] == {name: scores[name] for name in scores["uncompressed"]}
    assert scores["uncompressed"]["value"] > 1

    write_json(record, {"parity": parity | {"exact": False}})
    with pytest.raises(BadInput, match=r"adapter\.json: no such file"):
        run(folder, tmp_path / "other", compression=record, **beside)
    write_json(record, {"totals": {}})
    with pytest.raises(BadInput, match=r"compression\.json: no parity"):
        run(folder, tmp_path / "other", compression=record, **beside)


def perplexities(*_, **__):
    raise AssertionError("scored again")


def read(path):
    return json.loads(path.read_text())


def test_equal_variants_of_a_student_are_scored_once(folder, tmp_path, monkeypatch):
    """Neither the model nor the student before compression, and the second record has the numbers of the first."""
    beside = {"student": folder / "model", "uncompressed": folder / "trained", "icl": False}
    run(folder, tmp_path / "a", **beside)
    shutil.copytree(folder / "model", tmp_path / "same")
    (tmp_path / "same" / "README.md").write_text("a card of its own")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "perplexity", perplexities)
        run(folder, tmp_path / "b", model=tmp_path / "same", **beside)
    one, other = read(tmp_path / "a" / "perplexity.json"), read(tmp_path / "b" / "perplexity.json")
    for record in (one, other):
        record.pop("content_sha256")
    taken = {part: about["taken_from"] for part, about in other.pop("provenance")["scored"].items()}
    assert taken == {"compressed": "a", "uncompressed": "a"}
    assert {about["taken_from"] for about in one.pop("provenance")["scored"].values()} == {None}
    assert other == one
    tables = [pd.read_parquet(tmp_path / name / "perplexity_windows.parquet") for name in "ab"]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("change", ["weights", "options", "tokens", "sources", "damage"])
def test_what_differs_is_scored_anew(folder, tmp_path, monkeypatch, change):
    run(folder, tmp_path / "a", icl=False)
    words = {"icl": False}
    if change == "weights":
        save_model(new_model(load_model(folder / "model").config, seed=1), tmp_path / "other")
        words["model"] = tmp_path / "other"
    elif change == "options":
        words["values"] = VALUES | {"validation_tokens": 1000}
    elif change == "tokens":
        words["tokens"] = folder / "empty"
    elif change == "sources":
        monkeypatch.setattr(twins, "code_digest", lambda name: "edited")
    else:
        record = tmp_path / "a" / "perplexity.json"
        record.write_text(record.read_text().replace('"value": ', '"value": 1'))
    monkeypatch.setattr(stage, "perplexity", perplexities)
    with pytest.raises(AssertionError, match="scored again"):
        run(folder, tmp_path / "b", **words)


@pytest.mark.parametrize("damage", ["cut", "gone", "unlisted"])
def test_an_equal_variant_with_a_damaged_table_is_scored_anew(folder, tmp_path, damage):
    """What is wrong with another variant fails no job of this one."""
    run(folder, tmp_path / "a", icl=False)
    frame, record = tmp_path / "a" / "perplexity_windows.parquet", tmp_path / "a" / "perplexity.json"
    whole = frame.read_bytes()
    if damage == "cut":
        frame.write_bytes(whole[:-1])
    elif damage == "gone":
        frame.unlink()
    else:
        values = read(record)
        values["provenance"].pop("files")
        write_record(record, values)
    run(folder, tmp_path / "b", icl=False)
    assert read(tmp_path / "b" / "perplexity.json")["provenance"]["scored"]["compressed"]["taken_from"] is None
    assert (tmp_path / "b" / "perplexity_windows.parquet").read_bytes() == whole


def test_refusals(folder, tmp_path):
    with pytest.raises(BadInput, match="unknown key shot"):
        run(folder, tmp_path, values=VALUES | {"shot": 3})
    with pytest.raises(BadInput, match="only one was given"):
        run(folder, tmp_path, uncompressed=folder / "trained")
    with pytest.raises(BadInput, match=r"probe \w+: .* has \d+ tokens; expected at most 64 "):
        run(folder, tmp_path, values=VALUES | {"sequence_length": 64})
