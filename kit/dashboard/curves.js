// Small multiples that grow while a run trains. Python sends numbers and text; all text is set as text, never as HTML.
//
// Messages from Python: {kind: "all", axes, charts, series} and {kind: "point", run, index, point, marks}.
// To Python: {kind: "ready"}, when the widget is made, and when a point was missed.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 128, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 20; // pixels
const COLOURS = 7, STYLES = 4; // as in curves.css
const JUDGED = 5; // steps that a finding looks back on
const MANY = 60; // points, beyond which none is marked by a dot
const DENSE = 12; // pixels between syncs, below which only their upper ends are drawn

const node = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

const shape = (tag, attributes, parent) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (parent) parent.append(made);
  return made;
};

const written = (value) => {
  if (value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
};

const ticks = (low, high, count) => {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
};

// The points of one line of one run as {x, y, low, high}: a fork's from the last one that it shares with its parent.
const pointsOf = (series, metric, axis) => {
  const found = [], low = `${metric}_low`, high = `${metric}_high`;
  for (const { x, values } of series.points) {
    if (!(metric in values)) continue;
    if (x.step < series.start) found.pop(); // the one before is shared as well
    found.push({ x: x[axis], y: values[metric], low: values[low], high: values[high] });
  }
  return found;
};

// Of many points within two pixels the lowest and the highest are enough: the line looks the same.
const thinned = (points, from, to, pixels) => {
  if (points.length < 2 * pixels) return points;
  const kept = [], width = (2 * (to - from)) / pixels;
  let low, high, place;
  const keep = () => { if (low) kept.push(...(low === high ? [low] : low.x < high.x ? [low, high] : [high, low])); };
  for (const point of points) {
    const here = Math.floor((point.x - from) / width);
    if (here !== place) {
      keep();
      [low, high, place] = [point, point, here];
    }
    if (point.y < low.y) low = point;
    if (point.y > high.y) high = point;
  }
  keep();
  if (kept.at(-1) !== points.at(-1)) kept.push(points.at(-1));
  return kept;
};

const syncsOf = (series, axis) => {
  const known = series.points.filter((point) => "sync/version" in point.values);
  return known.filter((p, i) => i && p.values["sync/version"] !== known[i - 1].values["sync/version"]).map((p) => p.x[axis]);
};

const placeOf = (series, step, axis) => {
  let place = 0;
  for (const point of series.points) if (point.x.step <= step) place = point.x[axis];
  return place;
};

const colourOf = (chart, line, run) => (line.colour + (chart.lines.length === 1 ? run : 0)) % COLOURS;
const styleOf = (line, run) => (line.style + run) % STYLES;

// What one panel draws on the chosen axis, at most some points a pixel.
const curvesOf = (chart, series, axis, [from, to], pixels) => {
  if (!chart.stacked) {
    return series.flatMap((one, run) => chart.lines.map((line) => {
      const points = pointsOf(one, line.metric, axis);
      const isSparse = points.length < 3 || (points.length < one.points.length / 2 && points.length < MANY);
      return { line, run, isSparse, points: thinned(points, from, to, pixels) };
    }));
  }
  const step = Math.ceil(series[0].points.length / (2 * pixels)); // parts of a whole keep the same places
  const one = { start: 0, points: series[0].points.filter((_, i) => i % step === 0) };
  return chart.lines.map((line) => ({ line, run: 0, points: pointsOf(one, line.metric, axis) }));
};

const stack = (curves) => {
  const below = new Map();
  for (const curve of curves) {
    for (const point of curve.points) {
      point.low = below.get(point.x) ?? 0;
      point.high = point.low + point.y;
      below.set(point.x, point.high);
    }
  }
};

const rangeOf = (chart, curves) => {
  const values = curves.flatMap((c) => c.points.flatMap((p) => [chart.stacked ? 0 : p.y, p.low ?? p.y, p.high ?? p.y]));
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (chart.zero) low = Math.min(0, low);
  if (low === high) [low, high] = chart.zero ? [0, high || 1] : [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const margin = 0.06 * (high - low);
  return [chart.zero && low === 0 ? 0 : low - margin, high + margin];
};

class Panel {
  constructor(chart, view) {
    Object.assign(this, { chart, view });
    this.element = node("figure", "kit-panel");
    const head = node("figcaption", "kit-head");
    head.append(node("span", "kit-title", chart.title), node("span", "kit-unit", chart.unit));
    head.title = `${chart.title}, ${chart.unit}`;
    this.svg = shape("svg", { class: "kit-plot", height: HEIGHT, role: "img" });
    this.legend = node("div", "kit-legend");
    this.element.append(head, this.svg, this.legend, node("p", "kit-reading", chart.reading));
    this.svg.addEventListener("pointermove", (event) => view.point(this.xAt(event)));
    this.svg.addEventListener("pointerleave", () => view.point(null));
  }

  // The place of the record nearest to the mouse.
  xAt(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    const [first, last] = this.view.domain();
    const x = first + share * (last - first);
    const places = this.view.data.series.flatMap((one) => one.points.map((point) => point.x[this.view.axis]));
    return places.reduce((best, place) => (Math.abs(place - x) < Math.abs(best - x) ? place : best), places[0]);
  }

  draw(width) {
    const { chart, view } = this, { series } = view.data, axis = view.axis;
    this.svg.replaceChildren();
    const [first, last] = view.domain();
    this.curves = curvesOf(chart, series, axis, [first, last], width - LEFT - RIGHT);
    if (chart.stacked) stack(this.curves);
    if (!this.curves.some((curve) => curve.points.length)) return;
    const [low, high] = rangeOf(chart, this.curves);
    this.toX = (x) => LEFT + ((x - first) / (last - first)) * (width - LEFT - RIGHT);
    this.toY = (y) => TOP + ((high - y) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    this.frame(width, [first, last], [low, high]);
    if (chart.syncs) this.syncs(syncsOf(series[0], axis));
    for (const one of series) this.marks(one, width);
    for (const curve of this.curves) this.curve(curve);
    this.cursor = shape("line", { class: "kit-cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, this.svg);
    this.point();
  }

  frame(width, xRange, yRange) {
    for (const value of ticks(...yRange, 4)) {
      const y = this.toY(value);
      shape("line", { class: "kit-grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }, this.svg);
      shape("text", { class: "kit-tick", x: LEFT - 6, y: y + 3, "text-anchor": "end" }, this.svg).textContent = written(value);
    }
    for (const value of ticks(...xRange, Math.max(2, Math.floor(width / 90)))) {
      const at = { class: "kit-tick", x: this.toX(value), y: HEIGHT - 5, "text-anchor": "middle" };
      shape("text", at, this.svg).textContent = written(value);
    }
    const base = HEIGHT - BOTTOM;
    shape("line", { class: "kit-base", x1: LEFT, x2: width - RIGHT, y1: base, y2: base }, this.svg);
  }

  syncs(places) {
    const at = places.map(this.toX), spacing = at.length > 1 ? (at.at(-1) - at[0]) / (at.length - 1) : Infinity;
    const foot = spacing < DENSE ? TOP + 6 : HEIGHT - BOTTOM;
    shape("path", { class: "kit-sync", d: at.map((x) => `M${x.toFixed(1)} ${TOP}V${foot}`).join("") }, this.svg);
  }

  marks(series, width) {
    for (const mark of series.marks) {
      const x = this.toX(placeOf(series, mark.step, this.view.axis));
      if (mark.kind === "control") {
        const made = shape("g", { class: "kit-control" }, this.svg);
        shape("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }, made);
        shape("path", { d: `M${x - 3.5} ${HEIGHT - BOTTOM}h7l-3.5 -6z` }, made);
        this.tip(made, x, width, `step ${mark.step}: ${mark.name}`, mark.text);
      } else if (this.chart.findings.includes(mark.rule)) {
        const made = shape("g", { class: `kit-finding kit-${mark.severity}` }, this.svg);
        const from = this.toX(placeOf(series, Math.max(0, mark.step - JUDGED + 1), this.view.axis));
        shape("rect", { x: Math.min(from, x - 4), y: TOP, width: Math.max(4, x - from), height: HEIGHT - TOP - BOTTOM }, made);
        shape("path", { d: `M${x - 5} ${TOP - 8}h10l-5 8z` }, made);
        this.tip(made, x, width, `${mark.severity} at step ${mark.step}: ${mark.name}`, mark.text);
      }
    }
  }

  tip(made, x, width, head, text) {
    made.setAttribute("tabindex", "0");
    made.setAttribute("aria-label", `${head}. ${text}`);
    const show = () => {
      const tip = this.view.tip;
      tip.replaceChildren(node("strong", "", head), node("span", "", text));
      tip.style.left = `${Math.min(this.element.offsetLeft + x, this.view.root.clientWidth - 290)}px`;
      tip.style.top = `${this.svg.getBoundingClientRect().bottom - this.view.root.getBoundingClientRect().top}px`;
      tip.hidden = false;
    };
    const hide = () => { this.view.tip.hidden = true; };
    for (const [event, act] of [["pointerenter", show], ["focus", show], ["pointerleave", hide], ["blur", hide]]) {
      made.addEventListener(event, act);
    }
  }

  curve({ line, run, points, isSparse }) {
    if (!points.length) return;
    const colour = `kit-c${colourOf(this.chart, line, run)}`;
    const path = (key) => points.map((p) => `${this.toX(p.x).toFixed(1)} ${this.toY(p[key]).toFixed(1)}`);
    if (points.every((point) => point.low !== undefined)) {
      const area = `M${[...path("high"), ...path("low").reverse()].join("L")}Z`;
      shape("path", { class: `${this.chart.stacked ? "kit-part" : "kit-band"} ${colour}`, d: area }, this.svg);
      if (this.chart.stacked) return;
    }
    const classes = `kit-line ${colour} kit-s${styleOf(line, run)}`;
    shape("path", { class: classes, d: `M${path("y").join("L")}` }, this.svg);
    const dots = isSparse ? points : points.slice(-1);
    for (const p of dots) shape("circle", { class: `kit-dot ${colour}`, cx: this.toX(p.x), cy: this.toY(p.y), r: 1.8 }, this.svg);
  }

  // Numbers under the cursor, or the last ones.
  point() {
    if (!this.curves) return;
    const at = this.view.cursor;
    const nearest = (points) => at === null ? points.at(-1)
      : points.reduce((best, p) => (Math.abs(p.x - at) < Math.abs(best.x - at) ? p : best), points[0]);
    const entries = this.chart.lines.map((line) => {
      const own = this.curves.filter((curve) => curve.line === line);
      const entry = node("span", "kit-entry");
      entry.append(node("span", "", line.label));
      for (const { run, points } of own) {
        const key = shape("svg", { class: "kit-key", width: 16, height: 8 });
        shape("line", { class: `kit-line kit-c${colourOf(this.chart, line, run)} kit-s${styleOf(line, run)}`,
                        x1: 0, x2: 16, y1: 4, y2: 4 }, key);
        entry.append(key, node("b", "", written(nearest(points)?.y)));
      }
      return entry;
    });
    this.legend.replaceChildren(...entries);
    const title = `${this.chart.title}, ${this.chart.unit}: ${entries.map((entry) => entry.textContent).join(", ")}`;
    this.svg.setAttribute("aria-label", title);
    if (this.cursor && at !== null) {
      this.cursor.setAttribute("x1", this.toX(at));
      this.cursor.setAttribute("x2", this.toX(at));
    }
    this.cursor?.setAttribute("visibility", at === null ? "hidden" : "visible");
  }
}

class View {
  constructor(data, el) {
    Object.assign(this, { data, axis: "step", cursor: null, panels: [], waiting: false, cost: 0 });
    this.root = node("div", "kit-curves");
    this.bar = node("div", "kit-bar");
    this.runs = node("div", "kit-runs");
    this.select = node("select");
    this.select.addEventListener("change", () => { this.axis = this.select.value; this.redraw(); });
    const label = node("label", "kit-axis", "x axis ");
    label.append(this.select);
    this.at = node("span", "kit-at");
    const readings = node("label", "kit-axis", "how to read ");
    const shown = node("input");
    Object.assign(shown, { type: "checkbox", checked: true });
    shown.addEventListener("change", () => this.root.classList.toggle("kit-terse", !shown.checked));
    readings.append(shown);
    this.bar.append(this.runs, this.at, readings, label);
    this.grid = node("div", "kit-grid-of-panels");
    this.list = node("details", "kit-findings");
    this.tip = node("div", "kit-tip");
    this.tip.hidden = true;
    this.root.append(this.bar, this.grid, this.list, this.tip);
    el.append(this.root);
    this.resized = new ResizeObserver(() => this.redraw());
    this.resized.observe(this.root);
    this.rebuild();
  }

  domain() {
    const last = Math.max(0, ...this.data.series.map((one) => one.points.at(-1)?.x[this.axis] ?? 0));
    return [0, last || 1];
  }

  rebuild() {
    const { axes, charts, series } = this.data;
    this.select.replaceChildren(...Object.entries(axes).map(([name, text]) => {
      const option = node("option", "", text);
      option.value = name;
      return option;
    }));
    this.select.value = this.axis;
    this.runs.replaceChildren(...(series.length > 1 ? series : []).map((one, run) => {
      const entry = node("span", "kit-entry");
      const key = shape("svg", { class: "kit-key", width: 22, height: 8 }, entry);
      shape("line", { class: `kit-line kit-ink kit-s${run % STYLES}`, x1: 0, x2: 22, y1: 4, y2: 4 }, key);
      entry.append(node("span", "", one.label));
      return entry;
    }));
    this.panels = charts.map((chart) => new Panel(chart, this));
    const empty = node("p", "kit-empty", "Curves appear with the first step.");
    this.grid.replaceChildren(...(charts.length ? this.panels.map((panel) => panel.element) : [empty]));
    this.redraw();
  }

  redraw() { // at most once a frame, and in a fifth of the time: the run wants the processor too
    if (this.waiting) return;
    this.waiting = true;
    setTimeout(() => requestAnimationFrame(() => {
      const started = performance.now(); 
      this.waiting = false;
      const widths = this.panels.map((panel) => panel.svg.clientWidth || 300); // before anything changes: one layout
      this.panels.forEach((panel, i) => panel.draw(widths[i]));
      this.findings();
      this.cost = performance.now() - started;
    }), 4 * this.cost);
  }

  findings() {
    const found = this.data.series.flatMap((one) => one.marks.map((mark) => ({ ...mark, run: one.label })));
    const told = found.filter((mark) => mark.kind === "finding");
    this.list.hidden = !told.length;
    const head = node("summary", "", `doctor: ${told.length} finding${told.length === 1 ? "" : "s"}`);
    this.list.replaceChildren(head, ...told.map((mark) => {
      const item = node("div", `kit-told kit-${mark.severity}`);
      const several = this.data.series.length > 1 ? ` · ${mark.run}` : "";
      item.append(node("strong", "", `${mark.name} · step ${mark.step}${several}`), node("span", "", mark.text));
      return item;
    }));
  }

  point(x) {
    this.cursor = x;
    this.at.textContent = x === null ? "" : `at ${Math.round(x)}`;
    for (const panel of this.panels) panel.point();
  }

  remove() {
    this.resized.disconnect();
    this.root.remove();
  }
}

export default () => {
  const data = { axes: {}, charts: [], series: [] };
  const views = new Set();
  return {
    initialize({ model }) {
      const hear = (message) => {
        if (message.kind === "all") {
          Object.assign(data, { axes: message.axes, charts: message.charts, series: message.series });
          for (const view of views) view.rebuild();
        } else if (message.kind === "point") {
          const series = data.series[message.run];
          if (!series || message.index > series.points.length) { // something was missed
            model.send({ kind: "ready" });
          } else if (message.index === series.points.length) {
            series.points.push(message.point);
            series.marks.push(...message.marks);
            for (const view of views) view.redraw();
          }
        }
      };
      model.on("msg:custom", hear);
      model.send({ kind: "ready" });
      return () => model.off("msg:custom", hear);
    },
    render({ el }) {
      const view = new View(data, el);
      views.add(view);
      return () => { views.delete(view); view.remove(); };
    },
  };
};
