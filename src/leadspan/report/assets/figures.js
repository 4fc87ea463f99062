// What each figure looks like: from the JSON in the page to traces and layout, in the colours of the style sheet.
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const NARROW = 560;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const colourOf = (policy) => css(data.styles[policy]?.colour ?? "muted");
const symbolOf = (policy) => SYMBOLS[data.styles[policy]?.marker ?? 0];
const shownIn = (group) => {
  const hidden = new Set([...document.querySelectorAll(`.legend[data-group="${group}"] [aria-pressed=false]`)].map((node) => node.dataset.policy));
  return ({ policy }) => !hidden.has(policy);
};
const errorBar = (intervals) => ({
  type: "data",
  array: intervals.map(([value, , high]) => high - value),
  arrayminus: intervals.map(([value, low]) => value - low),
});

function baseLayout(width, height) {
  const axis = {
    gridcolor: css("line"), linecolor: css("line"), zerolinecolor: css("line"), zeroline: false,
    tickfont: { color: css("muted"), size: 12 }, title: { font: { size: 13, color: css("muted") }, standoff: 12 },
    fixedrange: width < NARROW,
  };
  return {
    width, height, autosize: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("ink") },
    margin: { l: 56, r: 16, t: 12, b: 56 },
    xaxis: structuredClone(axis), yaxis: structuredClone(axis),
    hoverlabel: { bgcolor: css("page"), bordercolor: css("line"), font: { color: css("ink") }, align: "left" },
    showlegend: false,
    dragmode: width < NARROW ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("muted"), activecolor: css("ink") },
  };
}

// Policies that no cheaper or equally dear one beats, by cost; controls are no policies.
function undominated(points) {
  const sorted = points.filter(({ row }) => !row.is_control).sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return sorted.filter(({ y }) => y > best && ((best = y), true));
}

function pointsOf(task, isShown, cost, quality) {
  return task.rows.filter((row) => isShown(row) && cost in row.costs && row[quality]).map((row) => {
    const [y, low, high] = row[quality];
    const [x, sd] = [row.costs[cost], row.cost_sds[cost] ?? 0];
    const runs = row.runs.filter((run) => run[quality] && cost in run.costs);
    return { row, label: row.label, x, y, low, high, sd, left: x - sd, right: x + sd, marks: runs.map((run) => [run.costs[cost], run[quality][0]]), runs };
  });
}

function frontier(task, index, width) {
  const cost = choice.get(`cost-${index}`, "seconds");
  const quality = choice.get(`quality-${index}`, "accuracy");
  const isShown = shownIn(`task-${index}`);
  const points = pointsOf(task, isShown, cost, quality);
  const lines = quality === "retention" ? [] : task.rows.filter((row) => isShown(row) && row.role !== "student")
    .map((row) => ({ row, y: row[quality][0], label: `${row.label} ${row.texts[quality].split(" ")[0]} %` }));
  const layout = baseLayout(width, width < NARROW ? 380 : 460);
  const reach = (name) => points.flatMap((point) => [point[name], ...point.marks.map((mark) => mark[name === "high" ? 1 : 0])]);
  layout.xaxis.title.text = task.axes[cost];
  layout.xaxis.range = [0, 1.15 * (Math.max(0, ...reach("right")) || 1)];
  layout.yaxis.title.text = data.titles[quality];
  layout.yaxis.range = [0, 1.1 * Math.max(...reach("high"), ...lines.map(({ y }) => y), 1)];
  layout.shapes = lines.map(({ row, y }) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below",
    line: { color: css("muted"), width: 1.25, dash: row.role === "teacher" ? "dash" : "dot" },
  }));
  const best = undominated(points);
  const traces = [
    { type: "scatter", mode: "lines", x: best.map(({ x }) => x), y: best.map(({ y }) => y), hoverinfo: "skip", line: { color: css("muted"), width: 1, dash: "dot" }, opacity: 0.7 },
    ...points.flatMap((point) => [runsTrace(point), pointTrace(point, cost)]),
  ];
  layout.annotations = placeLabels(layout, points, lines, best);
  return { traces, layout };
}

function runsTrace({ row, marks, runs }) {
  return {
    type: "scatter", mode: "markers", x: marks.map(([x]) => x), y: marks.map(([, y]) => y),
    marker: { color: colourOf(row.policy), size: 5, opacity: 0.45 },
    hovertemplate: runs.map((run) => `${escapeHtml(run.label)}<br>accuracy ${run.texts.accuracy}<extra></extra>`),
  };
}

function pointTrace({ row, x, y, low, high, sd }, cost) {
  const colour = colourOf(row.policy);
  return {
    type: "scatter", mode: "markers", name: escapeHtml(row.label), x: [x], y: [y], cliponaxis: false,
    error_y: { ...errorBar([[y, low, high]]), color: colour, thickness: 1.5, width: 4 },
    error_x: { type: "data", array: [sd], visible: sd > 0, color: colour, thickness: 1, width: 0 },
    marker: { color: row.is_control ? css("page") : colour, symbol: symbolOf(row.policy), size: 11, line: { color: row.is_control ? colour : css("page"), width: row.is_control ? 2 : 1.5 } },
    hovertemplate: [
      `<b>${escapeHtml(row.label)}</b>`, `accuracy ${row.texts.accuracy}`, `of the uncut student’s: ${escapeHtml(row.retention_text)}`,
      `terminated ${row.texts.termination}`, `${row.cost_texts[cost]}<extra></extra>`,
    ].join("<br>"),
  };
}

function rowAxis(layout, labels, width, rowHeight) {
  const wrapped = labels.map((label) => wrap(label, width < NARROW ? 14 : 26));
  const numLines = Math.max(...wrapped.map((label) => label.split("<br>").length), 1);
  layout.height += labels.length * Math.max(rowHeight, 17 * numLines + 6);
  layout.yaxis = {
    ...layout.yaxis, tickvals: labels.map((_, row) => row), ticktext: wrapped, range: [labels.length - 0.5, -0.5],
    tickfont: { color: css("ink"), size: 13 }, showgrid: false, automargin: true, ticklen: 8, tickcolor: "rgba(0,0,0,0)", ticks: "outside",
  };
  layout.margin = { l: 8, r: 20, t: 8, b: 52 };
}

function rates(task, index, width) {
  const rows = task.rows.filter(shownIn(`task-${index}`));
  const layout = baseLayout(width, 68);
  rowAxis(layout, rows.map((row) => row.label), width, rows.length > 12 ? 36 : 56);
  layout.xaxis = { ...layout.xaxis, range: [0, 104], dtick: 20 };
  layout.xaxis.title.text = data.titles.rates;
  Object.assign(layout, { barmode: "group", bargap: 0.34, bargroupgap: 0.08 });
  const colours = rows.map((row) => colourOf(row.policy));
  const bars = (name, key, pattern) => ({
    type: "bar", orientation: "h", name, y: rows.map((_, row) => row), x: rows.map((row) => row[key][0]),
    error_x: { ...errorBar(rows.map((row) => row[key])), color: css("ink"), thickness: 1.25, width: 3 },
    marker: { color: colours, opacity: 0.7, line: { color: colours, width: 1 }, pattern: pattern && { ...pattern, fgcolor: colours, bgcolor: css("page") } },
    hovertemplate: rows.map((row) => `<b>${escapeHtml(row.label)}</b><br>${name} ${row.texts[key]}<extra></extra>`),
  });
  const hatched = { shape: "/", size: 6, solidity: 0.25, fillmode: "replace" };
  return { traces: [bars("accuracy", "accuracy"), bars("terminated", "termination", hatched)], layout };
}

// Stacked bars by part; the predicted bar of a policy lies below its measured one, paler.
function split(chart, index, width) {
  const { bars } = chart;
  const policies = [...new Set(bars.map((bar) => bar.policy))];
  const hasBoth = bars.some((bar) => bar.kind === "predicted");
  const layout = baseLayout(width, 68);
  rowAxis(layout, policies, width, (hasBoth ? 52 : 40) - (policies.length > 12 ? 16 : 0));
  layout.xaxis.title.text = chart.title;
  layout.xaxis.rangemode = "tozero";
  layout.barmode = "stack";
  const place = (bar) => policies.indexOf(bar.policy) + (hasBoth ? (bar.kind === "measured" ? -0.19 : 0.19) : 0);
  const traces = Object.entries(chart.parts).map(([part, title]) => ({
    type: "bar", orientation: "h", name: title, y: bars.map(place), x: bars.map((bar) => bar.parts[part]),
    width: bars.map(() => (hasBoth ? 0.32 : 0.6)),
    marker: { color: css(part.replaceAll("_", "-")), opacity: bars.map((bar) => (bar.kind === "measured" ? 1 : 0.5)), line: { color: css("page"), width: 1 } },
    hovertemplate: bars.map((bar) => `<b>${escapeHtml(bar.label)}</b><br>${title}, ${bar.kind} %{x:.3~g} ${chart.unit}<extra></extra>`),
  }));
  return { traces, layout };
}

function lineFigure(width, lines, xTitle, yTitle) {
  const layout = baseLayout(width, width < NARROW ? 300 : 360);
  const values = lines.flatMap(({ y }) => y).filter((value) => value > 0);
  const isLog = values.length > 0 && Math.max(...values) > data.log_factor * Math.min(...values);
  layout.margin.l = 68;
  layout.xaxis.title.text = xTitle;
  layout.yaxis.title.text = yTitle + (isLog ? ", log scale" : "");
  Object.assign(layout.yaxis, isLog ? { type: "log", dtick: 1, exponentformat: "power" } : { rangemode: "tozero" });
  layout.hovermode = "closest";
  const seen = {};
  const traces = lines.map(({ label, policy, x, y }) => {
    const repeat = (seen[policy] = (seen[policy] ?? -1) + 1);
    return {
      type: "scatter", mode: "lines+markers", name: escapeHtml(label), x, y, connectgaps: false,
      line: { color: colourOf(policy), width: 2, dash: DASHES[repeat % DASHES.length] },
      marker: { size: 6, symbol: symbolOf(policy) },
      hovertemplate: `<b>${escapeHtml(label)}</b><br>%{x}: %{y:.4~g}<extra></extra>`,
    };
  });
  return { traces, layout };
}

const chosenCurves = (measure) => data.curves.filter(shownIn("curves")).filter(
  (curve) => curve.measured_on === choice.get("measured_on", data.curves[0].measured_on) && measure in curve.sections,
);

function tenths(_, index, width) {
  const measure = choice.get("measure", "divergence");
  const x = Array.from({ length: 10 }, (_, tenth) => `${10 * tenth}–${10 * tenth + 10}`);
  const lines = chosenCurves(measure).map((curve) => ({ ...curve, x, y: curve.tenths[measure] }));
  const drawn = lineFigure(width, lines, data.titles.tenths, data.titles[measure]);
  Object.assign(drawn.layout.xaxis, { type: "category", categoryorder: "array", categoryarray: x, range: [-0.3, 9.3], tickangle: 0, tickmode: "linear", tick0: 0, dtick: width < NARROW ? 2 : 1 });
  return drawn;
}

function sections(_, index, width) {
  const [measure, section] = [choice.get("measure", "divergence"), choice.get("section", "cot")];
  const lines = chosenCurves(measure).filter((curve) => section in curve.sections[measure])
    .map((curve) => ({ ...curve, x: curve.steps, y: curve.sections[measure][section] }));
  return lineFigure(width, lines, data.titles.steps, data.titles[measure]);
}

function validation(curves, index, width) {
  const lines = curves.filter(shownIn("validation")).map((curve) => ({ ...curve, x: curve.steps, y: curve.losses }));
  return lineFigure(width, lines, data.titles.steps, data.titles.validation);
}

const FIGURES = {
  frontier: (index, width) => frontier(data.tasks[index], index, width),
  rates: (index, width) => rates(data.tasks[index], index, width),
  split: (index, width) => split(data.splits[index], index, width),
  tenths: (index, width) => tenths(data.curves, index, width),
  sections: (index, width) => sections(data.curves, index, width),
  validation: (index, width) => validation(data.validation, index, width),
};
