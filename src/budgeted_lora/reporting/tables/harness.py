"""Scores on tasks of lm-evaluation-harness: teachers and untrained students, then every student of the main tables."""

from functools import partial
from math import nan
from typing import Any

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.reporting.grouping import method_label, method_order
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Column, Record, Table, csv_only, number
from budgeted_lora.reporting.texts import tabulate
from budgeted_lora.reporting.uncertainty import Bootstrap


def lm_eval(results: Results, published: Published, bootstrap: Bootstrap) -> Table:
    """One row per model, one column per metric of each task that the scale asks for."""
    named = [({"model": f"{name} itself"}, f"teachers/{name}") for name in results.teachers().get("name", [])]
    named += [({"model": f"untrained, {name}"}, f"students/{name}") for name in results.students().get("name", [])]
    for cell in method_order(results.listed(*results.shown.cells)).to_dict("records"):
        about = {"model": method_label(cell["method"], cell["budget"]), "cell": cell["cell"]}
        about |= {name: cell[name] for name in ("teacher", "init", "seed")}
        named.append((about, f"cells/{cell['cell']}/compressed/{DEFAULT_VARIANT}"))
    paths = [f"{folder}/lm_eval.json" for _, folder in named]
    scored = [(about | {"files": (path,)}, results.json(path)) for (about, _), path in zip(named, paths, strict=True)]
    records = [record for _, record in scored if record is not None]
    metrics = metrics_of(records)
    rows = [about | scores_of(record, metrics) for about, record in scored]
    columns = [Column("model", "Model"), *distinguishing(rows), *csv_only("cell")]
    for task, metric in metrics:
        name = f"{task}_{metric}".replace(" ", "_")
        columns += [Column(name, f"{task} · {metric}", 3, error=f"{name}_se"), *csv_only(f"{name}_se")]
    tasks = [one for record in records for one in record["tasks"].values()]
    better = {metric: up for one in tasks for metric, up in one["higher_is_better"].items()}
    lower = sorted(metric for metric, up in better.items() if up is False)
    return tabulate(
        results,
        rows=rows,
        columns=columns,
        version=" and ".join(sorted({record["versions"]["lm_eval"] for record in records})),
        more_is_better=f"Lower is better for {', '.join(lower)}, higher for others." if lower else "Higher is better.",
        limit=next((record["limit"] for record in records), None),
        cut=sum(one.get("cut_requests", 0) for one in tasks),
    )


def metrics_of(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Task and metric of every column, in the order of the configuration."""
    pairs = [(task, metric) for one in records for task in one["asked"] for metric in one["tasks"][task]["metrics"]]
    return list(dict.fromkeys(pairs))


def scores_of(record: dict[str, Any] | None, metrics: list[tuple[str, str]]) -> Record:
    """The columns of one model; NaN where there is no score."""
    row: Record = {}
    for task, metric in metrics:
        found = {} if record is None else record["tasks"].get(task, {})
        name = f"{task}_{metric}".replace(" ", "_")
        row[name] = found.get("metrics", {}).get(metric, nan)
        row[f"{name}_se"] = found.get("standard_errors", {}).get(metric, nan)
    return row


def distinguishing(rows: list[Record]) -> list[Column]:
    """Columns by which students of equal method and budget differ, shown where they do."""
    columns = []
    for name, heading in (("teacher", "Teacher"), ("init", "Layers"), ("seed", "Seed")):
        differs = len({row[name] for row in rows if name in row}) > 1
        columns.append(Column(name, heading if differs else "", text=partial(said, name=name)))
    return columns


def said(row: Record, *, name: str) -> str:
    """A student's teacher, layers or seed; a dash for a model that has none."""
    value = row[name]
    return number(value, 0) if isinstance(value, float) else str(value)
