"""Stage cut_student: cut an untrained student from the first teacher."""

from pathlib import Path

from budgeted_lora.files import atomic_folder, write_digest
from budgeted_lora.models.checkpoint import copy_generation
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.models.student import cut, layer_indices
from budgeted_lora.provenance import Clock, write_result


def cut_student(
    *, teacher: Path, init: str, depth: int, out: Path, record: Path, scale: str, ffn: int | None = None, seed: int = 0
) -> None:
    """Writes the model folder of an untrained student and a record of the teacher layers in it; see `student.cut`."""
    clock = Clock()
    source = load_model(teacher)
    student = cut(source, init=init, depth=depth, ffn=ffn, seed=seed)
    with atomic_folder(out) as folder:
        save_model(student, folder)
        copy_generation(teacher, folder)
    payload = {
        "init": init,
        "layers": layer_indices(init, layers=source.config.num_hidden_layers, depth=depth),
        "ffn": student.config.intermediate_size,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    values = {"init": init, "depth": depth, "ffn": ffn, "seed": seed}
    write_result(record, payload, scale=scale, cell=None, values=values, inputs=[teacher], clock=clock)
    write_digest(out)
