"""Tool for maintainers: lets the next leg of teachers begin at the shipped weights, not at random ones.

Add a leg to `tokens` in `teacher_ladder`, start `snakemake table1 --config teachers=pretrain`, and stop it once the
folder results/mini/state/NAME-... is there. Then:

    python tools/continue_teachers.py results/mini 0.5B 1B

and start it again: it goes on after the tokens that the shipped card counts. A teacher whose card has all of its
tokens is written out as it is. `tools/ship_teachers.py` ships the result.
"""

import sys
from itertools import accumulate
from pathlib import Path

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.models.checkpoint import shipped_folder
from budgeted_lora.models.load import load_model
from budgeted_lora.stages.pretrain_teacher import plan_of
from budgeted_lora.training.pretrain import optimizers
from budgeted_lora.training.state import TrainingState, locked_folder


def steps_done(leg_steps: list[int], *, tokens: int, step_tokens: int) -> int:
    """The steps of the legs that make up `tokens`. Raises BadInput if they end within a leg."""
    done = tokens // step_tokens
    ends = list(accumulate(leg_steps))
    if done not in ends:
        raise BadInput(f"the shipped teacher has {done} steps; expected the end of a leg: {ends}")
    return done


def continue_from_shipped(results: Path, name: str) -> None:
    """Writes a training state that ends with the shipped weights of a teacher.

    Raises:
        BadInput: no run has begun, one is going on, or the shipped tokens are not the first legs of its plan.
    """
    config = load_config(Path("config") / f"{results.name}.yaml")
    folders = list((results / "state").glob(f"{name}-*"))
    if len(folders) != 1:
        raise BadInput(f"{results}/state: {len(folders)} folders of {name}; expected that of one begun run")
    shipped = shipped_folder(name)
    length = config.sequence_length
    plan = plan_of(config.teacher_ladder[name], config.pretraining, sequence_length=length, rows=config.rows)
    tokens = read_json(shipped / "card.json")["tokens"]
    done = steps_done(plan.leg_steps, tokens=tokens, step_tokens=plan.batch_windows * length)
    model = load_model(shipped).float()
    with locked_folder(folders[0]) as folder:
        unknown = [float("nan")] * done  # the losses of those steps
        TrainingState(folder).save(model, *optimizers(model, plan), values={"losses": unknown})
    print(f"{folders[0]}: goes on after {done} of {plan.steps} steps")


if __name__ == "__main__":
    for teacher in sys.argv[2:]:
        continue_from_shipped(Path(sys.argv[1]), teacher)
