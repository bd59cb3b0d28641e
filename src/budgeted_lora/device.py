"""Which device a stage computes on."""

import torch

from budgeted_lora.errors import BadInput


def choose_device(device: str) -> torch.device:
    """The device of a configuration's word: "auto" is a GPU where torch sees one, else the CPU.

    Raises:
        BadInput: "cuda" without a usable GPU, or an unknown word.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {device!r}; expected auto, cpu or cuda")
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise BadInput("device is cuda, but torch finds no usable GPU; expected one, or device: auto or cpu")
    return torch.device("cuda" if available else "cpu")
