"""Whether teachers that exist already hold what they say of themselves, before any job reads them."""

from collections.abc import Iterator
from pathlib import Path

from budgeted_lora.config.anatomy import read_anatomy, refuse_short_context
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.planning.findings import Finding, missing, ok
from budgeted_lora.workflow.graph import Graph


def shipped_teachers(graph: Graph) -> Iterator[Finding]:
    """Which teachers of the package have a shorter context than this scale reads; nothing if all suit it."""
    from budgeted_lora.models.checkpoint import shipped_folder

    for name in graph.teachers if graph.config.teachers == "shipped" else []:
        try:
            file = shipped_folder(name) / "config.json"
            anatomy = read_anatomy(read_json(file, expected="the configuration of a checkpoint"), where=file)
            refuse_short_context(anatomy, graph.config.context, where=f"shipped teacher {name}")
        except BadInput as error:
            yield missing("teacher", str(error), "use teachers: pretrain, or shorten them")


def local_weights(graph: Graph) -> Iterator[Finding]:
    """Reads every weight of the local checkpoints that are not yet among the results."""
    from budgeted_lora.models.checkpoint import check_checkpoint

    for name in graph.teachers if graph.config.teachers == "folder" else []:
        spec, fetched = graph.config.teacher_ladder[name], Path(graph.results, "teachers", name, "teacher.json")
        if fetched.is_file() or not graph.teacher_files(name):
            continue
        try:
            check_checkpoint(Path(spec.folder), name=name, spec=spec, context=graph.config.context, contents=True)
        except BadInput as error:
            yield missing("weights", str(error), f"correct teacher_ladder.{name}.folder, or choose another checkpoint")
        else:
            yield ok("weights", f"{name}: all of them are numbers and as config.json says")
