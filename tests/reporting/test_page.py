"""The page as a reader meets it: sections, tables that sort, the way from a number to its files; also in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from fixtures import chromium
from fixtures.chromium import Tab
from fixtures.made_table import made_table
from fixtures.synthetic_ablations import write_all

from budgeted_lora.config.scale import load_config
from budgeted_lora.reporting.contents import FIGURES, TABLES
from budgeted_lora.reporting.page.origins import LOGS, Origins, owner_of
from budgeted_lora.reporting.page.render import FIRST_FIGURE
from budgeted_lora.reporting.page.summary import sentences
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import Column, Table, write_table
from budgeted_lora.reporting.texts import texts
from budgeted_lora.reporting.uncertainty import Bootstrap
from budgeted_lora.stages.make_index import make_index

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "config" / "published.csv"
SHOWN = (
    "table1", "table2", "table2_differences", "table8", "speed", "figure2_values", "table9", "contamination",
    "published_perplexities", "controls", "my_sweep",
)  # fmt: skip
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 400"><rect width="600" height="400"/></svg>'
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Made-up results with the logs of every cell; compression printed nothing."""
    root = tmp_path_factory.mktemp("page") / "results" / "mini"
    write_all(root, seeds=(0, 1))
    opened = Results.open(root)
    for cell in opened.cells["cell"]:
        for kind, text in {"train": "done\n", "compression": ""}.items():
            path = root / LOGS[kind][0].format(name=cell, variant="default")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return opened


@pytest.fixture(scope="module")
def page(results: Results) -> Path:
    """The page of some tables, one figure and a few verdicts."""
    out = results.root.parents[1] / "reports" / "mini"
    for name in SHOWN:
        write_table(made_table(name, results, Published.open(PUBLISHED), Bootstrap(100)), out / "tables")
    (out / "figures").mkdir()
    for ending in ("svg", "png", "pdf"):
        (out / "figures" / f"{FIRST_FIGURE}.{ending}").write_text(DRAWING)
    statuses = ("differs", "within noise", "reproduced", "not judged at this scale")
    claim = {"claim": "A budget costs little; " * 4, "files": scored(results)[0]}
    rows = [claim | {"status": status} for status in statuses]
    pd.DataFrame(rows).assign(measured="−6.9 %; 12 %", tolerance="± 0.7", noise="windows").to_csv(out / "claims.csv")
    (out / "claims.md").write_text("")
    config = load_config(ROOT / "config" / "mini.yaml")
    make_index(results=results.root, published=PUBLISHED, config=config, out=out, standing=Standing())
    return out / "index.html"


def scored(results: Results) -> list[str]:
    return [path for one in sentences(results) for path in one.files]


class Markup(HTMLParser):
    """Tables by heading above them, panels by name with their links, and all names of a page.

    Attributes:
        tables: of each table its rows; of each row the attributes and text of its cells.
        buttons: for each row with a button the name of its panel, by table and row.
        panels: addresses of the links in each panel.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[dict, str]]]] = {}
        self.buttons: dict[tuple[str, int], str] = {}
        self.panels: dict[str, list[str]] = {}
        self.names: set[str] = set()
        self.sortable: list[bool] = []
        self.open, self.within, self.above = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        given = dict(pairs)
        self.names.add(given.get("id", ""))
        match tag:
            case "h2" | "h3" | "details" if "id" in given:
                self.above = given["id"]
            case "table":
                self.within = self.above
                self.tables[self.within] = []
                self.sortable.append("sortable" in given["class"].split())
            case "tr":
                self.tables[self.within].append([])
            case "td" | "th":
                self.tables[self.within][-1].append((given | {"tag": tag}, ""))
                self.open = tag
            case "button" if self.open:
                self.buttons[self.within, len(self.tables[self.within]) - 2] = given["popovertarget"]
            case "div" if "popover" in given:
                self.panels[given["id"]] = []
            case "a" if self.panels:
                self.panels[list(self.panels)[-1]].append(given["href"])

    def handle_endtag(self, tag: str) -> None:
        self.open = "" if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        if self.open:
            given, text = self.tables[self.within][-1].pop()
            self.tables[self.within][-1].append((given, text + data))


@pytest.fixture(scope="module")
def markup(page: Path) -> Markup:
    return Markup(page.read_text())


# Sections


def test_every_table_and_figure_answers_one_question() -> None:
    asked = texts()["questions"].values()
    tables = [name for question in asked for name in question.get("tables", ())]
    figures = [name for question in asked for name in question.get("figures", ())]
    assert sorted(tables) == sorted(TABLES)
    assert sorted([*figures, FIRST_FIGURE]) == sorted(FIGURES)
    assert all(question["title"].endswith("?") for question in asked)


def test_a_table_of_the_configuration_joins_the_ablations(page: Path) -> None:
    text = page.read_text()
    names = ("controls-section", "ablations-section", "my_sweep", "constants-section")
    places = [text.index(f'id="{name}"') for name in names]
    assert places == sorted(places)


# From a number to its files


def test_every_row_with_results_has_its_files(markup: Markup, page: Path, results: Results) -> None:
    opened = [key for key in markup.buttons if key[0] in SHOWN]
    rows = {name: len(markup.tables[name]) - 1 for name in SHOWN if name != "published_perplexities"}
    assert sorted(opened) == sorted((name, row) for name, count in rows.items() for row in range(count))
    assert set(markup.buttons.values()) <= set(markup.panels)
    assert {name for key, name in markup.buttons.items() if key[0] == "claims-section"}
    for links in markup.panels.values():
        files = [link for link in links if not link.startswith("#")]
        assert files
        assert all((page.parent / link).is_file() for link in files)
        assert {link[1:] for link in links if link.startswith("#")} <= markup.names
        cells = {link.split("/")[5] for link in files if "/cells/" in link}
        assert {f"#cell-{cell}" for cell in cells} == {link for link in links if link.startswith("#")}


def test_the_files_of_a_row_are_those_of_its_students(markup: Markup, results: Results) -> None:
    links = markup.panels[markup.buttons["table2", 0]]
    full = results.listed("table2").query("method == 'kd_full'")["cell"]
    for file in ("train.json", "compressed/default/perplexity.json", "compressed/default/compression.json"):
        assert {f"../../results/mini/cells/{cell}/{file}" for cell in full} <= set(links)
    assert {f"../../results/mini/logs/train_cell/{cell}.log" for cell in full} <= set(links)
    assert not any("kd-lora" in link or "compress_cell" in link for link in links)


def test_a_sentence_names_the_files_of_its_numbers(results: Results) -> None:
    first, second, third = sentences(results)
    budgeted = [path for path in first.files if "/budgeted-lora_0.13B_" in path and path.endswith("perplexity.json")]
    assert len(budgeted) == 4  # two budgets, two seeds
    assert any("/kd-lora_0.13B_" in path for path in first.files)
    assert any(path.split("/")[1].startswith("small") for path in second.files)
    assert any(path.startswith("speed/") for path in third.files)


def test_logs_are_where_the_rules_write_them() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    written = {re.sub(r"\{+\w+\}+", "*", log) for log in re.findall(r'f"\{results\}/(logs/[^"]+)"', rules)}
    wanted = {re.sub(r"\{\w+\}", "*", log) for logs in LOGS.values() for log in logs}
    assert wanted <= written


def test_what_a_file_belongs_to() -> None:
    assert owner_of("cells/a_s0-1/compressed/default/icl.json") == ("cells", "a_s0-1")
    assert owner_of("teachers/1B/perplexity.json") == ("teachers", "1B")
    assert owner_of("speed/F0.4_r16-ab.json") == ("speed", "F0.4_r16-ab")
    assert owner_of("data/manifest.json") == ("data", "")


def test_only_present_files_are_linked(results: Results) -> None:
    origins = Origins.of(results, results.root.parents[1] / "reports" / "mini")
    path = scored(results)[0]
    assert origins.panel(["cells/gone/train.json"]) == ""
    assert origins.panel([path, "cells/gone/train.json"]) == origins.panel([path])
    assert list(origins.panels) == [(path,)]
    assert (origins.home, origins.relative) == ("reports/mini", "../../results/mini")


def test_the_values_of_every_student_are_on_the_page(markup: Markup, results: Results) -> None:
    rows = {cells[0][1]: cells[4][1] for cells in markup.tables["files-section"][1:]}
    assert list(rows) == list(results.cells["cell"])
    cell = results.cells.query("method == 'kd_lora' and rank == 4").iloc[0]
    values = rows[cell["cell"]].replace("\N{NO-BREAK SPACE}", " ")
    assert "rank 4, alpha 8" in values
    assert f"seed {cell['seed']}" in values


# Tables that sort


def test_tables_are_marked_up_to_sort(markup: Markup) -> None:
    assert all(markup.sortable)
    assert set(SHOWN) < set(markup.tables)
    for name, (headings, *rows) in markup.tables.items():
        assert {(cell["tag"], cell["scope"]) for cell, _ in headings} == {("th", "col")}, name
        assert {len(row) for row in rows} == {len(headings)}, name


def test_a_number_is_sorted_by_its_value(markup: Markup, page: Path) -> None:
    frame = pd.read_csv(page.parent / "tables" / "table2.csv")
    headings, *rows = markup.tables["table2"]
    for column, name in (("PPL 0.13B", "ppl_0.13B"), ("Train time", "measured_train_time")):
        place = [text for _, text in headings].index(column)
        assert [float(row[place][0]["data-value"]) for row in rows] == pytest.approx(list(frame[name]), rel=1e-6)


def test_only_numbers_are_sorted_by_value() -> None:
    rows = pd.DataFrame({"x": [1.5, float("nan")], "word": ["a", "b"], "yes": [True, False], "files": [("a",), None]})
    columns = [Column("x", "X", 1), Column("word", "Word"), Column("yes", "Yes", text=lambda row: "")]
    table = Table.of("t", "T", rows=rows, columns=columns)
    assert table.numbers["X"].tolist() == pytest.approx([1.5, float("nan")], nan_ok=True)
    assert table.numbers[["Word", "Yes"]].isna().all(axis=None)
    assert table.files == [("a",), ()]
    assert list(table.frame) == ["x", "word", "yes"]


# In a browser

WIDER = """(width) => [...document.querySelectorAll("body *")].filter((one) => !one.parentElement.closest(".scroll")
  && one.getBoundingClientRect().right > width + 0.5).map((one) => one.outerHTML.slice(0, 120))"""
FAINT = """() => {
  const parts = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return {rgb: [r, g, b], a}; };
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.map(linear).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const back = parts(getComputedStyle(one).backgroundColor);
      if (back.a === 1) return back.rgb;
    }
    return [255, 255, 255];
  };
  const faint = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest("script, style")) continue;
    const [a, b] = [light(parts(getComputedStyle(one).color).rgb), light(behind(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    seen += 1;
    if (ratio < 4.5) faint.add(`${ratio.toFixed(2)} ${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`);
  }
  return {seen, faint: [...faint]};
}"""
OPEN_ALL = """document.querySelectorAll("details").forEach((one) => { one.open = true; });
  document.querySelector(".panel").showPopover()"""
TABLE2 = "#table2 + .scroll"
HEADING = f"{TABLE2} th:nth-child(2)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = chromium.found()
    if program is None:
        pytest.skip("no Chromium; Debian's package chromium is enough")
    with chromium.running(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def each(tab: Tab, selector: str, what: str) -> list:
    """One value, a script of `one`, of every element that a selector names."""
    return tab.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => {what})")


def shown_order(tab: Tab) -> list[float]:
    """The second column of Table 2 from top to bottom."""
    return each(tab, f"{TABLE2} tbody td:nth-child(2)", "Number(one.dataset.value)")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_and_can_be_read_without_a_complaint_or_a_request(tab: Tab, page: Path, width: int, dark: bool) -> None:
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(page, width=width, dark=dark)
    assert tab.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    tab.run(OPEN_ALL)
    assert tab.run(f"({WIDER})({width})") == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    found = tab.run(f"({FAINT})()")
    assert found["seen"] > 500
    assert found["faint"] == []
    assert all(each(tab, "img", "one.naturalWidth > 0"))
    assert tab.complaints == []
    assert {address for address in tab.requests if not address.startswith("data:")} == {page.as_uri()}


def test_a_click_on_a_heading_sorts_and_a_third_brings_the_first_order_back(tab: Tab, page: Path) -> None:
    tab.open(page)
    first, orders = shown_order(tab), []
    assert first != sorted(first, reverse=True)
    for _ in range(3):
        tab.click(f"{HEADING} button")
        orders.append((each(tab, HEADING, "one.ariaSort"), shown_order(tab)))
    assert orders == [
        (["ascending"], sorted(first)), (["descending"], sorted(first, reverse=True)), (["none"], first)
    ]  # fmt: skip


def test_a_heading_sorts_from_the_keyboard(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.run(f'document.querySelector("{HEADING} button").focus()')
    for _ in range(2):
        tab.press("Enter", text="\r")
    assert each(tab, HEADING, "one.ariaSort") == ["descending"]
    assert shown_order(tab) == sorted(shown_order(tab), reverse=True)


def test_numbers_sort_as_numbers_and_what_is_missing_comes_last(tab: Tab, page: Path) -> None:
    tab.open(page)
    cells = ["1,000", "9 / 0 / 33", "–", "−2.5 %", "word", "30 ± 1", "[+0.5, +1]", ""]
    rows = "".join(f"<tr><td>{text}</td></tr>" for text in cells)
    tab.run(f"document.querySelector('{TABLE2} tbody').innerHTML = {json.dumps(rows)}")
    up = ["−2.5 %", "[+0.5, +1]", "9 / 0 / 33", "30 ± 1", "1,000", "word", "–", ""]
    down = ["word", "1,000", "30 ± 1", "9 / 0 / 33", "[+0.5, +1]", "−2.5 %", "–", ""]
    for order in (up, down):
        tab.click(f"{TABLE2} th button")
        assert each(tab, f"{TABLE2} td", "one.textContent") == order


def test_a_click_on_a_number_shows_its_files_and_leads_to_the_values(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.click(f"{TABLE2} tbody td:nth-child(2)")
    links = each(tab, ".panel:popover-open a", "one.href")
    assert any(link.endswith("perplexity.json") for link in links)
    assert any(link.endswith(".log") for link in links)
    tab.click(".panel:popover-open a[href^='#cell-']")
    assert each(tab, ".panel:popover-open", "one.id") == []
    place = "[one.getBoundingClientRect().top, one.getBoundingClientRect().bottom, innerHeight]"
    [[top, bottom, height]] = each(tab, "tr:target", place)
    assert 0 <= top < bottom <= height


def test_a_copy_of_the_page_alone_says_so(tab: Tab, page: Path, tmp_path: Path) -> None:
    tab.open(page)
    assert each(tab, ".away", "one.hidden") == [True]
    copied = Path(shutil.copy(page, tmp_path / "page.html"))
    tab.complaints.clear()
    tab.open(copied)
    assert each(tab, ".away", "one.hidden") == [False]
    assert set(each(tab, ".files a, .link a", "getComputedStyle(one).pointerEvents")) == {"none"}
    assert tab.complaints == []


def test_it_prints_whole_and_on_white(tab: Tab, page: Path, tmp_path: Path) -> None:
    tab.open(page, width=1030, dark=True, media="print")  # A4 across, less its margins
    assert each(tab, "body", "getComputedStyle(one).backgroundColor") == ["rgb(255, 255, 255)"]
    assert set(each(tab, "nav, .origin", "getComputedStyle(one).display")) == {"none"}
    assert set(each(tab, "th button", "getComputedStyle(one).display")) == {"contents"}  # so headings are repeated
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert each(tab, ".fold", "one.open") == [True]
    beyond = each(tab, ".scroll", "[one.scrollWidth - one.clientWidth, one.scrollHeight - one.clientHeight]")
    assert len(beyond) > len(SHOWN)
    assert all(width <= 1 and height <= 1 for width, height in beyond)
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert each(tab, ".fold", "one.open") == [False]
    tab.run("addEventListener('beforeprint', () => { document.title = 'printed'; })")
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    assert tab.run("document.title") == "printed"
