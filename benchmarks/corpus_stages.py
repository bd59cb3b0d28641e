"""How fast a shard of a large corpus is read, hashed, tokenised and packed, in MB of UTF-8 text a core and second.

    python benchmarks/corpus_stages.py --megabytes 10 --out benchmarks/results/corpus_stages.json

Everything runs in turn in one process on one thread; seconds are the CPU's, so that other work on the machine tells
little. The same documents go through the stage, through the raw tokenizer and through `datasets.map` with the same
tokenizer, and their ids are compared, token by token. The text is that of installed packages: documentation strings
and source files. The tokenizer is Mistral's own (`pip install --no-deps mistral-common`) or the one of --tokenizer.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fixtures.mistral import mistral_model, mistral_tokenizer, write_tokenizer
from tokenizers import Tokenizer

from budgeted_lora.data.documents import in_slice, text_md5
from budgeted_lora.data.readers import _sources, read_docstrings, read_file
from budgeted_lora.data.tokens import TokenFile, token_writer
from budgeted_lora.data.words import WordEncoder, batches
from budgeted_lora.files import write_json
from budgeted_lora.models.device import peak_resident_bytes
from budgeted_lora.provenance import cpu_name, git_state, library_versions
from budgeted_lora.stages.tokenize_shard import tokenize_shard

LONG = (10_000, 100_000, 1_000_000, 4_000_000)


def documents(packages: list[str], *, megabytes: float) -> list[str]:
    """Docstrings and source files in turn, distinct, until they are so many MB."""
    sources = (path for name in packages for path in _sources(name))
    found: dict[str, None] = {}
    size = 0
    for text in read_docstrings(packages):
        for piece in (text, next(sources, Path(os.devnull)).read_text(encoding="utf-8", errors="replace")):
            piece = piece.encode(errors="replace").decode()
            if piece and piece not in found:
                found[piece] = None
                size += len(piece.encode())
        if size > megabytes * 1e6:
            break
    return list(found)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def in_batches(texts: list[str]) -> Iterator[list[str]]:
    return ([text for text, _ in group] for group in batches((text, None) for text in texts))


def raw_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """What the tokenizer itself gives, whole documents in the batches that the stage uses."""
    groups = (tokenizer.encode_batch_fast(group, add_special_tokens=False) for group in in_batches(texts))
    return [encoding.ids for group in groups for encoding in group]


def mapped(tokenizer: Tokenizer, file: Path, cache: Path) -> datasets.Dataset:
    """`datasets.map` from a Parquet file to ids in Arrow, batched as its documentation says."""
    data = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(cache))

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encodings = tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    return data.map(encode, batched=True, remove_columns=["text"], load_from_cache_file=False)


def pack(path: Path, encoded: list[bytes]) -> None:
    with token_writer(path, vocab_size=32_000, eos_id=2) as writer:
        for ids in encoded:
            writer.add(ids)


def one_round(
    folder: Path, texts: list[str], tokenizer: Tokenizer, tokenizer_folder: Path
) -> tuple[dict[str, float], bool]:
    """CPU seconds of each stage (the whole one opens the tokenizer too), and whether all ways give the same ids."""
    seconds: dict[str, float] = {}
    parquet, lines = folder / "shard.parquet", folder / "shard.jsonl.zst"
    seconds["read_parquet"], found = timed(lambda: list(read_file(parquet, text_field="text")))
    assert found == texts
    seconds["read_jsonl_zst"], found = timed(lambda: list(read_file(lines, text_field="text")))
    assert found == texts
    seconds["hash"], _ = timed(lambda: [in_slice(text_md5(text), slice_per_mille=2) for text in texts])
    encoder = WordEncoder(tokenizer)
    seconds["tokenise"], encoded = timed(lambda: [ids for group in in_batches(texts) for ids in encoder.encode(group)])
    seconds["tokenise_words_seen"], _ = timed(lambda: [encoder.encode(group) for group in in_batches(texts)])
    seconds["raw_tokenizer"], raw = timed(lambda: raw_ids(tokenizer, texts))
    seconds["pack"], _ = timed(lambda: pack(folder / "packed.bin", encoded))
    values = {"text_field": "text", "min_characters": 1, "slice_per_mille": 2, "training": True}
    shard = {"tokenizer": tokenizer_folder, "out": folder / "out", "values": values, "scale": "benchmark"}
    seconds["whole_stage"], _ = timed(lambda: tokenize_shard(source=str(parquet), **shard))
    seconds["datasets_map"], rows = timed(lambda: mapped(tokenizer, parquet, folder / "cache"))
    equal = all(np.array_equal(np.frombuffer(a, encoder.dtype), b) for a, b in zip(encoded, raw, strict=True))
    equal &= rows["input_ids"][:] == raw
    train, held_out = (len(TokenFile.open(folder / "out" / f"{side}.bin").tokens) for side in ("train", "held_out"))
    return seconds, equal and train + held_out == sum(len(ids) + 1 for ids in raw)


def long_documents(texts: list[str], tokenizer: Tokenizer) -> list[dict[str, float]]:
    """MB/s of one document by its length: whole, and word by word with nothing seen before."""
    everything, found = "\n\n".join(texts), []
    for length in (length for length in LONG if length <= len(everything)):
        text = everything[:length]
        encoder = WordEncoder(tokenizer)
        by_words, ids = timed(lambda encoder=encoder, text=text: encoder.encode([text])[0])
        whole, raw = timed(lambda text=text: raw_ids(tokenizer, [text])[0])
        assert np.array_equal(np.frombuffer(ids, encoder.dtype), raw)
        size = len(text.encode()) / 1e6
        found.append({"characters": length, "raw_tokenizer": size / whole, "word_by_word": size / by_words})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the stages of a shard in MB/s of one core.")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--packages", nargs="+", default=["numpy", "scipy", "networkx", "sympy", "pandas"])
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of a Mistral-type tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    model = mistral_model()
    if chosen.tokenizer is None and model is None:
        parser.error("no tokenizer: pip install --no-deps mistral-common, or name one with --tokenizer")
    tokenizer = Tokenizer.from_file(str(chosen.tokenizer)) if chosen.tokenizer else mistral_tokenizer(model)
    datasets.disable_progress_bars()
    texts = documents(chosen.packages, megabytes=chosen.megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    with TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(pa.table({"text": texts}), folder / "shard.parquet", row_group_size=1000)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "shard.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
        about = write_tokenizer(tokenizer, folder / "tokenizer")
        measured = [one_round(folder, texts, tokenizer, about) for _ in range(chosen.repeats)]
    rounds, equal = [seconds for seconds, _ in measured], all(same for _, same in measured)
    rates = {stage: size / median(found[stage] for found in rounds) for stage in rounds[0]}
    result = {
        "what": "MB of UTF-8 text a core and second (CPU seconds, one thread, median of the repeats)",
        "documents": len(texts),
        "megabytes": size,
        "repeats": chosen.repeats,
        "vocabulary": tokenizer.get_vocab_size(),
        "ids_equal": equal,
        "megabytes_per_second": rates,
        "over_the_raw_tokenizer": {name: rates[name] / rates["raw_tokenizer"] for name in ("tokenise", "whole_stage")},
        "over_datasets_map": {name: rates[name] / rates["datasets_map"] for name in ("tokenise", "whole_stage")},
        "one_long_document": long_documents(texts, tokenizer),
        "peak_memory_bytes": peak_resident_bytes(),
        "cpu": cpu_name(),
        "libraries": library_versions(),
        **git_state(),
    }
    write_json(chosen.out, result)
    print(json.dumps(result, indent=2))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
