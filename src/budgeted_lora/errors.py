"""The errors of a stage: bad input (exit status 2), and a run that cannot continue (1)."""


class BadInput(Exception):
    """Input or configuration that cannot be used; one line says what, where and what was expected.

    The line may quote what it found. Characters that would break it, or that a terminal obeys, are written as escapes.
    """

    def __str__(self) -> str:
        return "".join(one if one.isprintable() else repr(one)[1:-1] for one in super().__str__())


class TrainingDiverged(Exception):
    """The loss is no longer finite; the message names the step."""


class ProcessFailed(Exception):
    """One of the processes that train a student together was killed or failed; the message says which, and how."""
