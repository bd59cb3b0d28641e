"""Exported folders under vLLM's Transformers backend: are greedy tokens those of transformers, and how fast are they?

    python benchmarks/serve_vllm.py [--repeats N] FOLDER ...

Runs with an interpreter that has vLLM for the CPU, and imports nothing of this project; `serve.py` and a test call it.
The last line that it prints is a JSON object. Engines of all folders live in this process and take turns, so that load
from elsewhere falls on all of them.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}

CONTEXT, NEW, SHORTEST = 512, 24, 8
PROMPTS = [[5 + 7 * i + 3 * j for j in range(SHORTEST + i)] for i in range(4)]
LOADS = {"decode, batch 1": (1, 16, 24), "decode, batch 8": (8, 16, 24), "prefill of 4 x 256": (4, 256, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--repeats", type=int, default=0, help="timed rounds; 0 compares tokens only")
    arguments = parser.parse_args()
    expected = {folder: transformers_tokens(folder) for folder in arguments.folders}
    engines, found = {}, {}
    for folder in arguments.folders:
        engines[folder] = engine(folder, "float32")
        made = vllm_tokens(engines[folder], PROMPTS, tokens=NEW)
        found[folder] = {"equal": made == expected[folder], "tokens": made, "expected": expected[folder]}
    if arguments.repeats:
        for folder, times in timed(engines, repeats=arguments.repeats).items():
            found[folder]["times"] = times
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch", "transformers")}
    print(json.dumps({"versions": versions, "folders": {Path(folder).name: value for folder, value in found.items()}}))


def transformers_tokens(folder: str) -> list[list[int]]:
    """Greedy continuations by transformers alone; asked before vLLM changes the classes of models."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    model.generation_config.eos_token_id = None  # vLLM is told to ignore it, too
    common = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return [model.generate(torch.tensor([ids]), **common)[0, len(ids) :].tolist() for ids in PROMPTS]


def engine(folder: str, dtype: str) -> Any:
    from vllm import LLM

    return LLM(
        model=folder, dtype=dtype, max_model_len=CONTEXT, enforce_eager=True, trust_remote_code=True,
        model_impl="transformers", enable_prefix_caching=False,
    )  # fmt: skip


def vllm_tokens(llm: Any, prompts: list[list[int]], *, tokens: int) -> list[list[int]]:
    from vllm import SamplingParams

    wanted = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    done = llm.generate([{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in done]


def timed(engines: dict[str, Any], *, repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of each load on the clock and of this process, by folder; the first round is a warm-up."""
    samples: dict[str, dict[str, list]] = {folder: {load: [] for load in LOADS} for folder in engines}
    names = list(engines)
    for turn in range(repeats + 1):
        for folder in names[turn % len(names) :] + names[: turn % len(names)]:
            for load, (batch, length, tokens) in LOADS.items():
                prompts = [[5 + (11 * i + 3 * j) % 4000 for j in range(length)] for i in range(batch)]
                clock, process = time.perf_counter(), time.process_time()
                vllm_tokens(engines[folder], prompts, tokens=tokens)
                spent = (time.perf_counter() - clock, time.process_time() - process)
                if turn:
                    samples[folder][load].append(spent)
    return {folder: {load: summary(load, spent) for load, spent in loads.items()} for folder, loads in samples.items()}


def summary(load: str, spent: list[tuple[float, float]]) -> dict[str, Any]:
    """Seconds of each round, and tokens a second at the median: new tokens, or those of the prompts in a prefill."""
    batch, length, tokens = LOADS[load]
    count = batch * (tokens if tokens > 1 else length)
    clock, process = ([pair[at] for pair in spent] for at in (0, 1))
    return {"clock_s": clock, "process_s": process, "tokens_per_s": count / statistics.median(clock)}


if __name__ == "__main__":
    main()
