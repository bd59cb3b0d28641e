"""Exported students under vLLM give the tokens that transformers gives; skipped where no vLLM is installed.

`VLLM_PYTHON` names the interpreter of an environment with vLLM, if it is not this one:

    VLLM_PYTHON=/path/to/python python -m pytest tests/serving/test_vllm.py
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.serve import ask_vllm, patterns, write_students
from budgeted_lora.models.load import mistral_config

PYTHON = os.environ.get("VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)
LAYERS = 4


@pytest.mark.skipif(PYTHON is None, reason="no vLLM; VLLM_PYTHON names an interpreter that has it")
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    config = mistral_config(
        layers=LAYERS, hidden=256, ffn=512, heads=4, kv_heads=2, vocab_size=8192, context=512, end_id=0
    )
    folders = write_students(tmp_path, patterns(layers=LAYERS, rank=24), config=config)
    found = ask_vllm(PYTHON, folders)["folders"]
    assert found.keys() == {folder.name for folder in folders}
    for name, facts in found.items():
        assert facts["tokens"] == facts["expected"], name
        assert len({token for row in facts["tokens"] for token in row}) > 20, name
