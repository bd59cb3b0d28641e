"""One training run of the peer, in turns: transformers' Trainer, PEFT's LoRA, and a plain KD loss. See `turns`.

Weights, tokens, order, optimiser, schedule and micro-batch are those of `run_ours`; LoRA's A starts with our values.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.shapes import Shape, recipe, shape_named
from benchmarks.turns import Turns
from benchmarks.world import World
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.method.loop import window_order
from budgeted_lora.method.projections import install
from budgeted_lora.models.load import load_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class DistillationTrainer(Trainer):
    """A Trainer whose loss is a T^2 KL(teacher || student) + (1 - a) CE, on whole float32 logits."""

    def __init__(self, *, teacher: Any, chosen: Recipe, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.teacher, self.chosen = teacher, chosen
        self.last: torch.Tensor | None = None

    def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *arguments: Any, **keywords: Any) -> Any:
        ids, temperature, share = inputs["input_ids"], self.chosen.temperature, self.chosen.kd_weight
        with torch.no_grad():
            teacher = self.teacher(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        student = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        kl = functional.kl_div(
            functional.log_softmax(student / temperature, dim=-1),
            functional.softmax(teacher / temperature, dim=-1),
            reduction="batchmean",
        )
        ce = functional.cross_entropy(student, ids[:, 1:].flatten())
        loss = share * temperature**2 * kl + (1 - share) * ce
        self.last = loss.detach()
        return loss


class TurnCallback(TrainerCallback):
    """Waits for the turn of this run at the end of each step."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.trainer: DistillationTrainer | None = None

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        self.turns.begin()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        self.turns.step(loss=lambda: float(self.trainer.last))


def with_lora(folder: Path, chosen: Recipe, shape: Shape) -> Any:
    """The student with PEFT's adapters on all seven projections."""
    from peft import LoraConfig, get_peft_model

    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    config = LoraConfig(
        r=shape.rank, lora_alpha=2 * shape.rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = get_peft_model(student, config)
    ours = install(
        load_model(folder), rank=shape.rank, alpha=2.0 * shape.rank, dropout=0.0, gates=False, seed=chosen.seed
    )
    with torch.no_grad():
        for name, module in ours.items():
            model.base_model.model.get_submodule(name).lora_A["default"].weight.copy_(module.lora_a)
    return model


def arguments(chosen: Recipe, *, folder: str, device: str, autocast: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=chosen.micro_batch_windows,
        max_steps=chosen.steps,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        optim="adamw_torch_fused",
        adam_beta1=chosen.betas[0],
        adam_beta2=chosen.betas[1],
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.clip,
        bf16=autocast,
        use_cpu=device == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=chosen.seed,
    )


def main(options: dict[str, Any]) -> None:
    """Trains; `options` are those of `run_ours`, which see."""
    turns = Turns()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would share the work among all GPUs
    torch.set_num_threads(options["threads"])
    shape = shape_named(options["shape"], quick=options["quick"])
    world, device = World(Path(options["world"])), options["device"]
    chosen = recipe(shape, options["method"], steps=options["steps"])
    if chosen.method == "kd_lora":
        student = with_lora(world.student, chosen, shape)
    else:
        student = AutoModelForCausalLM.from_pretrained(world.student, dtype=torch.float32, attn_implementation="sdpa")
    autocast = options["precision"] == "bfloat16"
    teacher = AutoModelForCausalLM.from_pretrained(
        world.teacher(), dtype=torch.bfloat16 if autocast else torch.float32, attn_implementation="sdpa"
    )
    teacher = teacher.eval().requires_grad_(False).to(device)
    windows = world.windows(length=shape.length)
    ids, _ = windows.read(window_order(chosen, available=windows.count))
    callback = TurnCallback(turns)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            teacher=teacher,
            chosen=chosen,
            model=student,
            args=arguments(chosen, folder=folder, device=device, autocast=autocast),
            train_dataset=[{"input_ids": torch.from_numpy(row)} for row in ids],
            callbacks=[callback],
        )
        callback.trainer = trainer
        trainer.train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
