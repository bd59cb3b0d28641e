"""`budgeted-lora compress`: a reader's model and text in, students out, by the same workflow as everything else."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from budgeted_lora.commands.clock import Clock, drafted, slots_of
from budgeted_lora.commands.show_plan import render_own_plan
from budgeted_lora.config.corpus import Corpus
from budgeted_lora.config.scale import PLAIN
from budgeted_lora.config.your_scale import EFFORTS, REQUEST, Rule, YourScale
from budgeted_lora.errors import BadInput, ProcessFailed
from budgeted_lora.files import write_text
from budgeted_lora.planning.budgets import Choices, usual_rank
from budgeted_lora.planning.doctor import refusal
from budgeted_lora.planning.fitting import characters_for, fitted, survey, with_text, with_tokens
from budgeted_lora.planning.machine import gpus, this_machine
from budgeted_lora.planning.own_model import OwnModel, name_of, open_model
from budgeted_lora.workflow.graph import Graph, load_graph
from budgeted_lora.workflow.runs import resume_run

compressing = typer.Typer()
CONFIG = Path("config")
SOME_STEPS = 300  # of a draft, before its tokens are chosen


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line. It stands in the scale file, and only the same request goes on with it."""

    model: str
    text: Sequence[str]
    text_field: str
    speedup: float | None
    budget: float | None
    param_reduction: float | None
    budgets: str | None
    student_layers: int | None
    half: bool
    rule: Rule
    rank: int | None
    rank_multiple: int | None
    hours: float | None
    tokens: int | None
    controls: bool

    def said(self) -> dict[str, object]:
        """What was given, by option."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


@compressing.command(context_settings={"allow_extra_args": True})
def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A checkpoint folder, or OWNER/NAME[@COMMIT] of the Hub.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text to train and score on: .txt, .jsonl, .jsonl.zst, .parquet; a quoted glob; repeatable."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    speedup: Annotated[
        float | None,
        typer.Option(help="MODEL's multiply-accumulates over the student's, in the projections: a count, no timing."),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Dense fraction F itself, 0 to 1.")] = None,
    param_reduction: Annotated[
        float | None, typer.Option(help="Per cent of the weights in MODEL's projections that the student lacks.")
    ] = None,
    budgets: Annotated[str | None, typer.Option(help="Several F, one student each: 0,0.2,0.4,0.6,0.8.")] = None,
    student_layers: Annotated[
        int | None,
        typer.Option(
            help="Layers that the student gets. All of them by default: a student that was cut knows little at first "
            "and needs far more tokens than a short run has. [all]"
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Half of the layers, those that change most.")] = False,
    rule: Annotated[
        str, typer.Option(help="recommended: the start and order that did best in docs/beyond.md; paper: the paper's.")
    ] = "recommended",
    rank: Annotated[int | None, typer.Option(help="Of the low-rank paths. [as the paper's, in proportion]")] = None,
    rank_multiple: Annotated[
        int | None, typer.Option(help="Round SVD ranks to a multiple, for kernels or quantisation. [1]")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Train as many tokens as fit in this time, by a measurement. [1]")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Train so many tokens of each student instead.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Train a smaller dense student of the same MACs beside each budget's.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of the scale, config/NAME.yaml. [from MODEL]")] = None,
    cores: Annotated[int | None, typer.Option(help="CPU cores to use. [all]")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
) -> None:
    """Compress a model of your own: write config/NAME.yaml, show plan and time, ask, run, and export the students.

    The same command again goes on after an interruption, and so does `snakemake main --config scale=NAME`.
    """
    if context.args:
        raise BadInput(f"{context.args[0]!r}: one word too many; expected one MODEL, and --text '*.jsonl' in quotes")
    request = Request(
        model, tuple(text or ()), text_field, speedup, budget, param_reduction, budgets, student_layers, half,
        checked_rule(rule), rank, rank_multiple, hours, tokens, controls,
    )  # fmt: skip
    refuse_request(request)
    refuse_outside_a_checkout()
    have = this_machine(Path("results")).cores
    if cores is not None and not 1 <= cores <= have:
        raise BadInput(f"--cores {cores}: expected 1 to {have}, the cores of this machine")
    compress_model(request, name=scale_name(name or name_of(model.partition("@")[0])), cores=cores or have, yes=yes)


def compress_model(request: Request, *, name: str, cores: int, yes: bool) -> None:
    """Everything after the command line has been read."""
    path = CONFIG / f"{name}.yaml"
    if path.exists():
        refuse_another_request(path, request)
        graph = load_graph(path)
        typer.echo(f"{path}: written for the same request; going on with it as it is now")
    else:
        scale, graph = planned_scale(request, name=name, cores=cores)
        write_text(path, scale.text())
    typer.echo(f"{path}: `snakemake main --config scale={name}` runs it, too")
    begun = (Path(graph.results) / "run.lock").exists()
    if not begun and not yes and not (sys.stdin.isatty() and typer.confirm("Start?", default=True)):
        typer.echo("nothing was started" + ("" if sys.stdin.isatty() else "; --yes starts without asking"))
        return
    run(graph, cores=cores)
    from budgeted_lora.commands.own_report import finish  # imports pandas

    typer.echo(finish(graph))


# --- what is refused before any work


def checked_rule(rule: str) -> Rule:
    if rule not in ("recommended", "paper"):
        raise BadInput(f"--rule {rule}: expected recommended or paper")
    return rule


def scale_name(name: str) -> str:
    if not PLAIN.fullmatch(name):
        raise BadInput(f"--name {name!r}: expected letters, digits, '-', '_' and '.', the name of a file in config/")
    return name


def refuse_request(request: Request) -> None:
    """Raises BadInput if options are missing, exclude each other, or are out of range."""
    targets = {
        "--speedup": request.speedup, "--budget": request.budget, "--param-reduction": request.param_reduction,
        "--budgets": request.budgets,
    }  # fmt: skip
    given = [option for option, value in targets.items() if value is not None]
    if len(given) != 1:
        raise BadInput(f"{' and '.join(given) or 'how small?'}: expected one of {', '.join(targets)}")
    if not request.text:
        raise BadInput("--text is missing: expected files of text to train and score on, --text 'text/*.jsonl'")
    if request.half and request.student_layers is not None:
        raise BadInput("--half and --student-layers: expected one of them")
    if request.hours is not None and request.tokens is not None:
        raise BadInput("--hours and --tokens: expected one of them")
    ranges = {
        "--speedup": (request.speedup, 1.0, float("inf")), "--param-reduction": (request.param_reduction, 0.0, 100.0),
        "--budget": (request.budget, 0.0, 1.0), "--hours": (request.hours, 0.001, 10_000.0),
        "--tokens": (request.tokens, 1, float("inf")), "--rank": (request.rank, 1, float("inf")),
        "--rank-multiple": (request.rank_multiple, 1, float("inf")),
    }  # fmt: skip
    for option, (value, low, high) in ranges.items():
        if value is not None and not low <= value <= high:
            limits = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
            raise BadInput(f"{option} {value:g}: expected {limits}")


def refuse_outside_a_checkout() -> None:
    """The workflow is not part of the installed package."""
    missing = [entry for entry in ("Snakefile", "workflow", "config/published.csv") if not Path(entry).exists()]
    if missing:
        raise BadInput(
            f"{Path.cwd()}: no {missing[0]} here; expected the root of a checkout of budgeted-lora, which holds the "
            "workflow (git clone it and run the command there)"
        )


def refuse_another_request(path: Path, request: Request) -> None:
    """Raises BadInput if a scale file was written for another request, or by hand."""
    lines = path.read_text(encoding="utf-8").splitlines()
    written = next((line.removeprefix(REQUEST) for line in lines if line.startswith(REQUEST)), None)
    if written is None:
        raise BadInput(f"{path}: is there already, and not from this command; expected another --name")
    if written != json.dumps(request.said()):
        raise BadInput(f"{path}: was written for another request, {written}; expected that one, or another --name")


# --- the scale


def planned_scale(request: Request, *, name: str, cores: int) -> tuple[YourScale, Graph]:
    """The scale of a request, after its plan is shown. Raises BadInput if it cannot run here."""
    model = open_model(request.model)
    layers = layers_of(request, model)
    rank = request.rank or usual_rank(Choices(model.anatomy, layers, 1).student)
    multiple = request.rank_multiple or 1
    choices = Choices(model.anatomy, layers, rank, multiple)
    if rank > choices.student.narrowest:
        raise BadInput(f"--rank {rank}: expected at most {choices.student.narrowest}, the narrowest projection")
    budgets = budgets_of(request, choices)
    if request.controls:
        choices.refuse_controls(budgets)
    fewest = choices.steps_needed(budgets)
    threads = max(1, cores // (len(budgets) * (1 + request.controls)))
    scale = YourScale(
        name=name, what=f"{model.described()}; a student of {layers} layers", request=request.said(),
        source=model.source, place=model.place, sizes=model.anatomy.entry, limit=model.limit, files=request.text,
        text_field=request.text_field, characters=None, layers=layers, budgets=budgets, rule=request.rule, rank=rank,
        rank_multiple=multiple, tokens=1, batch_windows=1, effort=EFFORTS[-1], threads=threads, on_gpu=bool(gpus()),
        measured=False, controls=request.controls,
    )  # fmt: skip
    corpus = Corpus(source="files", files=list(request.text), text_field=request.text_field)
    survey(corpus, enough=1, tokenizer=None)  # whether it can be read at all
    first = replace(scale, tokens=max(SOME_STEPS, fewest) * scale.length)
    draft = drafted(first)
    refuse_small_machine(draft)
    clock = Clock.assumed(draft)
    if request.tokens is None:
        clock = Clock.measured(first, cores=cores)
        scale = fitted(scale, lambda one: clock.seconds(one, cores=cores), hours=request.hours or 1.0, fewest=fewest)
    else:
        scale = with_tokens(scale, request.tokens, fewest=fewest)
    found = survey(corpus, enough=characters_for(scale), tokenizer=model.tokenizer)
    scale = with_text(scale, found)
    graph = drafted(scale)
    refuse_small_machine(graph)
    slots = slots_of(scale, cores=cores)
    typer.echo(render_own_plan(scale, model, choices, found, clock.costs(scale), slots=slots))
    return scale, graph


def refuse_small_machine(graph: Graph) -> None:
    """Raises BadInput if the plan of a scale does not fit, as the start of a run would."""
    problem = refusal(graph, remote=False)
    if problem:
        raise BadInput(problem)


def layers_of(request: Request, model: OwnModel) -> int:
    """Layers of the student."""
    every = model.anatomy.layers
    layers = -(-every // 2) if request.half else request.student_layers or every
    if request.student_layers is not None and not 1 <= request.student_layers <= every:
        raise BadInput(f"--student-layers {request.student_layers}: expected 1 to {every}, the layers of MODEL")
    return layers


def budgets_of(request: Request, choices: Choices) -> list[float]:
    """The dense fractions of the students, the largest first."""
    if request.budgets is not None:
        try:
            found = [float(word) for word in request.budgets.split(",")]
        except ValueError:
            found = []
        if not found or len(set(found)) < len(found) or not all(0.0 <= value <= 1.0 for value in found):
            raise BadInput(f"--budgets {request.budgets}: expected different numbers from 0 to 1 with commas between")
        return sorted(found, reverse=True)
    if request.budget is not None:
        return [request.budget]
    if request.speedup is not None:
        return [choices.largest_budget(speedup=request.speedup, asked=f"--speedup {request.speedup:g}")]
    left, asked = 1.0 - request.param_reduction / 100.0, f"--param-reduction {request.param_reduction:g}"
    return [choices.largest_budget(speedup=1.0 / left if left else float("inf"), asked=asked)]


# --- the run


def run(graph: Graph, *, cores: int) -> None:
    """Runs the workflow of a scale up to its page, from where it stands.

    Raises:
        BadInput: a run of it is at work.
        ProcessFailed: it ended before its end.
    """
    results, name = Path(graph.results), graph.config.scale
    if (results / "run.lock").exists():
        resume_run(results, wait=True)
    words = ["main", "--cores", str(cores), "--quiet", "host", "reason", "--config", f"scale={name}"]
    process = subprocess.Popen([sys.executable, "-m", "snakemake", *words], env=os.environ)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = process.wait()  # Snakemake got the signal too, and ends its jobs first
    if status:
        raise ProcessFailed(f"the run of scale {name} ended before its end (status {status}); the same command goes on")
