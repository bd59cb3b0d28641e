"""Files for one shape: a teacher, a student cut from it, tokens, and the teacher's hidden states.

    python -m benchmarks.world SHAPE FOLDER {quick|full} {cpu|cuda}

Weights and tokens are random; time does not depend on them. `half` is the teacher in bfloat16. `narrow` is a teacher of
width 8 with the same vocabulary: its output layer costs next to nothing, so a step that reads its cache shows the
student's side alone.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.shapes import Shape, shape_named
from budgeted_lora.data.tokens import TokenFile, Windows, write_tokens
from budgeted_lora.models.load import mistral_config, new_model, save_model
from budgeted_lora.models.student import cut
from budgeted_lora.training.cache import cache_hidden, describe_cache

BATCHES = 4  # distinct batches; a run goes through them several times
NARROW = {"hidden": 8, "ffn": 8, "heads": 1, "kv_heads": 1, "teacher_layers": 1}


@dataclass(frozen=True)
class World:
    """Paths of one shape's files."""

    root: Path

    @property
    def tokens(self) -> Path:
        return self.root / "train.bin"

    @property
    def student(self) -> Path:
        return self.root / "student"

    def teacher(self, kind: str = "teacher") -> Path:
        return self.root / kind

    def cache(self, kind: str = "teacher") -> Path:
        return self.root / f"{kind}-cache"

    def windows(self, *, length: int) -> Windows:
        return Windows(TokenFile.open(self.tokens), length, "packed")


def make_world(root: Path, shape: Shape, *, device: torch.device) -> World:
    """Writes all files; on a GPU the teacher's weights and states are bfloat16, as in training."""
    world = World(root)
    root.mkdir(parents=True)
    count = BATCHES * shape.tokens
    ids = np.random.default_rng(0).integers(1, shape.vocab_size, count).tolist()
    write_tokens(world.tokens, iter([ids]), vocab_size=shape.vocab_size, eos_id=0)
    windows = world.windows(length=shape.length)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kinds = {"teacher": (shape, dtype), "half": (shape, torch.bfloat16), "narrow": (replace(shape, **NARROW), dtype)}
    for kind, (sizes, dtype) in kinds.items():
        config = mistral_config(
            layers=sizes.teacher_layers, hidden=sizes.hidden, ffn=sizes.ffn, heads=sizes.heads,
            kv_heads=sizes.kv_heads, vocab_size=sizes.vocab_size, context=shape.length, end_id=0,
        )  # fmt: skip
        model = new_model(config, seed=1)
        with torch.no_grad():
            model.lm_head.weight.mul_(4.0)  # initial weights give flat logits, which would hide a difference of losses
        if kind == "teacher":
            save_model(cut(model, init="mixed", depth=shape.layers), world.student)
        save_model(model, world.teacher(kind), dtype=dtype)
        about = describe_cache(
            model, windows, count=windows.count, batch_windows=shape.windows, teacher=world.teacher(kind)
        )
        folder = root / f"{kind}-partial"
        folder.mkdir()
        cache_hidden(model, windows, about, folder=folder, out=world.cache(kind), device=device)
    return world


if __name__ == "__main__":
    name, folder, size, device = sys.argv[1:]
    make_world(Path(folder), shape_named(name, quick=size == "quick"), device=torch.device(device))
