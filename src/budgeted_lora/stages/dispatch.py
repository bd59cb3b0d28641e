"""The commands that workflow rules call, one a stage. Values come as one line of JSON, paths from the rule.

Each command imports its stage when it runs, after the GPU slot is taken, so that CUDA_VISIBLE_DEVICES is set
before torch looks at it, and so that `budgeted-lora plan` starts at once.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from budgeted_lora.config.corpus import Corpus, HubDataset
from budgeted_lora.config.messages import describe
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Calibration, Pretraining, Teacher
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, write_digest
from budgeted_lora.workflow.runs import join_run
from budgeted_lora.workflow.slots import gpu_slots

app = typer.Typer(no_args_is_help=True, help="The stages of the workflow; its rules call them, a person seldom does.")

Values = Annotated[str, typer.Option("--values", help="Settings of this stage as one line of JSON.")]
Out = Annotated[Path, typer.Option("--out", help="File or folder to write.")]
Options = Annotated[str, typer.Option("--options", help="Options of this stage as one line of JSON.")]
Path_ = Annotated[Path, typer.Option()]
Scale = Annotated[str, typer.Option("--scale", help="Name of the scale, recorded in results.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads; part of what makes bytes repeat.")]


@app.callback()
def stage(context: typer.Context) -> None:
    """The stages of the workflow; its rules call them, a person seldom does."""
    out = next((value for word, value in zip(sys.argv, sys.argv[1:], strict=False) if word == "--out"), "")
    join_run(f"{context.invoked_subcommand} {out}".strip())


def parse(text: str, model: type[BaseModel] | None = None) -> Any:
    """A JSON option, validated by `model` where one is given.

    Raises:
        BadInput: not JSON, or not what the model expects.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"--values: not JSON ({error})") from None
    try:
        return model.model_validate(values) if model else values
    except ValidationError as error:
        raise BadInput(f"--values: {describe(error, model, values)}") from None


@app.command()
def collect(
    values: Values,
    out: Out,
    record: Annotated[Path, typer.Option()],
    scale: Scale,
    processes: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Read the corpus, drop exact duplicates, split it by MD5."""
    from budgeted_lora.stages.collect_corpus import collect as run

    run(corpus=parse(values, Corpus), out=out, report=record, scale=scale, processes=processes)
    write_digest(out)


@app.command()
def train_tokenizer(values: Values, documents: Annotated[Path, typer.Option()], out: Out) -> None:
    """Train a tokenizer on the mix of documents and demonstrations."""
    from budgeted_lora.stages.tokenizer import make_tokenizer

    make_tokenizer(documents=documents, out=out, **parse(values))
    write_digest(out)


@app.command()
def copy_tokenizer(out: Out, source: Annotated[Path | None, typer.Option()] = None) -> None:
    """Take the tokenizer of a checkpoint folder, or without --source the one that ships with the package."""
    from budgeted_lora.models.checkpoint import shipped_tokenizer
    from budgeted_lora.stages.tokenizer import copy_tokenizer as run

    run(source=source or shipped_tokenizer(), out=out)
    write_digest(out)


@app.command()
def tokenize(
    values: Values,
    documents: Annotated[Path, typer.Option()],
    record: Annotated[Path, typer.Option()],
    tokenizer: Annotated[Path, typer.Option()],
    out: Out,
    scale: Scale,
) -> None:
    """Write the token files and the manifest."""
    from budgeted_lora.stages.tokenize_corpus import tokenize as run

    run(documents=documents, collected=record, tokenizer=tokenizer, out=out, scale=scale, **parse(values))


@app.command()
def fetch_shard(
    values: Values,
    out: Out,
    record: Annotated[Path, typer.Option()],
    downloads: Annotated[Path, typer.Option(help="Folder of the download while it is made.")],
    scale: Scale,
) -> None:
    """Download one shard of a Hub dataset."""
    from budgeted_lora.stages.fetch_shard import fetch_shard as run

    wanted = parse(values)
    hub = HubDataset.model_validate(wanted["hub"])
    run(hub=hub, pattern=wanted["pattern"], out=out, record=record, downloads=downloads, scale=scale)


@app.command()
def tokenize_shard(
    values: Values,
    source: Annotated[str, typer.Option(help="The shard's file, or a pattern that it alone matches.")],
    tokenizer: Annotated[Path, typer.Option()],
    out: Out,
    scale: Scale,
) -> None:
    """Read, split and tokenise one shard of the corpus."""
    from budgeted_lora.stages.tokenize_shard import tokenize_shard as run

    run(source=source, tokenizer=tokenizer, out=out, values=parse(values), scale=scale)


@app.command()
def join_shards(
    values: Values,
    shards: Annotated[Path, typer.Option(help="The folder of all shards, 00000 and so on.")],
    out: Out,
    scale: Scale,
) -> None:
    """Join the shards to the token files, each document once, and write the manifest."""
    from budgeted_lora.stages.join_shards import join_shards as run

    run(folder=shards, out=out, values=parse(values), scale=scale)


@app.command()
def fetch_teacher(
    name: Annotated[str, typer.Option()],
    source: Annotated[str, typer.Option(help="shipped, folder or hub.")],
    spec: Annotated[str, typer.Option(help="The teacher's entry of teacher_ladder as JSON.")],
    values: Values,
    out: Out,
    record: Annotated[Path, typer.Option()],
    scale: Scale,
    first: Annotated[Path | None, typer.Option(help="The first teacher, whose vocabulary it must share.")] = None,
) -> None:
    """Bring a shipped, local or Hub checkpoint into results."""
    from budgeted_lora.stages.fetch_teacher import fetch_teacher as run

    run(
        name=name, source=source, spec=parse(spec, Teacher), out=out, record=record, scale=scale, first=first,
        **parse(values),
    )  # fmt: skip
    write_digest(out)


@app.command()
def pretrain_teacher(
    name: Annotated[str, typer.Option()],
    spec: Annotated[str, typer.Option(help="The teacher's entry of teacher_ladder as JSON.")],
    values: Values,
    sequence_length: Annotated[int, typer.Option()],
    rows: Annotated[str, typer.Option()],
    tokens: Annotated[Path, typer.Option()],
    tokenizer: Annotated[Path, typer.Option()],
    out: Out,
    record: Annotated[Path, typer.Option()],
    history: Annotated[Path, typer.Option()],
    state: Annotated[Path, typer.Option()],
    scale: Scale,
    threads: Threads,
    device: Device,
) -> None:
    """Train a teacher from random weights."""
    wanted, settings = parse(spec, Teacher), parse(values, Pretraining)
    with gpu_slots(1, device=device):
        from budgeted_lora.stages.pretrain_teacher import make_teacher

        make_teacher(
            name=name, spec=wanted, settings=settings, sequence_length=sequence_length, rows=rows, tokens=tokens,
            tokenizer=tokenizer, out=out, record=record, history=history, state=state, scale=scale, threads=threads,
            device=device,
        )  # fmt: skip


@app.command()
def cut_student(
    teacher: Annotated[Path, typer.Option()],
    values: Values,
    out: Out,
    record: Annotated[Path, typer.Option()],
    scale: Scale,
) -> None:
    """Cut a student from the first teacher."""
    from budgeted_lora.stages.cut_student import cut_student as run

    run(teacher=teacher, out=out, record=record, scale=scale, **parse(values))
    write_digest(out)


@app.command()
def measure_statistics(
    values: Values,
    student: Annotated[Path, typer.Option()],
    tokens: Annotated[Path, typer.Option()],
    out: Out,
    record: Annotated[Path, typer.Option()],
    scale: Scale,
    threads: Threads,
    device: Device,
) -> None:
    """Measure second moments and gradients of an untrained student's projections."""
    with gpu_slots(1, device=device):
        from budgeted_lora.stages.measure_statistics import measure_statistics as run

        run(
            student=student, tokens=tokens, out=out, record=record, scale=scale, device=device, threads=threads,
            **parse(values),
        )  # fmt: skip
    write_digest(out)


@app.command()
def cache_teacher(
    teacher: Annotated[Path, typer.Option()],
    tokens: Annotated[Path, typer.Option()],
    windows: Annotated[int, typer.Option(min=1)],
    sequence_length: Annotated[int, typer.Option(min=1)],
    rows: Annotated[str, typer.Option()],
    batch_windows: Annotated[int, typer.Option(min=1)],
    precision: Annotated[str, typer.Option()],
    out: Out,
    state: Annotated[Path, typer.Option()],
    scale: Scale,
    threads: Threads,
    device: Device,
) -> None:
    """Compute a teacher's final hidden states once for every student that learns from it."""
    with gpu_slots(1, device=device):
        from budgeted_lora.stages.cache_teacher import cache_teacher as run

        run(
            teacher=teacher, tokens=tokens, windows=windows, sequence_length=sequence_length, rows=rows,
            batch_windows=batch_windows, precision=precision, scale=scale, out=out, state=state, device=device,
            threads=threads,
        )  # fmt: skip


@app.command()
def train(
    values: Values,
    cell: Annotated[str, typer.Option()],
    student: Annotated[Path, typer.Option()],
    teacher: Annotated[Path, typer.Option()],
    tokens: Annotated[Path, typer.Option()],
    out: Out,
    state: Annotated[Path, typer.Option()],
    scale: Scale,
    threads: Threads,
    device: Device,
    log_every: Annotated[int, typer.Option(min=1)],
    checkpoint_every: Annotated[int, typer.Option(min=1)],
    cache: Annotated[
        Path | None, typer.Option(help="The teacher's hidden states; without it the teacher runs too.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, each with a process of its own; on the CPU processes.")] = 1,
    statistics: Annotated[Path | None, typer.Option(help="The untrained student's, where the recipe needs it.")] = None,
) -> None:
    """Train one student."""
    from budgeted_lora.config.recipe import Recipe

    recipe = parse(values, Recipe)
    if recipe.batch_windows % gpus:
        raise BadInput(f"--gpus {gpus} cannot share the {recipe.batch_windows} windows of a step; expected a divisor")
    job = {
        "recipe": recipe, "cell": cell, "scale": scale, "student": student, "teacher": teacher, "tokens": tokens,
        "cache": cache, "statistics": statistics, "out": out, "state": state, "device": device, "threads": threads,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    with gpu_slots(gpus, device=device):
        if gpus > 1:
            from budgeted_lora.stages.launch import train_in_processes

            train_in_processes(gpus, job)
        else:
            from budgeted_lora.stages.train_cell import train_cell

            train_cell(**job)


@app.command()
def compress(
    values: Values,
    settings: Annotated[str, typer.Option(help="The compression section as JSON.")],
    cell: Annotated[str, typer.Option()],
    student: Annotated[Path, typer.Option()],
    trained: Annotated[Path, typer.Option()],
    tokens: Annotated[Path, typer.Option()],
    tokenizer: Annotated[Path, typer.Option()],
    out: Out,
    scale: Scale,
    threads: Threads,
    statistics: Annotated[Path | None, typer.Option(help="The untrained student's, where settings need it.")] = None,
) -> None:
    """Compress a trained student to plain linear layers."""
    from budgeted_lora.config.recipe import Recipe
    from budgeted_lora.stages.compress_cell import compress_cell

    compress_cell(
        recipe=parse(values, Recipe), cell=cell, scale=scale, student=student, trained=trained, tokens=tokens,
        tokenizer=tokenizer, settings=parse(settings), out=out, threads=threads, statistics=statistics,
    )  # fmt: skip
    write_digest(out / "model")


@app.command()
def evaluate(
    values: Values,
    model: Annotated[Path, typer.Option()],
    tokens: Annotated[Path, typer.Option(help="The data folder.")],
    tokenizer: Annotated[Path, typer.Option()],
    out: Out,
    scale: Scale,
    threads: Threads,
    device: Device,
    cell: Annotated[str | None, typer.Option()] = None,
    student: Annotated[Path | None, typer.Option()] = None,
    uncompressed: Annotated[Path | None, typer.Option()] = None,
    icl: Annotated[bool, typer.Option()] = True,
) -> None:
    """Measure perplexity and in-context learning of one model."""
    with gpu_slots(1, device=device):
        from budgeted_lora.stages.evaluate import evaluate_model

        evaluate_model(
            model=model, tokens=tokens, tokenizer=tokenizer, out=out, values=parse(values), scale=scale, cell=cell,
            device=device, threads=threads, icl=icl, student=student, uncompressed=uncompressed,
        )  # fmt: skip


@app.command()
def calibrate(
    scores: Annotated[list[Path], typer.Argument(help="perplexity.json of each teacher.")],
    values: Values,
    published: Annotated[Path, typer.Option()],
    out: Out,
    report: Annotated[Path, typer.Option(help="Markdown file to write.")],
    scale: Scale,
) -> None:
    """Say whether the teachers' perplexities come out as the paper prints them."""
    from budgeted_lora.stages.calibrate_teachers import calibrate_teachers

    chosen = parse(values, Calibration)
    calibrate_teachers(
        scores=scores, published=published, tolerance=chosen.tolerance, on_miss=chosen.on_miss, out=out, report=report,
        scale=scale,
    )  # fmt: skip


@app.command()
def speed(
    values: Values,
    settings: Annotated[str, typer.Option(help="The speed section as JSON.")],
    tokens: Annotated[Path, typer.Option(help="Record of a token file: gives the vocabulary.")],
    out: Out,
    scale: Scale,
    threads: Threads,
    device: Device,
    compressed: Annotated[
        Path | None, typer.Option(help="compression.json with the structure, where the values have none.")
    ] = None,
) -> None:
    """Time a compressed structure against the dense student."""
    about, vocabulary = parse(values), read_json(tokens)["vocab_size"]
    with gpu_slots(1, device=device):
        from budgeted_lora.evaluation.speed import SpeedShape
        from budgeted_lora.method.cost import ModelShape
        from budgeted_lora.stages.measure_speed import compressed_structure, measure_speed

        structure = about["structure"] if compressed is None else compressed_structure(compressed)
        student = about["student"] | {"shape": ModelShape(**about["student"]["shape"]), "vocab_size": vocabulary}
        measure_speed(
            student=SpeedShape(**student), structure=structure, out=out, scale=scale, threads=threads, device=device,
            **parse(settings),
        )  # fmt: skip


@app.command()
def list_cells(values: Values, out: Out, tables: Annotated[Path, typer.Option()]) -> None:
    """Write cells.csv and tables.csv: every cell, its values, the tables that list it."""
    from budgeted_lora.stages.list_cells import list_cells

    list_cells(config=parse(values, Config), out=out, tables=tables)


@app.command()
def list_table(table: str, tables: Annotated[Path, typer.Option()], out: Out) -> None:
    """Write the lines of one configured table."""
    from budgeted_lora.stages.list_table import list_table

    list_table(table=table, tables=tables, out=out)


@app.command()
def make_table(lines: list[Path], options: Options, results: Path_, published: Path_, out: Out) -> None:
    """Write one table as CSV, Markdown and LaTeX."""
    from budgeted_lora.reporting.standing import Standing
    from budgeted_lora.stages.make_table import make_table

    about = parse(options)
    standing = Standing(**about.pop("standing"))
    make_table(lines=lines, results=results, published=published, out=out, standing=standing, **about)


@app.command()
def make_figure(lines: list[Path], options: Options, results: Path_, out: Out) -> None:
    """Draw one figure as PNG, SVG and PDF."""
    from budgeted_lora.reporting.standing import Standing
    from budgeted_lora.stages.make_figure import make_figure

    about = parse(options)
    standing = Standing(**about["standing"])
    make_figure(figure=about["figure"], lines=lines, results=results, out=out, standing=standing)


@app.command()
def judge_claims(options: Options, results: Path_, published: Path_, claims: Path_, out: Out) -> None:
    """Judge what the paper says by the results that are present."""
    from budgeted_lora.reporting.standing import Standing
    from budgeted_lora.stages.judge_claims import judge_claims

    about = parse(options)
    config, standing = parse(json.dumps(about["config"]), Config), Standing(**about["standing"])
    judge_claims(results=results, published=published, claims=claims, config=config, out=out, standing=standing)


@app.command()
def make_index(options: Options, results: Path_, published: Path_, out: Out, contents: Path_) -> None:
    """Write index.html from the tables and figures that are present."""
    from budgeted_lora.reporting.standing import Standing
    from budgeted_lora.stages.make_index import make_index

    about = parse(options)
    config, standing = parse(json.dumps(about["config"]), Config), Standing(**about["standing"])
    make_index(results=results, published=published, config=config, out=out, standing=standing, contents=contents)
