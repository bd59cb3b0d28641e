"""The page: one self-contained HTML file, figures inside, made for a phone as well as for a desk."""

import base64
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from budgeted_lora.config.scale import Config
from budgeted_lora.reporting.claims.table import claims_section
from budgeted_lora.reporting.contents import BEYOND, CONTROLS, FIGURES, TABLES, Shown
from budgeted_lora.reporting.page import facts
from budgeted_lora.reporting.page.beyond import findings
from budgeted_lora.reporting.page.summary import sentences
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table, number
from budgeted_lora.reporting.tables.unknowns import constants
from budgeted_lora.reporting.texts import texts

TABLE_FORMS, FIGURE_FORMS = ("csv", "md", "tex"), ("png", "svg", "pdf")
FIRST_FIGURE = "pareto_mac_speedup"  # on the first screen


def render(
    results: Results,
    *,
    tables: list[Table],
    figures: list[Shown],
    out: Path,
    config: Config,
    skipped: list[str],
    absent: list[str],
) -> str:
    """The page's text.

    Args:
        tables: those to show; table2 goes to the first screen, controls and ablations to sections that fold.
        figures: those that lie in out/figures as SVG.
        out: the folder the page will lie in; links are relative to it.
        config: the scale, for the list of constants.
        skipped: what could not be made in a partial report, one sentence each.
        absent: ablations that were not made, one sentence each.
    """
    relative = Path(os.path.relpath(results.root.resolve(), out.resolve())).as_posix()
    pictures = [picture(figure, out) for figure in figures]
    main = {name for name, shown in TABLES.items() if shown.target == "main"} - {CONTROLS}
    context: dict[str, Any] = {
        "scale": results.scale,
        "summary": sentences(results),
        "first": next((one for one in pictures if one["name"] == FIRST_FIGURE), None),
        "teachers": results.teachers().to_dict("records"),
        "manifest": results.json("data/manifest.json"),
        "students": facts.students_sentence(results),
        "machines": facts.machines(results),
        "time": facts.time_sentence(results),
        "standing": results.standing,
        "apart": texts()["setups"][results.standing.setup]["apart"],
        "main": next((table for table in tables if table.name == "table2"), None),
        "tables": [table for table in tables if table.name in main - {"table2"}],
        "folded": sections(results, [table for table in tables if table.name not in main], pictures, relative),
        "absent": absent,
        "figures": [one for one in pictures if FIGURES[one["name"]].target == "main" and one["name"] != FIRST_FIGURE],
        "claims": claims_section(out, relative),
        "unknowns": (out / "tables" / "unknowns.csv").is_file(),
        "constants": constants(config),
        "versions": facts.versions(results),
        "cells": facts.cell_links(results, relative),
        "shared": facts.shared_links(results, relative),
        "missing": results.missing if results.partial else [],
        "skipped": skipped,
        "partial": results.partial,
        "table_forms": TABLE_FORMS,
        "figure_forms": FIGURE_FORMS,
        "style": (files(__package__) / "index.css").read_text(encoding="utf-8"),
    }
    return fill("index.html.j2", **context)


def fill(template: str, **context: Any) -> str:
    """A template of this folder with its values."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("budgeted_lora", "reporting/page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "millions": facts.millions}
    environment.filters["dictvalues"] = lambda row: list(row.values())
    text = environment.get_template(template).render(context)
    return text.replace(" %", "\N{NO-BREAK SPACE}%")  # no line begins with a percent sign


def sections(
    results: Results, tables: list[Table], pictures: list[dict[str, str]], relative: str
) -> list[dict[str, Any]]:
    """The sections that fold: heading, findings, figures, and every table with the files of its cells."""
    titles = {CONTROLS: "Controls", BEYOND: "Beyond the paper"}
    folded = []
    for title in ("Controls", "Ablations", "Beyond the paper"):
        mine = [table for table in tables if titles.get(table.name, "Ablations") == title]
        if not mine:
            continue
        own = {"findings": None, "figures": []}
        if title == titles[BEYOND]:
            own["findings"] = findings(results, mine[0].frame)
            own["figures"] = [one for one in pictures if FIGURES[one["name"]].target == "own"]
        entries = [(table, facts.cell_links(results, relative, table.name)) for table in mine]
        folded.append({"id": title.lower().split()[0], "title": title, "entries": entries} | own)
    return folded


def picture(figure: Shown, out: Path) -> dict[str, str]:
    """A figure for the page. Its SVG is an image of its own (a data address), so that ids of two never meet."""
    data = base64.b64encode((out / "figures" / f"{figure.name}.svg").read_bytes()).decode("ascii")
    address = f"data:image/svg+xml;base64,{data}"
    return {"name": figure.name, "data": address} | texts()["figures"][figure.name]
