// Draws the figures of the report from the JSON in the page, in the colours of the page's style sheet.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const root = document.documentElement;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross"];
  const PRINT_WIDTH = 660;
  const chosenCost = {};

  const css = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const escapeHtml = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colourOf = (number) =>
    css(number === null ? "muted" : number === 0 ? "ink" : `policy-${((number - 1) % data.num_colours) + 1}`);
  const symbolOf = (number) => SYMBOLS[number ? Math.floor((number - 1) / data.num_colours) % SYMBOLS.length : 0];
  const range = ([value, low, high]) => `${value.toFixed(0)} [${low.toFixed(0)}, ${high.toFixed(0)}] %`;
  const errorBar = (intervals) => ({
    type: "data",
    array: intervals.map(([value, , high]) => high - value),
    arrayminus: intervals.map(([value, low]) => value - low),
  });

  const box = (x, y, halfWidth, halfHeight) => ({ l: x - halfWidth, r: x + halfWidth, t: y - halfHeight, b: y + halfHeight });
  const overlaps = (a, b) => a.l < b.r && b.l < a.r && a.t < b.b && b.t < a.b;
  const needsLeader = (dy) => Math.abs(dy) > 20;

  function wrap(label, width) {
    const lines = [""];
    for (const word of label.split(" ").flatMap((part) => part.match(new RegExp(`.{1,${width}}`, "g")) ?? [])) {
      const joined = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
      if (joined.length > width && lines.at(-1)) lines.push(word);
      else lines[lines.length - 1] = joined;
    }
    return lines.map(escapeHtml).join("<br>");
  }

  function textWidth(text) {
    textWidth.pen ??= document.createElement("canvas").getContext("2d");
    textWidth.pen.font = `13px ${getComputedStyle(document.body).fontFamily}`;
    return textWidth.pen.measureText(text).width;
  }

  function baseLayout(width, height) {
    const axis = {
      gridcolor: css("line"), linecolor: css("line"), zerolinecolor: css("line"), zeroline: false,
      tickfont: { color: css("muted"), size: 12 }, title: { font: { size: 13, color: css("muted") }, standoff: 12 },
      fixedrange: width < 560,
    };
    return {
      width, height, autosize: false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("ink") },
      margin: { l: 56, r: 16, t: 12, b: 56 },
      xaxis: structuredClone(axis), yaxis: structuredClone(axis),
      hoverlabel: { bgcolor: css("page"), bordercolor: css("line"), font: { color: css("ink") }, align: "left" },
      showlegend: false,
      dragmode: width < 560 ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("muted"), activecolor: css("ink") },
    };
  }

  function frontier(task, index, width) {
    const cost = chosenCost[index] ?? "seconds";
    const rows = task.rows.filter((row) => cost in row.costs);
    const lines = task.rows.filter((row) => row.role !== "student");
    const layout = baseLayout(width, width < 560 ? 380 : 460);
    const highest = Math.max(...rows.map((row) => row.accuracy[2]), ...lines.map((row) => row.accuracy[0]), 1);
    layout.xaxis.title.text = task.axes[cost];
    layout.xaxis.range = [0, 1.15 * Math.max(...rows.map((row) => row.costs[cost]))];
    layout.yaxis.title.text = "Strict accuracy (%)";
    layout.yaxis.range = [0, 1.08 * highest];
    layout.shapes = lines.map((row) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: row.accuracy[0], y1: row.accuracy[0], layer: "below",
      line: { color: css("muted"), width: 1.25, dash: row.role === "teacher" ? "dash" : "dot" },
    }));
    const traces = rows.map((row) => ({
      type: "scatter", mode: "markers", name: escapeHtml(row.label), x: [row.costs[cost]], y: [row.accuracy[0]],
      error_y: { ...errorBar([row.accuracy]), color: colourOf(row.colour), thickness: 1.5, width: 4 },
      marker: { color: colourOf(row.colour), symbol: symbolOf(row.colour), size: 11, line: { color: css("page"), width: 1.5 } },
      hovertemplate: [
        `<b>${escapeHtml(row.label)}</b>`, `accuracy ${range(row.accuracy)}`, `of full’s accuracy: ${escapeHtml(row.kept)}`,
        `terminated ${range(row.termination)}`, `${row.cost_texts[cost]}<extra></extra>`,
      ].join("<br>"),
    }));
    const placed = placeLabels(layout, rows.map((row) => ({ ...row, x: row.costs[cost] })), lines);
    layout.annotations = placed.annotations;
    document.getElementById(`legend-frontier-${index}`).hidden = placed.complete;
    return { traces, layout };
  }

  function frameOf({ width, height, margin, xaxis, yaxis }) {
    const frame = { l: margin.l, r: width - margin.r, t: margin.t, b: height - margin.b };
    frame.toX = (x) => frame.l + (x / xaxis.range[1]) * (frame.r - frame.l);
    frame.toY = (y) => frame.b - (y / yaxis.range[1]) * (frame.b - frame.t);
    return frame;
  }

  // The first offset at which a label stays inside the frame and neither it nor its leader touches what is blocked.
  function freeSpot(frame, x, y, halfWidth, offsets, blocked) {
    return offsets.find(([dx, dy]) => {
      const at = box(x + dx, y + dy, halfWidth, 9);
      const leader = needsLeader(dy) ? [0.4, 0.6, 0.8].map((part) => box(x + part * dx, y + part * dy, 1, 1)) : [];
      const isInside = at.l >= frame.l && at.r <= frame.r && at.t >= frame.t && at.b <= frame.b;
      return isInside && ![at, ...leader].some((part) => blocked.some((other) => overlaps(part, other)));
    });
  }

  function annotation(text, [x, y], [dx, dy], colour) {
    const leader = { showarrow: true, ax: dx, ay: dy, arrowhead: 0, arrowwidth: 1, arrowcolor: css("muted"), standoff: 7 };
    const place = needsLeader(dy) ? leader : { showarrow: false, xshift: dx, yshift: -dy };
    return { text: escapeHtml(text), x, y, xanchor: "center", yanchor: "middle", font: { size: 13, color: colour }, bgcolor: css("page"), borderpad: 0, ...place };
  }

  // Puts each label where it covers no point, error bar or other label; for one that fits nowhere the legend is shown.
  function placeLabels(layout, points, lines) {
    const frame = frameOf(layout);
    const taken = points.flatMap(({ x, accuracy: [value, low, high] }) => [
      box(frame.toX(x), frame.toY(value), 9, 9),
      { l: frame.toX(x) - 5, r: frame.toX(x) + 5, t: frame.toY(high), b: frame.toY(low) },
    ]);
    const ruled = lines.map((row) => ({ l: frame.l, r: frame.r, t: frame.toY(row.accuracy[0]) - 2, b: frame.toY(row.accuracy[0]) + 2 }));
    const annotations = [];
    let complete = true;
    const put = (text, anchor, offsetsFor, colour) => {
      const [x, y, halfWidth] = [frame.toX(anchor[0]), frame.toY(anchor[1]), textWidth(text) / 2 + 4];
      const search = (blocked) => freeSpot(frame, x, y, halfWidth, offsetsFor(halfWidth), blocked);
      const spot = search([...taken, ...ruled]) ?? search(taken);
      if (!spot) return (complete = false);
      taken.push(box(x + spot[0], y + spot[1], halfWidth, 9));
      annotations.push(annotation(text, anchor, spot, colour));
    };
    const ends = (half) => [-11, 11].flatMap((dy) => [[half, dy], [frame.r - frame.l - half, dy]]);
    const around = (half) => [14, 30, 46].flatMap((gap) => [
      [half + 10, 0], [-half - 10, 0], [half + 6, -gap], [half + 6, gap], [-half - 6, -gap], [-half - 6, gap], [0, -gap - 4], [0, gap + 4],
    ]);
    for (const row of lines) put(`${row.label} ${row.accuracy[0].toFixed(0)} %`, [0, row.accuracy[0]], ends, css("muted"));
    for (const point of [...points].sort((a, b) => b.accuracy[0] - a.accuracy[0])) {
      put(point.label, [point.x, point.accuracy[0]], around, css("ink"));
    }
    return { annotations, complete };
  }

  function rowAxis(layout, labels, width, rowHeight) {
    const wrapped = labels.map((label) => wrap(label, width < 560 ? 14 : 26));
    const numLines = Math.max(...wrapped.map((label) => label.split("<br>").length));
    layout.height += labels.length * Math.max(rowHeight, 17 * numLines + 6);
    layout.yaxis = {
      ...layout.yaxis, tickvals: labels.map((_, row) => row), ticktext: wrapped, range: [labels.length - 0.5, -0.5],
      tickfont: { color: css("ink"), size: 13 }, showgrid: false, automargin: true, ticklen: 8, tickcolor: "rgba(0,0,0,0)", ticks: "outside",
    };
    layout.margin = { l: 8, r: 20, t: 8, b: 52 };
  }

  function rates(task, index, width) {
    const layout = baseLayout(width, 68);
    rowAxis(layout, task.rows.map((row) => row.label), width, 56);
    layout.xaxis = { ...layout.xaxis, range: [0, 104], dtick: 20 };
    layout.xaxis.title.text = "Share of samples (%)";
    layout.barmode = "group";
    layout.bargap = 0.34;
    layout.bargroupgap = 0.08;
    const colours = task.rows.map((row) => colourOf(row.colour));
    const bars = (name, key, pattern) => ({
      type: "bar", orientation: "h", name, y: task.rows.map((_, row) => row), x: task.rows.map((row) => row[key][0]),
      error_x: { ...errorBar(task.rows.map((row) => row[key])), color: css("ink"), thickness: 1.25, width: 3 },
      marker: { color: colours, opacity: 0.7, line: { color: colours, width: 1 }, pattern: pattern && { ...pattern, fgcolor: colours, bgcolor: css("page") } },
      hovertemplate: task.rows.map((row) => `<b>${escapeHtml(row.label)}</b><br>${name} ${range(row[key])}<extra></extra>`),
    });
    const traces = [
      bars("accuracy", "accuracy"),
      bars("terminated", "termination", { shape: "/", size: 6, solidity: 0.25, fillmode: "replace" }),
    ];
    return { traces, layout };
  }

  function flops(chart, index, width) {
    const layout = baseLayout(width, 68);
    rowAxis(layout, chart.labels, width, 40);
    layout.xaxis.title.text = `Training operations (${chart.unit})`;
    layout.xaxis.rangemode = "tozero";
    layout.barmode = "stack";
    layout.bargap = 0.4;
    const traces = chart.parts.map((part) => ({
      type: "bar", orientation: "h", name: part.title, y: chart.labels.map((_, row) => row), x: part.values,
      marker: { color: css(part.name.replaceAll("_", "-")), line: { color: css("page"), width: 1 } },
      hovertemplate: chart.labels.map((label) => `<b>${escapeHtml(label)}</b><br>${part.title} %{x:.3~g} ${chart.unit}<extra></extra>`),
    }));
    return { traces, layout };
  }

  function validation(curves, index, width) {
    const layout = baseLayout(width, width < 560 ? 300 : 380);
    layout.xaxis.title.text = "Optimiser steps";
    layout.xaxis.rangemode = "tozero";
    layout.yaxis.title.text = "Validation loss (nat per token)";
    layout.hovermode = "closest";
    const seen = {};
    const traces = curves.map((curve) => {
      const repeat = (seen[curve.colour] = (seen[curve.colour] ?? -1) + 1);
      return {
        type: "scatter", mode: "lines+markers", name: escapeHtml(curve.label), x: curve.steps, y: curve.losses,
        line: { color: colourOf(curve.colour), width: 2, dash: ["solid", "dash", "dot", "dashdot"][repeat % 4] },
        marker: { size: 6, symbol: symbolOf(curve.colour) },
        hovertemplate: `<b>${escapeHtml(curve.label)}</b><br>step %{x}<br>loss %{y:.4~g}<extra></extra>`,
      };
    });
    return { traces, layout };
  }

  const figures = {
    frontier: (index, width) => frontier(data.tasks[index], index, width),
    rates: (index, width) => rates(data.tasks[index], index, width),
    flops: (index, width) => flops(data.flops, index, width),
    validation: (index, width) => validation(data.validation, index, width),
  };
  const config = { displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  function draw(node, width = node.parentElement.clientWidth) {
    const { traces, layout } = figures[node.dataset.figure](Number(node.dataset.index), width);
    return Plotly.react(node, traces, layout, config);
  }

  const drawAll = (width) => document.querySelectorAll("[data-figure]").forEach((node) => draw(node, width));

  function sortBy(header) {
    const table = header.closest("table");
    const column = header.cellIndex;
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      return sign * (column === 0 ? value(a).localeCompare(value(b), undefined, { numeric: true }) : value(a) - value(b));
    });
    table.tBodies[0].append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
  }

  for (const button of document.querySelectorAll(".sortable button")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }
  for (const choices of document.querySelectorAll(".choices")) {
    choices.addEventListener("change", (event) => {
      chosenCost[choices.dataset.task] = event.target.value;
      draw(document.getElementById(`frontier-${choices.dataset.task}`));
    });
  }
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
})();
