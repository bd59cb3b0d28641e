"""The plan of a reader's own model as text: what it becomes, what it is trained on, how long it takes."""

from collections.abc import Iterator

from budgeted_lora.commands.text import duration, size, table
from budgeted_lora.config.your_scale import YourScale
from budgeted_lora.planning.budgets import Choices
from budgeted_lora.planning.costs import ScaleCosts
from budgeted_lora.planning.devices import Slots
from budgeted_lora.planning.fitting import Survey
from budgeted_lora.planning.own_model import OwnModel
from budgeted_lora.planning.storage import disk


def render_own_plan(
    scale: YourScale, model: OwnModel, choices: Choices, found: Survey, costs: ScaleCosts, *, slots: Slots
) -> str:
    """What is shown before a run is started."""
    lines = [*_students(scale, model, choices), *_controls(costs), *_text(scale, found), *_time(scale, costs, slots)]
    return "\n".join(lines)


def _students(scale: YourScale, model: OwnModel, choices: Choices) -> Iterator[str]:
    layers = "all its layers" if scale.layers == model.anatomy.layers else f"{scale.layers} of its layers"
    yield f"{model.described()}"
    yield f"Students keep {layers}; rank {scale.rank}, {scale.rule} rule. Counted, not timed, by the paper's order:"
    rows = [("F", "MACs of projections", "with output layer", "weights of projections")]
    for budget in scale.budgets:
        ratio, whole = choices.speedup(budget), choices.speedup_with_head(budget)
        rows.append((f"{budget:g}", f"{ratio:.2f}x fewer", f"{whole:.2f}x", f"{choices.reduction(budget):.1f} % fewer"))
    yield from (f"  {line}" for line in table(rows, numbers=range(4)))


def _controls(costs: ScaleCosts) -> Iterator[str]:
    """The smaller dense students that are trained beside them, where there are any."""
    recipes = [costs.graph.recipe_of(cell) for cell in costs.graph.cells]
    dense = [f"{one.student_layers} layers with FFN {one.student_ffn}" for one in recipes if one.student_ffn]
    if dense:
        yield f"Beside them, dense students of the same MACs: {', '.join(dense)}."


def _text(scale: YourScale, found: Survey) -> Iterator[str]:
    times = scale.tokens / max(1, found.train_tokens)
    again = f", all of the text {times:.1f} times" if found.whole and times > 1 else ""
    yield (
        f"Each trains on {scale.tokens:,} tokens, {scale.steps} steps of {scale.batch_windows} x {scale.length}"
        f"{again}; "
        f"scored on {scale.effort.validation_tokens:,} held-out tokens and 19 in-context tasks."
    )


def _time(scale: YourScale, costs: ScaleCosts, slots: Slots) -> Iterator[str]:
    kinds = {"cache": "caching the model's states", "measure": "measuring layers", "evaluate": "scoring"}
    parts = {"training": sum(cell.train_seconds for cell in costs.cells)}
    parts |= {words: sum(job.seconds for job in costs.jobs if job.kind == kind) for kind, words in kinds.items()}
    parts["scoring"] += sum(cell.evaluate_seconds for cell in costs.cells)
    listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    how = "by steps measured here" if scale.measured else f"by assumed rates of {costs.device.name}"
    yield f"About {duration(costs.wall_seconds(slots))} {how}: {listed}; tables and figures besides."
    yield f"Disk: {size(disk(costs, slots=slots).total)}."
