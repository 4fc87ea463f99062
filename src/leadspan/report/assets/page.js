// What a reader can do: choose what is drawn, hide policies, sort tables, print; the figures follow width and theme.
const data = JSON.parse(document.getElementById("chart-data").textContent);
const root = document.documentElement;
const PRINT_WIDTH = 660;
const CONFIG = { displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
const choice = {
  values: {},
  get: (name, usual) => choice.values[name] ?? document.querySelector(`.choices[data-name="${name}"] input:checked`)?.value ?? usual,
};

// plotly.js is a script in the page, gzipped and in base64: a quarter of its size, and no load.
async function loadPlotly() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (character) => character.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
}

function draw(node, width = node.parentElement.clientWidth) {
  if (!("Plotly" in window)) return undefined;
  const { traces, layout } = FIGURES[node.dataset.figure](node.dataset.index, width);
  return Plotly.react(node, traces, layout, CONFIG);
}

const drawAll = (width) => document.querySelectorAll("[data-figure]").forEach((node) => draw(node, width));

const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();

function sortBy(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const isEmpty = (row) => ["", "–"].includes(valueOf(row, column));
  const rows = [...table.tBodies[0].rows];
  const isNumeric = rows.every((row) => isEmpty(row) || Number.isFinite(Number(valueOf(row, column))));
  const compare = (a, b) => (isNumeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  rows.sort((a, b) => isEmpty(a) - isEmpty(b) || sign * compare(valueOf(a, column), valueOf(b, column)));
  table.tBodies[0].append(...rows);
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
}

// A narrow page shows a row as a card; the names of its columns are in the file once.
for (const table of document.querySelectorAll(".scroll table")) {
  const names = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, column) => (cell.dataset.name = names[column]));
}
for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
for (const choices of document.querySelectorAll(".choices")) {
  choices.addEventListener("change", (event) => {
    choice.values[choices.dataset.name] = event.target.value;
    for (const id of choices.dataset.draws.split(" ")) draw(document.getElementById(id));
  });
}
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const { every } = button.dataset;
    const press = (node, isShown) => node.setAttribute("aria-pressed", String(isShown));
    if (every) button.closest(".legend").querySelectorAll("[data-policy]").forEach((node) => press(node, every === "true"));
    else press(button, button.getAttribute("aria-pressed") === "false");
    drawAll();
  });
}
await loadPlotly();
let drawnWidth;
new ResizeObserver(([entry]) => {
  const width = Math.floor(entry.contentRect.width);
  if (width === drawnWidth || "print" in root.dataset) return;
  drawnWidth = width;
  requestAnimationFrame(() => drawAll());
}).observe(document.querySelector("main"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
addEventListener("beforeprint", () => {
  root.dataset.print = "";
  for (const details of document.querySelectorAll("details.in-print")) details.open = true;
  drawAll(PRINT_WIDTH);
});
addEventListener("afterprint", () => {
  delete root.dataset.print;
  drawAll();
});
