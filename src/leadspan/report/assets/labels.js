// Where labels go in a scatter plot: on no point, error bar, line or other label.
const box = (x, y, halfWidth, halfHeight) => ({ l: x - halfWidth, r: x + halfWidth, t: y - halfHeight, b: y + halfHeight });
const overlaps = (a, b) => a.l < b.r && b.l < a.r && a.t < b.b && b.t < a.b;
const needsLeader = (dy) => Math.abs(dy) > 20;
const escapeHtml = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

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
  return { text: escapeHtml(text), x, y, xanchor: "center", yanchor: "middle", font: { size: 13, color: colour }, borderpad: 0, ...place };
}

// Boxes along a polyline, for labels to keep off it where they can.
function along(frame, corners) {
  return corners.slice(1).flatMap((end, i) => Array.from({ length: 60 }, (_, step) => {
    const at = (name) => corners[i][name] + ((step + 0.5) / 60) * (end[name] - corners[i][name]);
    return box(frame.toX(at("x")), frame.toY(at("y")), 5, 2);
  }));
}

// Labels of points ({label, x, y, low, high, left, right, marks}) and of horizontal lines ({label, y}), off the polyline
// `joined` where they can be; a label that fits nowhere is left out.
function placeLabels(layout, points, lines, joined) {
  const frame = frameOf(layout);
  const taken = points.flatMap(({ x, y, low, high, left, right, marks }) => [
    box(frame.toX(x), frame.toY(y), 9, 9),
    { l: frame.toX(x) - 5, r: frame.toX(x) + 5, t: frame.toY(high), b: frame.toY(low) },
    { l: frame.toX(left), r: frame.toX(right), t: frame.toY(y) - 4, b: frame.toY(y) + 4 },
    ...marks.map(([markX, markY]) => box(frame.toX(markX), frame.toY(markY), 4, 4)),
  ]);
  const ruled = lines.map(({ y }) => ({ l: frame.l, r: frame.r, t: frame.toY(y) - 2, b: frame.toY(y) + 2 }));
  ruled.push(...along(frame, joined));
  const annotations = [];
  const put = (text, anchor, offsetsFor, colour) => {
    const [x, y, halfWidth] = [frame.toX(anchor[0]), frame.toY(anchor[1]), textWidth(text) / 2 + 4];
    const search = (blocked) => freeSpot(frame, x, y, halfWidth, offsetsFor(halfWidth), blocked);
    const spot = search([...taken, ...ruled]) ?? search(taken);
    if (!spot) return;
    taken.push(box(x + spot[0], y + spot[1], halfWidth, 9));
    annotations.push(annotation(text, anchor, spot, colour));
  };
  const ends = (half) => [-11, 11].flatMap((dy) => [[half, dy], [frame.r - frame.l - half, dy]]);
  const around = (half) => [14, 30, 46].flatMap((gap) => [
    [half + 10, 0], [-half - 10, 0], [half + 10, -gap], [half + 10, gap], [-half - 10, -gap], [-half - 10, gap], [0, -gap - 4], [0, gap + 4],
    [0.8 * half, -gap - 4], [-0.8 * half, -gap - 4], [0.8 * half, gap + 4], [-0.8 * half, gap + 4],
  ]);
  for (const line of lines) put(line.label, [0, line.y], ends, css("muted"));
  for (const point of [...points].sort((a, b) => b.y - a.y)) put(point.label, [point.x, point.y], around, css("ink"));
  return annotations;
}
