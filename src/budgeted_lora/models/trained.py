"""The folder of a trained student before compression: all weights with the adapters, and the final retentions.

model.safetensors  the full state, tied weights once, adapters as `<projection>.lora_a`, `.lora_b`, `.gate_logits`
adapter.json       method, rank, alpha; per projection its final retention d, rank and gate values (null without gates);
                   of an elastic student no d, but what gives those of any budget
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json, write_record, write_with
from budgeted_lora.method.controller import final_retentions
from budgeted_lora.method.projections import BudgetedLinear, install, set_retentions
from budgeted_lora.models.load import EMBEDDINGS, load_model, own_state, tied_names
from budgeted_lora.models.shards import WEIGHTS

ADAPTER = "adapter.json"


@dataclass(frozen=True)
class TrainedStudent:
    """A trained student: the model, its budgeted projections by name (none for KD Full), and its method."""

    model: PreTrainedModel
    modules: Mapping[str, BudgetedLinear]
    method: str


@dataclass(frozen=True)
class Removal:
    """What sets an elastic student to a budget.

    Attributes:
        removal_order: indices of the projections in the order in which their dense paths go.
        drop_threshold: a retention below it is 0.
    """

    removal_order: tuple[int, ...]
    drop_threshold: float

    @classmethod
    def of(cls, recipe: Recipe, removal_order: Sequence[int] | None) -> "Removal | None":
        """That of an elastic recipe; None for the others."""
        return cls(tuple(removal_order or ()), recipe.drop_threshold) if recipe.elastic else None

    def retentions(self, modules: Mapping[str, BudgetedLinear], budget: float) -> list[float]:
        """d of every projection at a budget, in their order."""
        costs, order = [module.macs for module in modules.values()], self.removal_order
        how = {"kind": "greedy", "drop_threshold": self.drop_threshold, "removal_order": order}
        return final_retentions(costs, budget, **how)


def adapter_record(
    method: str, modules: Mapping[str, BudgetedLinear], *, removal: Removal | None = None
) -> dict[str, Any]:
    """The content of adapter.json; rank and alpha are those of the first module, and null for KD Full."""
    first = next(iter(modules.values()), None)
    return {
        "method": method,
        "rank": None if first is None else first.rank,
        "alpha": None if first is None else first.scale * first.rank,
        "modules": {
            name: {
                "d": None if removal else module.retention,
                "rank": module.rank,
                "gates": None if module.gates() is None else module.gates().tolist(),
            }
            for name, module in modules.items()
        },
        **({"elastic": asdict(removal)} if removal else {}),
    }


def save_trained(
    folder: Path | str,
    model: PreTrainedModel,
    *,
    method: str,
    modules: Mapping[str, BudgetedLinear],
    removal: Removal | None = None,
) -> None:
    """Writes the two files of a trained student, each whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in own_state(model).items()}
    write_with(Path(folder) / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    write_record(Path(folder) / ADAPTER, adapter_record(method, modules, removal=removal))


def load_trained(*, student: Path | str, trained: Path | str, budget: float | None = None) -> TrainedStudent:
    """The trained student in evaluation mode, float32, with its final retentions.

    Args:
        student: model folder of the student before training; gives the configuration.
        trained: folder that `save_trained` wrote.
        budget: F that an elastic student is set to; None for all others.

    Raises:
        BadInput: a file is missing or damaged, the weights do not fit the student, or a budget is missing or too much.
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
        elastic = record.get("elastic")
        if (elastic is None) != (budget is None):
            wanted = "compress it at one, by a sweep with budget" if elastic else "expected an elastic student"
            raise BadInput(f"{trained}: trained for {'every budget' if elastic else 'one budget'}; {wanted}")
        retentions = [record["modules"][name]["d"] for name in modules]
        if elastic:
            retentions = Removal(**elastic).retentions(modules, budget)
        set_retentions(modules, retentions)
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
