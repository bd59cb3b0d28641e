"""config/your-model.yaml, as `budgeted-lora compress` writes such a file, so that the two cannot differ.

`python tools/your_model.py --write` writes the file; without the option it is printed.
"""

import argparse
from pathlib import Path

from budgeted_lora.config.your_scale import EFFORTS, YourScale
from budgeted_lora.files import write_text

PATH = Path("config/your-model.yaml")
EXAMPLE = YourScale(
    name="your-model",
    what="An example, SmolLM2-135M in checkpoints/smollm2: llama, 30 layers of 576; students of 30 layers",
    request={
        "model": "checkpoints/smollm2",
        "text": ["text/*.jsonl"],
        "text_field": "text",
        "budgets": "0,0.2,0.4,0.6,0.8",
        "rule": "recommended",
        "tokens": 1_000_000,
    },
    source="folder",
    place={"folder": "checkpoints/smollm2"},
    sizes={"layers": 30, "hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3},
    limit=8192,
    files=["text/*.jsonl"],
    text_field="text",
    characters=None,
    layers=30,
    budgets=[0.8, 0.6, 0.4, 0.2, 0.0],
    rule="recommended",
    rank=96,
    rank_multiple=1,
    tokens=999_424,
    batch_windows=8,
    effort=EFFORTS[2],
    threads=1,
    on_gpu=False,
    measured=False,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PATH}")
    text = EXAMPLE.text()
    if parser.parse_args().write:
        write_text(PATH, text)
    else:
        print(text, end="")
