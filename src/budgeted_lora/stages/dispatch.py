"""`budgeted-lora stage NAME`: calls the function NAME of stages/NAME.py, as the rules of the workflow do.

Each argument of the function is an option of the command, `--log-every 10`; `--options` holds several as one JSON
object. The run is joined and the GPU slot taken before the stage is imported, so that CUDA_VISIBLE_DEVICES is set
before torch looks at it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from pydantic import PositiveInt

from budgeted_lora.errors import BadInput
from budgeted_lora.stages.arguments import bind, convert, read_words
from budgeted_lora.stages.launch import check_share, train_in_processes
from budgeted_lora.workflow.code import refuse_other_code
from budgeted_lora.workflow.runs import join_run
from budgeted_lora.workflow.slots import gpu_slots
from budgeted_lora.workflow.stage_command import (
    GPUS,
    check_arguments,
    flag,
    stage_arguments,
    stage_description,
    stage_names,
)

DEVICES = ("auto", "cpu", "cuda")


def run_stage(words: Sequence[str]) -> None:
    """Runs a stage on the GPUs it needs, or in several processes if `--gpus` says so.

    Args:
        words: the stage's name, then its options; `--help` last prints what they are.

    Raises:
        BadInput: there is no such stage, or its arguments do not fit; and what the stage raises.
    """
    if not words or words[-1] == "--help":
        print_help(words[0] if len(words) > 1 else None)
        return
    stage, given = read_words(words)
    gpus = convert(GPUS, PositiveInt, given.get(GPUS, 1))
    check_arguments(stage, given)
    join_run(f"{stage} {given.get('out') or ''}".strip())
    refuse_other_code(stage)
    device = given.get("device")
    if device not in (None, *DEVICES):
        raise BadInput(f"--device: {device!r}, expected one of {', '.join(DEVICES)}")
    if gpus > 1:
        check_share(gpus, given)
    with gpu_slots(gpus, device=device) if device else nullcontext():
        if gpus > 1:
            train_in_processes(gpus, words, state=Path(given["state"]))
        else:
            function, arguments = bind(stage, given)
            function(**arguments)


def print_help(stage: str | None) -> None:
    """Prints the stages, or the arguments of one, with optional ones in brackets."""
    if stage is None:
        print("Stages of the workflow; its rules call them, a person seldom does:", *stage_names(), sep="\n  ")
        return
    words = [flag(name) if required else f"[{flag(name)}]" for name, required in stage_arguments(stage).items()]
    print("budgeted-lora stage", stage, *words)
    print(stage_description(stage))
