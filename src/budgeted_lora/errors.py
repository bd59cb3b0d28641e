"""The errors of a stage: bad input (exit status 2), and a run that cannot continue (1)."""


class BadInput(Exception):
    """Input or configuration that cannot be used; one line says what, where and what was expected."""


class TrainingDiverged(Exception):
    """The loss is no longer finite; the message names the step."""


class ProcessFailed(Exception):
    """One of the processes that train a student together was killed or failed; the message says which, and how."""
