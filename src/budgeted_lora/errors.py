"""The ways a stage refuses: bad input (exit status 2) and a run that cannot go on (1)."""


class BadInput(Exception):
    """Input or configuration that cannot be used: one line saying what, where and what was expected."""


class TrainingDiverged(Exception):
    """The loss is no longer a finite number; carries the step at which that was seen."""


class RankFailed(Exception):
    """One of the processes that train a student together was killed or failed; says which, and how."""
