"""The folder of a trained student before compression: all weights with the adapters, and the final retentions.

model.safetensors  the full state, tied weights once, adapters as `<projection>.lora_a`, `.lora_b`, `.gate_logits`
adapter.json       method, rank, alpha; per projection its final retention d, rank and gate values (null without gates)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json, write_record, write_with
from budgeted_lora.method.projections import BudgetedLinear, install
from budgeted_lora.models.load import EMBEDDINGS, load_model, own_state, tied_names

WEIGHTS, ADAPTER = "model.safetensors", "adapter.json"


@dataclass(frozen=True)
class TrainedStudent:
    """A trained student: the model, its budgeted projections by name (none for KD Full), and its method."""

    model: PreTrainedModel
    modules: Mapping[str, BudgetedLinear]
    method: str


def adapter_record(method: str, modules: Mapping[str, BudgetedLinear]) -> dict[str, Any]:
    """The content of adapter.json; rank and alpha are those of the first module, and null for KD Full."""
    first = next(iter(modules.values()), None)
    return {
        "method": method,
        "rank": None if first is None else first.rank,
        "alpha": None if first is None else first.scale * first.rank,
        "modules": {
            name: {
                "d": module.retention,
                "rank": module.rank,
                "gates": None if module.gates() is None else module.gates().tolist(),
            }
            for name, module in modules.items()
        },
    }


def save_trained(
    folder: Path | str, model: PreTrainedModel, *, method: str, modules: Mapping[str, BudgetedLinear]
) -> None:
    """Writes the two files of a trained student, each whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in own_state(model).items()}
    write_with(Path(folder) / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    write_record(Path(folder) / ADAPTER, adapter_record(method, modules))


def load_trained(*, student: Path | str, trained: Path | str) -> TrainedStudent:
    """The trained student in evaluation mode, float32, with its final retentions.

    Args:
        student: model folder of the student before training; gives the configuration.
        trained: folder that `save_trained` wrote.

    Raises:
        BadInput: a file is missing or damaged, or the weights do not fit the student.
    """
    trained = Path(trained)
    check_digest(trained)
    record = read_json(trained / ADAPTER, expected="the adapter record of a trained student")
    model = load_model(student)
    modules: dict[str, BudgetedLinear] = {}
    try:
        if record["modules"]:
            gated = any(entry["gates"] is not None for entry in record["modules"].values())
            ranks = {name: entry["rank"] for name, entry in record["modules"].items()}
            modules = install(
                model, rank=record["rank"], alpha=record["alpha"], dropout=0.0, gates=gated, seed=0, ranks=ranks
            )
        for name, module in modules.items():
            module.retention = float(record["modules"][name]["d"])
        state = load_file(trained / WEIGHTS)
        state |= {name: state[EMBEDDINGS] for name in tied_names(model)}
        model.load_state_dict(state, strict=True)
    except FileNotFoundError:
        raise BadInput(f"{trained / WEIGHTS}: no such file; expected the weights of a trained student") from None
    except KeyError as error:
        raise BadInput(f"{trained / ADAPTER}: no entry {error}; expected the record of a trained student") from None
    except (RuntimeError, SafetensorError) as error:
        raise BadInput(f"{trained / WEIGHTS}: does not fit {student} ({' '.join(str(error).split())[:200]})") from None
    return TrainedStudent(model.eval(), modules, record["method"])
