"""The options passed to each stage: its arguments that are not paths, as plain data for a rule's `params:`.

The first functions return the values that a stage records, which `cells` and `why` compare; those of the
second part have the names of stages and return all the options of one job.
"""

from pathlib import Path
from typing import Any

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.config.sections import Scoring
from budgeted_lora.files import canonical_json, short_hash, write_text
from budgeted_lora.reporting.contents import BEYOND
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import default_recipe, planned, student_shape

LONGEST = 20_000  # characters; Linux takes 131,072 bytes for a job's command, and quotes in quotes are five each
REMOVAL_WINDOWS = 16  # of the statistics' windows: every projection costs three passes over them
Options = dict[str, Any]

# --- what determines a result


def corpus(graph: Graph) -> Options:
    """What determines the documents: the corpus section without what only later stages use."""
    later = {"train_tokens", "validation_tokens", "function_share", "hold_out_words", "prompt_space"}
    return graph.config.corpus.model_dump(mode="json", exclude=later)


def _of_corpus(graph: Graph, *names: str) -> Options:
    return {name: getattr(graph.config.corpus, name) for name in names}


def mix(graph: Graph, *, for_teachers: bool = False) -> Options:
    """What determines the token files besides documents and tokenizer."""
    names = ("validation_tokens", "function_share", "slice_per_mille", "hold_out_words", "prompt_space")
    options = _of_corpus(graph, *names)
    if for_teachers:
        options["function_share"] = graph.teachers_share
    return options | {"train_tokens": graph.train_tokens()}


def teacher_spec(graph: Graph, teacher: str) -> Options:
    """The teacher's entry of teacher_ladder."""
    return graph.config.teacher_ladder[teacher].model_dump(mode="json")


def pretraining(graph: Graph) -> Options:
    """How teachers made here are trained."""
    return graph.config.pretraining.model_dump(mode="json", exclude={"function_share"})


def student(graph: Graph, name: str) -> Options:
    """How an untrained student is cut."""
    recipe = graph.students[name]
    if recipe is None:
        values = {"init": graph.config.training.init, "depth": graph.config.student.layers, "ffn": None, "seed": 0}
    else:
        seed = recipe.seed if recipe.init == "scratch" else 0
        values = {"init": recipe.init, "depth": recipe.student_layers, "ffn": recipe.student_ffn, "seed": seed}
    return values | (importance(graph) if values["init"] == "importance" else {})


def importance(graph: Graph) -> Options:
    """What the importance of the first teacher's layers is measured on."""
    config = graph.config
    about = {"sequence_length": config.sequence_length, "rows": config.rows}
    about |= {"windows": config.student.importance_windows, "batch_windows": config.training.micro_batch_windows}
    return {"importance": about, "threads": config.threads.training}


def statistics(graph: Graph) -> Options:
    """What input statistics are measured on."""
    config = graph.config
    return {
        "windows": config.lora.statistics_windows,
        "batch_windows": config.training.micro_batch_windows,
        "sequence_length": config.sequence_length,
        "rows": config.rows,
        "rank": config.lora.rank,
        "removal_windows": removal_windows(graph),
    }


def removal_windows(graph: Graph) -> int:
    """Windows on which the loss of each removal is measured: none where no figure shows it, since it takes hours."""
    return REMOVAL_WINDOWS if BEYOND in graph.config.tables else 0


def recipe(graph: Graph, cell: str) -> Options:
    """How a cell is trained."""
    return graph.cells[cell].recipe.model_dump(mode="json", exclude_none=True)


def compression(graph: Graph, variant: str) -> Options:
    """How a variant compresses; with `macs_of_budget` also the MACs that this budget leaves."""
    options, budget = graph.variants[variant].model_dump(mode="json"), graph.variants[variant].macs_of_budget
    if budget is not None:
        options["macs"] = planned(graph.config, default_recipe(graph.config, "budgeted_lora", budget)).totals.macs
    return options


def evaluation(graph: Graph) -> Options:
    """What scores depend on besides the model: the values of `EvaluationOptions`."""
    options = graph.config.evaluation.model_dump(mode="json", include=set(Scoring.model_fields))
    options |= {"sequence_length": graph.config.sequence_length, "rows": graph.config.rows}
    return options | _of_corpus(graph, "validation_tokens", "slice_per_mille", "hold_out_words", "prompt_space")


def tasks(graph: Graph) -> Options:
    """What scores on tasks of lm-evaluation-harness depend on besides the model and the files of the tasks."""
    asked = graph.config.evaluation
    options = {"tasks": asked.lm_eval, "folder": asked.lm_eval_folder, "limit": asked.lm_eval_limit}
    return options | {"batch": asked.icl_batch}


def int8(graph: Graph) -> Options:
    """What size, perplexity and speed of an int8 student depend on besides the model."""
    names = ("sequence_length", "rows", "validation_tokens", "batch_windows")
    scored = evaluation(graph)
    options = {name: scored[name] for name in names} | {"skip_windows": graph.config.evaluation.skip_windows}
    return options | {"sizes": graph.config.speed.model_dump(mode="json")}


def timed_student(graph: Graph, structure: str) -> Options:
    """Shape of the scale's student, and the rank of its low-rank paths before compression."""
    first = graph.config.teacher_ladder[graph.config.first_teacher]
    shape = student_shape(graph.config).as_json()
    rank = graph.timed()[structure].rank
    return {"shape": shape, "heads": first.heads, "kv_heads": first.kv_heads, "rank": rank}


# --- all the options of a job, by stage


def as_json(graph: Graph, options: Options) -> str:
    """Options as one line of JSON, which a rule quotes once for the shell; `@` and the name of a file for long ones.

    The file is named after its content, so that equal options are equal parameters for Snakemake.
    """
    text = canonical_json(options)
    if len(text) <= LONGEST:
        return text
    path = Path(graph.results) / ".options" / f"{short_hash(options, digits=16)}.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return f"@{path}"


class Uncompared:
    """Options of a rule that Snakemake does not compare with those of the last run, since it cannot represent them."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph, self.options = graph, options

    def __str__(self) -> str:
        return as_json(self.graph, self.options)


def _on_device(graph: Graph, *, threads: int) -> Options:
    return {"scale": graph.config.scale, "device": graph.config.device, "threads": threads}


def collect_corpus(graph: Graph) -> Options:
    return {"corpus": corpus(graph), "scale": graph.config.scale}


def train_tokenizer(graph: Graph) -> Options:
    rule = _of_corpus(graph, "slice_per_mille", "hold_out_words", "prompt_space")
    return rule | {"function_share": graph.teachers_share} | graph.config.tokenizer.model_dump()


def tokenize_corpus(graph: Graph, *, for_teachers: bool = False) -> Options:
    return mix(graph, for_teachers=for_teachers) | {"scale": graph.config.scale}


def fetch_shard(graph: Graph, shard: str) -> Options:
    return graph.shard_jobs().download(shard) | {"scale": graph.config.scale}


def tokenize_shard(graph: Graph, shard: str) -> Options:
    jobs = graph.shard_jobs()
    return {"reading": jobs.reading(shard), "source": jobs.source(shard), "scale": graph.config.scale}


def join_shards(graph: Graph) -> Options:
    return {"joining": graph.shard_jobs().joining(), "scale": graph.config.scale}


def fetch_teacher(graph: Graph, teacher: str) -> Options:
    options = {"name": teacher, "source": graph.config.teachers, "spec": teacher_spec(graph, teacher)}
    options["context"] = graph.config.context
    return options | _of_corpus(graph, "slice_per_mille", "hold_out_words") | {"scale": graph.config.scale}


def pretrain_teacher(graph: Graph, teacher: str) -> Options:
    config = graph.config
    options = {"name": teacher, "spec": teacher_spec(graph, teacher), "pretraining": pretraining(graph)}
    options |= {"sequence_length": config.sequence_length, "rows": config.rows}
    return options | _on_device(graph, threads=config.threads.training)


def cut_student(graph: Graph, name: str) -> Options:
    values = student(graph, name)
    device = {"device": graph.config.device} if "importance" in values else {}
    return values | device | {"scale": graph.config.scale}


def measure_statistics(graph: Graph) -> Options:
    return statistics(graph) | _on_device(graph, threads=graph.config.threads.training)


def cache_teacher(graph: Graph, name: str) -> Options:
    cache, training = graph.caches()[name], graph.config.training
    options = {"windows": cache.windows, "sequence_length": graph.config.sequence_length, "rows": cache.packing}
    options |= {"batch_windows": training.micro_batch_windows, "precision": training.precision}
    return options | _on_device(graph, threads=graph.config.threads.training)


def train_cell(graph: Graph, cell: str) -> Options:
    config = graph.config
    options = {"recipe": recipe(graph, cell), "cell": cell, "gpus": config.gpus_per_run}
    options |= {"log_every": config.training.log_every, "checkpoint_every": config.training.checkpoint_every}
    return options | _on_device(graph, threads=config.threads.training)


def compress_cell(graph: Graph, cell: str, variant: str) -> Options:
    compressed_by = compression(graph, variant)
    options = {"recipe": recipe(graph, cell), "macs": compressed_by.pop("macs", None), "variant": compressed_by}
    return options | {"cell": cell, "scale": graph.config.scale, "threads": graph.config.threads.evaluation}


def evaluate(graph: Graph, *, cell: str | None = None, variant: str = DEFAULT_VARIANT, icl: bool = True) -> Options:
    options, budget = {"evaluation": evaluation(graph), "cell": cell, "icl": icl}, graph.variants[variant].budget
    options |= {} if budget is None else {"budget": budget}
    return options | _on_device(graph, threads=graph.config.threads.evaluation)


def score_tasks(graph: Graph, cell: str | None = None) -> Options:
    return tasks(graph) | {"cell": cell} | _on_device(graph, threads=graph.config.threads.evaluation)


def measure_int8(graph: Graph, cell: str) -> Options:
    return int8(graph) | {"cell": cell} | _on_device(graph, threads=graph.config.threads.timing)


def search_prompts(graph: Graph) -> Options:
    options = {"evaluation": evaluation(graph), "ngram": graph.config.corpus.overlap_ngram}
    return options | {"scale": graph.config.scale}


def calibrate_teachers(graph: Graph) -> Options:
    return {"calibration": graph.config.calibration.model_dump(mode="json"), "scale": graph.config.scale}


def measure_speed(graph: Graph, structure: str) -> Options:
    plan = graph.timed()[structure].plan
    options = {"student": timed_student(graph, structure), "structure": plan.as_json() if plan else None}
    options["sizes"] = graph.config.speed.model_dump(mode="json")
    return options | _on_device(graph, threads=graph.config.threads.timing)
