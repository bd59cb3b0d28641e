"""Threads and devices."""

import pytest
import torch

from budgeted_lora.errors import BadInput
from budgeted_lora.models.device import on_device


def test_threads_are_put_back_and_devices_checked():
    before = torch.get_num_threads()
    with on_device("cpu", threads=before + 1) as where:
        assert where.type == "cpu"
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(BadInput, match="device is 'gpu'"), on_device("gpu", threads=1):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="device is cuda"), on_device("cuda", threads=1):
            pass
