"""The page: one self-contained HTML file, figures inside, made for a phone as well as for a desk."""

import base64
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from budgeted_lora.config.scale import Config
from budgeted_lora.reporting.claims.table import claims_section
from budgeted_lora.reporting.contents import OWN_FIGURES
from budgeted_lora.reporting.contents_tables import CONTROLS, TABLES
from budgeted_lora.reporting.page import facts
from budgeted_lora.reporting.page.beyond import findings
from budgeted_lora.reporting.page.says import can_say
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table
from budgeted_lora.reporting.tables.beyond import BEYOND

TABLE_FORMS, FIGURE_FORMS = ("csv", "md", "tex"), ("png", "svg", "pdf")


def render(
    results: Results,
    *,
    tables: list[Table],
    figures: list[dict[str, str]],
    out: Path,
    config: Config | None,
    skipped: list[str],
    absent: list[str],
) -> str:
    """The page's text.

    Args:
        tables: those to show; table2 goes to the first screen, controls and ablations to sections that fold.
        figures: name, title and caption of those that lie in out/figures as SVG.
        out: the folder the page will lie in; links are relative to it.
        config: the scale's settings, for the list of constants; left out without.
        skipped: what could not be made in a partial report, one sentence each.
        absent: ablations that are not there, one sentence each.
    """
    relative = Path(os.path.relpath(results.root.resolve(), out.resolve())).as_posix()
    summary, can, cannot = can_say(results.scale, results.standing)
    drawn = [figure | {"data": inline(out / "figures" / f"{figure['name']}.svg")} for figure in figures]
    context: dict[str, Any] = {
        "scale": results.scale,
        "facts": facts.run_facts(results),
        "summary": summary,
        "can": can,
        "cannot": cannot,
        "main": next((table for table in tables if table.name == "table2"), None),
        "tables": [table for table in tables if table.name in TABLES and table.name not in ("table2", CONTROLS)],
        "folded": [folded(results, title, found, drawn, relative) for title, found in sections(tables)],
        "absent": absent,
        "figures": [figure for figure in drawn if figure["name"] not in OWN_FIGURES],
        "claims": claims_section(out, relative),
        "apart": results.standing.apart,
        "slips": facts.SLIPS,
        "unknowns": (out / "tables" / "unknowns.csv").is_file(),
        "constants": facts.constants(config) if config else [],
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
    loader = jinja2.PackageLoader("budgeted_lora", "reporting/page")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["dictvalues"] = lambda row: list(row.values())
    page = environment.get_template("index.html.j2").render(context)
    return page.replace(" %", "\N{NO-BREAK SPACE}%")  # no line begins with a percent sign


def sections(tables: list[Table]) -> list[tuple[str, list[Table]]]:
    """The tables that stand in sections of their own, by heading; those without a table are left out."""
    controls = [table for table in tables if table.name == CONTROLS]
    beyond = [table for table in tables if table.name == BEYOND]
    others = [table for table in tables if table.name not in (*TABLES, BEYOND)]
    found = {"Controls": controls, "Ablations": others, "Beyond the paper": beyond}
    return [(title, tables) for title, tables in found.items() if tables]


def folded(
    results: Results, title: str, tables: list[Table], figures: list[dict[str, str]], relative: str
) -> dict[str, Any]:
    """A section of the page: its heading, findings, figures, and every table with the files of its cells."""
    entries = [(table, facts.cell_links(results, relative, table.name)) for table in tables]
    section = {"id": title.lower().split()[0], "title": title, "entries": entries, "figures": [], "findings": []}
    for table in tables:
        if table.name == BEYOND:
            own = [figure for figure in figures if figure["name"] in OWN_FIGURES]
            section |= {"figures": own, "findings": findings(results, table.frame)}
    return section


def inline(path: Path) -> str:
    """An SVG file as a data address: an image of its own, so that ids of two figures never meet."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
