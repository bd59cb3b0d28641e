"""What every test starts from."""

import pytest


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Undoes what a stage sets for its whole process: with denormals flushed, hypothesis cannot draw floats."""
    torch = pytest.importorskip("torch")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
