"""Stage judge_claims: verdicts on what the paper says, by the results that are present."""

from pathlib import Path

from budgeted_lora.config.scale import Config
from budgeted_lora.reporting.claims.table import judge_all, write_claims
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing


def judge_claims(
    *, results: Path, published: Path, claims: Path, config: Config, out: Path, standing: Standing
) -> None:
    """Write the verdicts as CSV to `out` and as Markdown beside it.

    Raises:
        BadInput: a file is missing or unusable, or two models scored different validation windows.
    """
    opened = Results.open(results, standing=standing, partial=True)
    verdicts = judge_all(opened, claims=claims, published=Published.open(published), config=config)
    write_claims(verdicts, out, scale=config.scale)
