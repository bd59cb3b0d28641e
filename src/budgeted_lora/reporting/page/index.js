// Tables sort by their headings, and a number opens the list of its files. Without this script the page lacks both,
// and nothing else; there is no library, and nothing is fetched.
"use strict";

const NUMBER = /^\[?([+−-]?[\d,]*\.?\d+)/;

// What a cell is sorted by: the number behind its text, else the number its text begins with, else the text.
function keyOf(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = (cell.firstChild?.textContent ?? "").trim();
  const number = NUMBER.exec(text);
  return number ? Number(number[1].replaceAll(",", "").replace("−", "-")) : text;
}

// Numbers before words; a dash, which stands for a missing value, and an empty cell come last in either direction.
function compare(a, b, direction) {
  const missing = (key) => key === "" || key === "–";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a !== typeof b) return direction * (typeof a === "number" ? -1 : 1);
  return direction * (typeof a === "number" ? a - b : a.localeCompare(b));
}

function sortBy(table, heading) {
  const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort];
  for (const other of heading.parentNode.cells) other.ariaSort = "none";
  heading.ariaSort = next;
  const rows = [...table.tBodies[0].rows];
  if (next === "none") {
    rows.sort((a, b) => a.dataset.place - b.dataset.place);
  } else {
    const keys = new Map(rows.map((row) => [row, keyOf(row.cells[heading.cellIndex])]));
    rows.sort((a, b) => compare(keys.get(a), keys.get(b), next === "ascending" ? 1 : -1));
  }
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
  for (const heading of table.tHead.rows[0].cells) {
    if (heading.classList.contains("links")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.ariaSort = "none";
    button.addEventListener("click", () => sortBy(table, heading));
  }
}

document.addEventListener("click", (event) => {
  const inPanel = event.target.closest(".panel a[href^='#']");
  if (inPanel) inPanel.closest(".panel").hidePopover?.();
  if (event.target.closest("a, button, summary") || getSelection().toString()) return;
  event.target.closest(".sortable td")?.parentNode.querySelector("button.origin")?.click();
});

// What scrolls sideways has a shadow at its right edge, until its end is in sight.
const scrolling = [...document.querySelectorAll(".scroll")];
const cue = (box) => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
for (const box of scrolling) box.addEventListener("scroll", () => cue(box), { passive: true });
const cues = () => scrolling.forEach(cue);
addEventListener("resize", cues);
document.addEventListener("toggle", cues, true);
cues();

// A page that was copied alone says that its links lead nowhere.
const { home } = document.documentElement.dataset;
if (!decodeURI(location.pathname).replace(/[^/]*$/, "").endsWith(home ? `/${home}/` : "/")) {
  document.documentElement.classList.add("alone");
  document.querySelector(".away").hidden = false;
}

// Paper has no folds: those that are closed are opened for the printer.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.fold:not([open])")];
  for (const fold of opened) fold.open = true;
});
addEventListener("afterprint", () => { for (const fold of opened) fold.open = false; });
