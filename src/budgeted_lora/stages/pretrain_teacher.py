"""Stage: a teacher made here, by plain pretraining from random weights."""

from pathlib import Path

import torch

from budgeted_lora.config.sections import Pretraining, Teacher
from budgeted_lora.config.types import Positive
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, sha256_file, short_hash, write_digest
from budgeted_lora.models.checkpoint import copy_tokenizer
from budgeted_lora.models.device import choose_device, compute_dtype
from budgeted_lora.models.load import check_vocabulary, load_model, mistral_config, new_model, save_model
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.training.pretrain import PretrainPlan, pretrain, write_losses
from budgeted_lora.training.state import TrainingState, locked_folder
from budgeted_lora.workflow.code import code_digest
from budgeted_lora.workflow.runs import discard


def plan_of(spec: Teacher, pretraining: Pretraining, *, sequence_length: int, rows: str) -> PretrainPlan:
    """The plan of one teacher, with the rate of its own if it has one."""
    given = pretraining.model_dump(exclude={"precision", "function_share"})
    given |= {"learning_rate": spec.learning_rate or pretraining.learning_rate}
    return PretrainPlan(legs=spec.legs, sequence_length=sequence_length, packing=rows, **given)


def pretrain_teacher(
    *,
    name: str,
    spec: Teacher,
    pretraining: Pretraining,
    sequence_length: Positive,
    rows: str,
    tokens: Path,
    tokenizer: Path,
    out: Path,
    record: Path,
    history: Path,
    state: Path,
    scale: str,
    threads: Positive,
    device: str,
) -> None:
    """Pretrains a teacher from random weights and writes it in half precision with its record and loss history.

    Args:
        state: folder under which the training state lies while the run is not done, named by teacher and inputs.

    Raises:
        BadInput: no token count for this teacher, tokens and tokenizer disagree, there is no such device, or another
            process makes this teacher.
        TrainingDiverged: the loss is not finite.
    """
    clock, place = Clock(), choose_device(device)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    train = TokenFile.open(tokens)
    opened = open_tokenizer(tokenizer)
    if opened.vocab_size != train.vocab_size:
        raise BadInput(f"{tokens}: vocabulary of {train.vocab_size}, but the tokenizer has {opened.vocab_size}")
    if not spec.legs:
        raise BadInput(f"teacher_ladder.{name}.tokens must say how long to pretrain")
    sizes = spec.shape | {"head_dim": spec.head_dim, "vocab_size": train.vocab_size}
    shape = mistral_config(**sizes, context=sequence_length, end_id=opened.end_id)
    model = new_model(shape, seed=pretraining.seed)
    plan = plan_of(spec, pretraining, sequence_length=sequence_length, rows=rows)
    dtype = compute_dtype(pretraining.precision, place)
    values = {"name": name, "spec": spec.model_dump(), **pretraining.model_dump(), "threads": threads}
    files = [sha256_file(path) for path in (train.path.with_suffix(".json"), Path(tokenizer) / "tokenizer.json")]
    code = [code_digest("pretrain_teacher"), torch.__version__, str(place)]
    determined_by = [values, sequence_length, rows, files, *code]
    with locked_folder(state / f"{name}-{short_hash(determined_by, digits=12)}") as folder:
        state_file = TrainingState(folder)
        run = pretrain(model.to(place), train, plan, state=state_file, dtype=dtype, title=f"pretrain {name}")
        with atomic_folder(out) as checkpoint:
            save_model(model.cpu(), checkpoint, dtype=torch.float16)
            copy_tokenizer(tokenizer, checkpoint)
        check_vocabulary(out, vocab_size=train.vocab_size, what=str(tokens))
        load_model(out)
        write_losses(history, run.losses)
        step_tokens = plan.batch_windows * sequence_length
        payload = {
            "stands_for": name,
            "source": "pretrain",
            "shape": spec.shape,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokens": plan.steps * step_tokens,
            "steps": plan.steps,
            "epochs": plan.steps * plan.batch_windows / Windows(train, sequence_length, rows).count,
            "final_loss": sum(run.losses[-50:]) / len(run.losses[-50:]),
            "tokens_per_second": run.timed_steps * step_tokens / run.seconds if run.seconds else None,
            "sha256": sha256_file(out / "model.safetensors"),
        }
        write_result(record, payload, scale=scale, cell=None, values=values, inputs=[tokens, tokenizer], clock=clock)
        write_digest(out)
        discard(folder)
