"""Second moments and gradients of an untrained student's projections on a few windows of training text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest

STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of each projection on a few training windows, by name.

    Attributes:
        moments: E[x x^T] of the inputs, [d_in, d_in], float32.
        gradients: dL/dW of the cross-entropy on them, [d_out, d_in], float32.
    """

    moments: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path | str) -> "InputStatistics":
        """Reads the folder that `measure_statistics` wrote.

        Raises:
            BadInput: the file is missing or damaged, holds something else, or a value that is not finite.
        """
        path = Path(folder) / STATISTICS
        check_digest(folder)
        try:
            tensors = load_file(path)
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file; expected the input statistics of an untrained student") from None
        except SafetensorError as error:
            raise BadInput(f"{path}: not a whole safetensors file ({' '.join(str(error).split())[:200]})") from None
        kinds = {"moment": {}, "gradient": {}}
        for name, tensor in tensors.items():
            module, _, kind = name.rpartition(".")
            if kind not in kinds:
                raise BadInput(f"{path}: tensor {name}; expected names that end in .moment or .gradient")
            if not tensor.isfinite().all():
                raise BadInput(f"{path}: {name} has values that are not finite; delete them and rerun")
            kinds[kind][module] = tensor
        return cls(kinds["moment"], kinds["gradient"])

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Checks that these are statistics of a student with these weights W [d_out, d_in], by name.

        Raises:
            BadInput: a projection is missing or has another shape.
        """
        for name, weight in weights.items():
            out, inner = weight.shape
            for kind, tensor, shape in (
                ("moment", self.moments.get(name), (inner, inner)),
                ("gradient", self.gradients.get(name), (out, inner)),
            ):
                if tensor is None or tensor.shape != shape:
                    actual = "missing" if tensor is None else list(tensor.shape)
                    raise BadInput(
                        f"input statistics: {kind} of {name} is {actual}; expected {list(shape)}: another student's?"
                    )

    def tensors(self) -> dict[str, Tensor]:
        """The content of statistics.safetensors."""
        moments = {f"{name}.moment": moment for name, moment in self.moments.items()}
        return moments | {f"{name}.gradient": gradient for name, gradient in self.gradients.items()}


def measure(model: Any, linears: Mapping[str, nn.Linear], batches: Sequence[tuple[Tensor, Tensor]]) -> InputStatistics:
    """Statistics of the model's projections over token ids [B, L] and which of them are valid, batch by batch.

    The moments are summed in float64. Gradients stay in the linear layers as well.
    """
    moments = {name: torch.zeros(w.in_features, w.in_features, dtype=torch.float64) for name, w in linears.items()}
    mask = torch.empty(0)

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()[mask].double()
            moments[name] += (x.T @ x).cpu()

        return hook

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    for ids, mask in batches:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        scored = mask[:, :-1] & mask[:, 1:]
        functional.cross_entropy(logits[scored], ids[:, 1:][scored], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    seen = sum(int(valid.sum()) for _, valid in batches)
    return InputStatistics(
        {name: (moment / seen).float() for name, moment in moments.items()},
        {name: (w.weight.grad / seen).float().cpu().contiguous() for name, w in linears.items()},
    )
