"""The page: one self-contained HTML file, figures inside, made for a phone as well as for a desk."""

import base64
from importlib.resources import files
from math import isnan, nan
from pathlib import Path
from typing import Any

import jinja2

from budgeted_lora.config.scale import Config
from budgeted_lora.reporting.claims.table import claims_section
from budgeted_lora.reporting.contents import BEYOND, FIGURES, Shown
from budgeted_lora.reporting.page import facts
from budgeted_lora.reporting.page.beyond import findings
from budgeted_lora.reporting.page.origins import Origins
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
        tables: those to show, each in the section of its question.
        figures: those that lie in out/figures as SVG.
        out: the folder the page will lie in; links are relative to it.
        config: the scale, for the list of constants.
        skipped: what could not be made in a partial report, one sentence each.
        absent: ablations that were not made, one sentence each.
    """
    origins = Origins.of(results, out)
    context: dict[str, Any] = {
        "scale": results.scale,
        "summary": sentences(results),
        "first": picture(FIGURES[FIRST_FIGURE], out) if FIRST_FIGURE in {one.name for one in figures} else None,
        "teachers": results.teachers().to_dict("records"),
        "manifest": results.json("data/manifest.json"),
        "students": facts.students_sentence(results),
        "machines": facts.machines(results),
        "time": facts.time_sentence(results),
        "standing": results.standing,
        "apart": texts()["setups"][results.standing.setup]["apart"],
        "absent": absent,
        "findings": next((findings(results, table.frame) for table in tables if table.name == BEYOND), None),
        "claims": claims_section(out),
        "unknowns": (out / "tables" / "unknowns.csv").is_file(),
        "constants": constants(config),
        "versions": facts.versions(results),
        "origins": origins,
        "missing": results.missing if results.partial else [],
        "skipped": skipped,
        "partial": results.partial,
        "table_forms": TABLE_FORMS,
        "figure_forms": FIGURE_FORMS,
        "style": own_file("index.css"),
        "script": own_file("index.js"),
    }
    context["questions"] = questions(tables, figures, out, always=parts(context))
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
    environment.filters |= {"dictvalues": lambda row: list(row.values()), "sort_value": sort_value}
    text = environment.get_template(template).render(context)
    return text.replace(" %", "\N{NO-BREAK SPACE}%")  # no line begins with a percent sign


def sort_value(table: Table, row: int, column: int) -> str:
    """The number by which a cell of a table is sorted; empty where its text is sorted by."""
    value = table.numbers.iat[row, column] if table.numbers.size else nan
    return "" if isnan(value) else f"{value:.8g}"


def own_file(name: str) -> str:
    """A file of this folder that stands in the page as it is."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def parts(context: dict[str, Any]) -> set[str]:
    """Questions that are answered by more than tables and figures."""
    wanted = {"claims": context["claims"], "ablations": context["absent"], "constants": context["constants"]}
    wanted["missing"] = context["partial"]
    return {"run", "say", "slips", "provenance", "files", *(name for name, given in wanted.items() if given)}


def questions(tables: list[Table], figures: list[Shown], out: Path, *, always: set[str]) -> dict[str, Any]:
    """The questions that the page answers, by name: title, short title, tables and figures.

    Args:
        always: those that are shown without a table or figure too.
    """
    asked = texts()["questions"]
    placed = {name for question in asked.values() for name in question.get("tables", ())}
    shown = {}
    for name, question in asked.items():
        named = [table for table in tables if table.name in question.get("tables", ())]
        named.sort(key=lambda table: question["tables"].index(table.name))
        if name == "ablations":
            named += [table for table in tables if table.name not in placed]
        drawn = [picture(figure, out) for figure in figures if figure.name in question.get("figures", ())]
        if named or drawn or name in always:
            shown[name] = question | {"tables": named, "figures": drawn}
    return shown


def picture(figure: Shown, out: Path) -> dict[str, str]:
    """A figure for the page. Its SVG is an image of its own (a data address), so that ids of two never meet."""
    data = base64.b64encode((out / "figures" / f"{figure.name}.svg").read_bytes()).decode("ascii")
    address = f"data:image/svg+xml;base64,{data}"
    return {"name": figure.name, "data": address} | texts()["figures"][figure.name]
