"""A result says which stage function wrote it."""

from budgeted_lora.provenance import stage_in_progress


def stage_of(module: str, function: str) -> str | None:
    """What a helper deep below a function of a module would record."""
    space: dict = {"__name__": module, "stage_in_progress": stage_in_progress}
    exec(f"def helper():\n    return stage_in_progress()\ndef {function}():\n    return helper()", space)
    return space[function]()


def test_a_result_names_the_stage_that_wrote_it() -> None:
    assert stage_of("budgeted_lora.stages.evaluate", "evaluate") == "budgeted_lora.stages.evaluate.evaluate"
    assert stage_of("budgeted_lora.stages.dispatch", "run_stage") is None
    assert stage_of("budgeted_lora.evaluation.perplexity", "score") is None
