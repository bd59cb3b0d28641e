"""What each stage is told."""

REMOVAL_WINDOWS = 16  # of the statistics' windows: every projection costs three passes over them
