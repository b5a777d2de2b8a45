// Small figures drawn as SVG: bars over days, shares with intervals, means over positions.
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const child of children.flat(Infinity)) if (child != null) made.append(child);
  return made;
}

const percent = (value) => (value == null ? "–" : (100 * value).toFixed(0) + " %");
const figure = (title, words, drawn, more) => h("figure", { class: "panel" }, h("figcaption", {}, h("h2", {}, title), words ? h("p", { class: "soft" }, words) : null), drawn, more);
const canvas = (height, name, ...parts) => svg("svg", { viewBox: "0 0 520 " + height, role: "img", "aria-label": name, class: "drawn" }, parts);
const label = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor || "start", class: "word" }, text);

// counts: {day: number}
function barsOverDays(counts, name) {
  const days = Object.keys(counts).slice(-30), most = Math.max(1, ...days.map((day) => counts[day]));
  const wide = 500 / Math.max(days.length, 1);
  const bar = (day, i) => {
    const tall = 110 * counts[day] / most;
    return svg("rect", { x: 10 + i * wide + 1, y: 130 - tall, width: Math.max(2, Math.min(wide - 2, 60)), height: tall, rx: 3, class: "bar" }, svg("title", {}, day + ": " + counts[day]));
  };
  const ends = days.length ? [label(10, 150, days[0]), days.length > 1 ? label(510, 150, days.at(-1), "end") : null] : [];
  return canvas(160, name, svg("line", { x1: 10, y1: 130.5, x2: 510, y2: 130.5, class: "axis" }), days.map(bar), ends, label(10, 14, String(most)));
}

// rows: [{name, rate: {value, low, high, num_pairs}}], shares from `from` to 1, with a line at `mark`
function sharesWithIntervals(rows, from, mark, name) {
  const x = (value) => 150 + 330 * (Math.max(value, from) - from) / (1 - from);
  const line = (row, i) => {
    const y = 30 + i * 26, { value, low, high } = row.rate;
    const parts = [label(140, y + 5, row.name.length > 18 ? row.name.slice(0, 17) + "…" : row.name, "end")];
    if (value == null) return [...parts, label(150, y + 5, "–")];
    return [...parts, svg("line", { x1: x(low), y1: y, x2: x(high), y2: y, class: "interval" }),
      svg("circle", { cx: x(value), cy: y, r: 5, class: "point" }, svg("title", {}, row.name + ": " + percent(value) + " [" + percent(low) + ", " + percent(high) + "], " + row.rate.num_pairs)),
      label(515, y + 5, percent(value), "end")];
  };
  const bottom = 30 + rows.length * 26;
  const ticks = [from, (from + 1) / 2, 1].map((value) => [svg("line", { x1: x(value), y1: 14, x2: x(value), y2: bottom - 8, class: "axis" }), label(x(value), bottom + 8, percent(value), "middle")]);
  return canvas(bottom + 16, name, ticks, svg("line", { x1: x(mark), y1: 14, x2: x(mark), y2: bottom - 8, class: "mark-line" }), rows.map(line));
}

// positions: [{shown, place, num}], place 0 best to 1 worst
function placesByPosition(positions, name) {
  const x = (i) => 60 + i * 420 / Math.max(1, positions.length - 1), y = (place) => 20 + 110 * place;
  const points = positions.map((one, i) => svg("circle", { cx: x(i), cy: y(one.place), r: 5, class: "point" }, svg("title", {}, one.shown + ": " + one.place.toFixed(2) + " (" + one.num + ")")));
  const path = svg("polyline", { points: positions.map((one, i) => x(i) + "," + y(one.place)).join(" "), class: "line" });
  return canvas(165, name, svg("line", { x1: 40, y1: y(0.5), x2: 500, y2: y(0.5), class: "axis" }), label(34, y(0) + 4, t("best"), "end"), label(34, y(1) + 4, t("worst"), "end"),
    path, points, positions.map((one, i) => label(x(i), 158, String(one.shown), "middle")));
}

// flags: [{flag, yes, no, unanswered, alpha}]
function flagBars(flags) {
  const row = (one) => {
    const all = Math.max(1, one.yes + one.no + one.unanswered);
    const part = (count, kind) => h("span", { class: kind, style: "width:" + 100 * count / all + "%", title: kind + ": " + count });
    return h("tr", {}, h("th", { scope: "row" }, one.flag.replaceAll("_", " ")), h("td", {}, h("div", { class: "split" }, part(one.yes, "yes"), part(one.no, "no"))),
      h("td", { class: "number" }, String(one.yes)), h("td", { class: "number" }, String(one.no)), h("td", { class: "number" }, String(one.unanswered)),
      h("td", { class: "number" }, one.alpha == null ? "–" : one.alpha.toFixed(2)));
  };
  const heads = [t("o_flag"), "", t("yes"), t("no"), t("o_unanswered"), "α"].map((word) => h("th", { scope: "col" }, word));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": t("o_flags") }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, flags.map(row))));
}
