"""A world small enough for the tests of training: tokens, a teacher of 3 layers, a student of 2."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models

from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.files import write_json
from budgeted_lora.models.load import mistral_config, new_model, save_model
from budgeted_lora.recipe import Recipe

VOCABULARY, LENGTH = 61, 16
SHAPE = {
    "hidden": 16,
    "ffn": 48,
    "heads": 2,
    "kv_heads": 1,
    "vocab_size": VOCABULARY,
    "context": 64,
    "end_id": 0,
}


@dataclass(frozen=True)
class World:
    """Paths of a made-up run."""

    root: Path

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def tokens(self) -> Path:
        return self.root / "train.bin"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"


def make_world(root: Path, *, documents: int = 60) -> World:
    """Writes a world into `root`; a tokenizer that is there stays."""
    world = World(root)
    if not world.tokenizer.exists():
        write_tokenizer(world.tokenizer)
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 40, documents)
    texts = (generator.integers(1, VOCABULARY, length).tolist() for length in lengths)
    write_tokens(root / "train.bin", texts, vocab_size=VOCABULARY, eos_id=0)
    for name, layers in {"teacher": 3, "student": 2}.items():
        model = new_model(mistral_config(layers=layers, **SHAPE), seed=layers)
        with torch.no_grad():  # initial weights of 0.02 give flat logits, which would hide mistakes
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8.0)
        save_model(model, root / name)
    return world


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of the world's words w0, w1, ..."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "w0"})


def make_recipe(method: str, **changed: object) -> Recipe:
    """A complete short recipe; keywords replace its values."""
    values: dict[str, object] = {
        "method": method,
        "teacher": "tiny",
        "init": "mixed",
        "student_layers": 2,
        "temperature": 3.0,
        "kd_weight": 0.8,
        "steps": 12,
        "batch_windows": 4,
        "micro_batch_windows": 2,
        "sequence_length": LENGTH,
        "rows": "packed",
        "learning_rate": 1e-2,
        "betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "clip": 1.0,
        "warmup_fraction": 0.2,
        "warmup_cap": 2000,
        "precision": "float32",
        "seed": 0,
    }
    if method != "kd_full":
        values |= {"rank": 4, "alpha": 8, "dropout": 0.1, "train_embeddings_head_norms": False}
    if method == "budgeted_lora":
        values |= {
            "budget": 0.4,
            "schedule": "short",
            "schedule_start": 0.1,
            "schedule_end": 0.5,
            "controller": "greedy",
            "smoothing": 0.5,
            "drop_threshold": 0.05,
            "gate_logit": 2.0,
            "gate_lr_multiplier": 1.0,
        }
    return Recipe.model_validate(values | changed)
