"""What every test starts from."""

from collections.abc import Callable

import pytest
from fixtures.command_line import Outcome, status_of


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Undoes what a stage sets for its whole process: with denormals flushed, hypothesis cannot draw floats."""
    torch = pytest.importorskip("torch")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command, given as words or lists of them, in this process."""

    def go(*parts: object) -> Outcome:
        words = [word for part in parts for word in (part if isinstance(part, list) else [part])]
        capsys.readouterr()
        status = status_of(words)
        return Outcome(status, *capsys.readouterr())

    return go
