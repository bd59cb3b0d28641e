"""Scores on tasks of EleutherAI's lm-evaluation-harness, whose package lm_eval is optional.

A model is given as transformers has it, in float32, with a tokenizer that puts no token around a text: what
`lm_eval --model hf` does with the exported folder. Tasks of the harness fetch their data where they say; those of a
folder of one's own may lie beside it.
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from budgeted_lora.data.tokenizer import Opened
from budgeted_lora.errors import BadInput

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

RESAMPLES = 1000  # for the standard errors of metrics that are no means
VERSIONS = ("lm_eval", "datasets", "transformers", "torch")
Sample = Mapping[str, Any]


def score(
    model: PreTrainedModel,
    tokenizer: Opened,
    *,
    tasks: Sequence[str],
    folder: Path | None = None,
    limit: int | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """What the harness measures, by name of task.

    Args:
        model: on its device.
        tasks: names that the harness or `folder` has; of a group also the tasks in it are reported.
        folder: tasks of one's own, YAML files with a `task:`.
        limit: examples of each task at most.
        batch: requests at once.

    Raises:
        BadInput: the package is missing, or a task is unknown, unreadable or would run code that the model writes.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput("package lm_eval is not installed; expected it for tasks: pip install -e '.[lm-eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    class Tasks(TaskManager):
        """With one line for whatever is wrong with a task's file or data; the harness raises many types."""

        def load(self, wanted: Any) -> Any:
            try:
                loaded = super().load(wanted)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                raise BadInput(f"evaluation.lm_eval: a task or its data cannot be read ({reason})") from None
            unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
            if unsafe:
                raise BadInput(f"evaluation.lm_eval: {unsafe[0]} runs code that the model writes, which is not done")
            return loaded

    manager = Tasks(include_path=folder, include_defaults=folder is None)
    if not set(tasks) <= set(manager.all_subtasks):  # to read the thousands of the harness takes half a minute
        manager = Tasks(include_path=folder)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        place = f"the harness or {folder}" if folder else "the harness"
        raise BadInput(f"evaluation.lm_eval: {', '.join(unknown)} is no task of {place}; `lm_eval ls tasks` lists them")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, eos_token=tokenizer.end)
    wrapped = HFLM(pretrained=model, tokenizer=fast, batch_size=batch, add_bos_token=False)
    about = {"task_manager": manager, "limit": limit, "bootstrap_iters": RESAMPLES}
    found = simple_evaluate(model=wrapped, tasks=list(tasks), **about)
    return {
        "tasks": {name: record_of(name, found, wrapped) for name in sorted(found["results"])},
        "asked": list(tasks),
        "limit": limit,
        "longest_request_allowed": wrapped.max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }


def record_of(name: str, found: Mapping[str, Any], wrapped: "HFLM") -> dict[str, Any]:
    """One task or group of tasks: its metrics, and what makes them repeatable."""
    metrics, errors = split_metrics(found["results"][name])
    record = {
        "metrics": metrics,
        "standard_errors": errors,
        "higher_is_better": found["higher_is_better"].get(name, {}),
        "version": found["versions"].get(name),
        "shots": found["n-shot"].get(name),
    }
    samples = found["samples"].get(name)
    return record if samples is None else record | about_requests(samples, wrapped)


def split_metrics(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Values and standard errors by metric; one that is computed behind a filter has its name in brackets."""
    metrics, errors = {}, {}
    for key, value in result.items():
        metric, comma, filtered = key.partition(",")
        if not comma or not isinstance(value, Real):  # a name of the task, "N/A", or a metric that is no number
            continue
        kind, label = (errors, metric.removesuffix("_stderr")) if metric.endswith("_stderr") else (metrics, metric)
        kind[label if filtered == "none" else f"{label} ({filtered})"] = float(value)
    return metrics, errors


def about_requests(samples: Iterable[Sample], wrapped: "HFLM") -> dict[str, Any]:
    """Number of examples, digest of all prompts and answers, and how many requests the harness had to cut.

    It cuts what is longer than the model's context at the beginning.
    """
    samples = list(samples)
    requests = [request for one in samples for request in one["arguments"]]
    texts = sorted({"".join(part for part in request if isinstance(part, str)) for request in requests})
    lengths = [len(wrapped.tok_encode(text)) for text in texts]
    return {
        "samples": len(samples),
        "requests_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "longest_request": max(lengths, default=0),
        "cut_requests": sum(length > wrapped.max_length for length in lengths),
    }
