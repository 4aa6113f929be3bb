"use strict";
// Draws the content of the element #data. All of it enters the page as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 58, right: 14, top: 10, bottom: 24 };
const zooms = {}; // x axis → [from, to], shared by all charts of the axis
const hidden = new Set(); // keys of hidden curves
const charts = [];

function make(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function short(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(digits - 2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}

function labels(values) {  // with the digits that tell them apart
  const digits = [4, 5, 6, 7, 8, 9].find((count) => new Set(values.map((value) => short(value, count))).size === values.length);
  return values.map((value) => short(value, digits ?? 10));
}

function ticks(low, high, count, log) {
  if (log) {
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of high / low < 30 ? [1, 2, 3, 5, 7] : high / low < 1e3 ? [1, 3] : [1]) powers.push(digit * 10 ** power);
    const inside = powers.filter((value) => value >= low && value <= high);
    if (inside.length > 1) return inside;
  }
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((digit) => digit * unit).find((size) => size >= raw);
  const first = Math.ceil(low / step), values = Array.from({ length: 2 * count + 2 }, (_, i) => (first + i) * step);
  return values.filter((value) => value <= high + step * 1e-9);
}

function colour(spec, index) {
  const shown = spec.series.filter((one) => !one.whole).length;
  return shown <= 8 ? `var(--c${index})` : `hsl(${Math.round((300 * index) / shown)} 65% 50%)`;
}

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.log = false;
    this.svg = make("svg:svg", { role: "img", tabindex: 0, "aria-label": `${spec.title}. Press plus or minus to zoom, the arrow keys to move, 0 to show all.` });
    this.readout = make("div", { class: "readout" });
    const tools = make("div", { class: "tools" });
    if (spec.log) tools.append(make("button", { "aria-pressed": "false", class: "log", onclick: (event) => this.toggleLog(event.currentTarget) }, "log scale"));
    this.reset = make("button", { class: "reset", hidden: true, onclick: () => setZoom(spec.x, null) }, "show all");
    tools.prepend(this.reset);
    this.legend = make("div", { class: "legend", role: "group", "aria-label": "Show or hide curves" });
    this.figure = make("figure", { class: "card chart", id: `chart-${spec.id}` },
      make("div", { class: "title" }, make("h3", {}, spec.title), spec.note ? make("p", { class: "note" }, spec.note) : null, tools),
      make("div", { class: "plot" }, this.svg), this.readout,
      spec.series.length > 9 ? make("details", {}, make("summary", {}, `Show or hide ${spec.series.length} curves`), this.legend) : this.legend);
    this.addLegend();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  key(series) { return `${this.spec.ranks ? "ranks" : this.spec.id}/${series.name}`; }

  addLegend() {
    const { series } = this.spec, many = series.length > 9;
    if (series.length < 2) return;
    series.forEach((one, index) => {
      const swatch = make("i", { class: "swatch" }), key = this.key(one);
      swatch.style.background = one.whole ? "var(--text)" : colour(this.spec, index);
      const name = many ? one.name.replace(/^rank /, "") : one.name;
      this.legend.append(make("button", { "aria-pressed": "true", "aria-label": one.name, "data-key": key, onclick: () => {
        hidden.has(key) ? hidden.delete(key) : hidden.add(key);
        drawAll();
      } }, swatch, name));
    });
    if (series.length > 3) for (const [label, action] of [["all", "delete"], ["none", "add"]])
      this.legend.append(make("button", { onclick: () => {
        series.forEach((one) => hidden[action](this.key(one)));
        drawAll();
      } }, label));
  }

  toggleLog(button) {
    this.log = !this.log;
    button.setAttribute("aria-pressed", this.log);
    this.draw();
  }

  visible() { return this.spec.series.map((one, index) => ({ ...one, index })).filter((one) => !hidden.has(this.key(one)) && one.x.length); }

  extent() {
    let low = Infinity, high = -Infinity;
    for (const one of this.spec.series) if (one.x.length) [low, high] = [Math.min(low, one.x[0]), Math.max(high, one.x[one.x.length - 1])];
    return low > high ? [0, 1] : low === high ? [low - 0.5, high + 0.5] : [low, high];
  }

  scale() {
    const [x0, x1] = zooms[this.spec.x] || this.extent(), log = this.log;
    let low = Infinity, high = -Infinity;
    for (const one of this.visible()) one.y.forEach((y, i) => {
      if (one.x[i] >= x0 && one.x[i] <= x1 && (!log || y > 0)) [low, high] = [Math.min(low, y), Math.max(high, y)];
    });
    if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
    if (high - low < Math.abs(high) * 1e-9) high = low;
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    if (log) [low, high] = low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
    else [low, high] = [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
    const width = Math.max(1, this.width - MARGIN.left - MARGIN.right), height = this.height - MARGIN.top - MARGIN.bottom;
    const place = log ? (y) => Math.log(y / low) / Math.log(high / low) : (y) => (y - low) / (high - low);
    return { x0, x1, low, high, width, height,
      x: (x) => MARGIN.left + ((x - x0) / (x1 - x0)) * width,
      y: (y) => MARGIN.top + (1 - (log && y <= 0 ? -1 : place(y))) * height,
      back: (pixel) => x0 + ((pixel - MARGIN.left) / width) * (x1 - x0) };
  }

  draw() {
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    if (!this.width) return;
    const s = (this.s = this.scale()), right = this.width - MARGIN.right, bottom = this.height - MARGIN.bottom;
    const clip = `clip-${this.spec.id}`, inside = make("svg:g", { "clip-path": `url(#${CSS.escape(clip)})` });
    const parts = [make("svg:clipPath", { id: clip }, make("svg:rect", { x: MARGIN.left - 3, y: 0, width: s.width + 6, height: bottom }))];
    const levels = ticks(s.low, s.high, 5, this.log), names = labels(levels);
    levels.forEach((y, i) => parts.push(
      make("svg:line", { class: "grid-line", x1: MARGIN.left, x2: right, y1: s.y(y), y2: s.y(y) }),
      make("svg:text", { class: "level", x: MARGIN.left - 6, y: s.y(y) + 4, "text-anchor": "end" }, names[i])));
    const whole = ticks(s.x0, s.x1, this.width / 90, false).filter((x) => Number.isInteger(x));
    for (const x of whole) parts.push(make("svg:text", { x: s.x(x), y: bottom + 16, "text-anchor": right - s.x(x) < 20 ? "end" : "middle" }, x.toLocaleString("en")));
    parts.push(make("svg:line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
      make("svg:text", { x: 2, y: bottom + 16 }, this.spec.x));
    if (this.spec.skipped) for (const x of data.skipped) inside.append(make("svg:line", { class: "skip", x1: s.x(x), x2: s.x(x), y1: 0, y2: bottom }));
    const shown = this.visible();
    shown.forEach((one, order) => inside.append(...this.curve(one, order, shown.length)));
    this.mark = make("svg:g", {});
    this.svg.replaceChildren(...parts, inside, this.mark);
    this.reset.hidden = !zooms[this.spec.x];
    for (const button of this.legend.querySelectorAll("[data-key]")) button.setAttribute("aria-pressed", !hidden.has(button.dataset.key));
  }

  curve(one, order, count) {
    const { s, spec } = this, many = spec.series.length > 9;
    let path = "";
    one.x.forEach((x, i) => {
      if (spec.steps && i) path += `H${s.x(x).toFixed(1)}`;
      path += `${i ? "L" : "M"}${s.x(x).toFixed(1)} ${s.y(one.y[i]).toFixed(1)}`;
    });
    const line = make("svg:path", { class: `curve${one.whole ? " whole" : many ? " many" : ""}`, d: path, "data-name": one.name });
    line.style.stroke = colour(spec, one.index);
    if (one.dashed) line.style.strokeDasharray = "5 4";
    else if (spec.steps && count > 1 && !many) { // dashes of equal curves alternate
      line.style.strokeDasharray = `8 ${8 * (count - 1)}`;
      line.style.strokeDashoffset = -8 * order;
    }
    const parts = [line];
    if (one.x.length === 1 || (one.x.length <= 60 && !many && !spec.steps)) one.x.forEach((x, i) => {
      const dot = make("svg:circle", { cx: s.x(x), cy: s.y(one.y[i]), r: 2.2 });
      dot.style.fill = colour(spec, one.index);
      parts.push(dot);
    });
    const best = one.index === 0 && spec.best !== null && spec.best !== undefined ? one.x.indexOf(spec.best) : -1;
    if (best >= 0) parts.push(make("svg:text", { class: "best", x: s.x(spec.best), y: s.y(one.y[best]) + 6, "text-anchor": "middle" }, "★",
      make("svg:title", {}, `best epoch ${spec.best}`)));
    return parts;
  }

  readValues(pixel, height) {
    const { s } = this, x = s.back(pixel), rows = [];
    for (const one of this.visible()) {
      let at = 0;
      one.x.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(one.x[at] - x)) at = i; });
      rows.push({ one, x: one.x[at], y: one.y[at], far: Math.abs(s.y(one.y[at]) - height) });
    }
    if (!rows.length) return;
    const near = rows.length > 6 ? rows.sort((a, b) => a.far - b.far).slice(0, 3) : rows;
    this.mark.replaceChildren(make("svg:line", { class: "cursor", x1: s.x(near[0].x), x2: s.x(near[0].x), y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
    for (const path of this.svg.querySelectorAll(".many")) path.classList.toggle("near", path.dataset.name === near[0].one.name);
    this.readout.textContent = `${this.spec.x} ${near[0].x.toLocaleString("en")}: ${near.map((row) => `${row.one.name} ${short(row.y)}${this.spec.unit ? ` ${this.spec.unit}` : ""}`).join(" · ")}`;
  }

  listen() {
    let from = null;
    const at = (event) => Math.min(Math.max(event.clientX - this.svg.getBoundingClientRect().left, MARGIN.left), this.width - MARGIN.right);
    const height = (event) => event.clientY - this.svg.getBoundingClientRect().top;
    const listeners = {
      pointerdown: (event) => { if (event.button === 0) { from = at(event); this.svg.setPointerCapture(event.pointerId); } },
      pointermove: (event) => {
        if (from === null) return this.readValues(at(event), height(event));
        const to = at(event);
        this.mark.replaceChildren(make("svg:rect", { class: "brush", x: Math.min(from, to), width: Math.abs(to - from), y: MARGIN.top, height: this.s.height }));
      },
      pointerup: (event) => {
        if (from === null) return;
        const ends = [from, at(event)].sort((a, b) => a - b).map(this.s.back);
        if (Math.abs(at(event) - from) > 6) setZoom(this.spec.x, ends);
        from = null;
      },
      pointercancel: () => { from = null; this.draw(); },
      pointerleave: () => { if (from === null) { this.draw(); this.readout.textContent = ""; } },
      dblclick: () => setZoom(this.spec.x, null),
      keydown: (event) => {
        const { x0, x1 } = this.s, size = x1 - x0;
        const range = { "+": [x0 + size / 4, x1 - size / 4], "=": [x0 + size / 4, x1 - size / 4], "-": [x0 - size / 2, x1 + size / 2],
          ArrowLeft: [x0 - size / 5, x1 - size / 5], ArrowRight: [x0 + size / 5, x1 + size / 5], 0: null, Escape: null }[event.key];
        if (range === undefined) return;
        event.preventDefault();
        setZoom(this.spec.x, range);
      },
    };
    for (const [name, listener] of Object.entries(listeners)) this.svg.addEventListener(name, listener);
  }
}

function setZoom(axis, range) {
  const all = charts.filter((chart) => chart.spec.x === axis).map((chart) => chart.extent());
  const [low, high] = [Math.min(...all.map((ends) => ends[0])), Math.max(...all.map((ends) => ends[1]))];
  if (range) range = range[0] < low ? [low, Math.min(high, low + range[1] - range[0])] : range[1] > high ? [Math.max(low, high - range[1] + range[0]), high] : range;
  if (range && range[1] - range[0] < 1) range = [(range[0] + range[1] - 1) / 2, (range[0] + range[1] + 1) / 2];
  zooms[axis] = range && (range[0] > low || range[1] < high) ? range : null;
  drawAll();
}

function drawAll() { charts.forEach((chart) => chart.draw()); }

function picturesOf({ images, epochs, best, sheets, kind }) {
  const named = (epoch) => `epoch ${epoch}${epoch === best ? " (best)" : ""}`;
  const sources = [["input", "input"], ...epochs.map((epoch) => [`output, ${named(epoch)}`, epoch]), ...(images[0].gt ? [["gt", "gt"]] : [])];
  const choice = { left: "input", right: epochs.includes(best) ? best : epochs[epochs.length - 1] };
  const views = images.map((image) => new Compare(image, choice, named));
  const pick = (side) => make("label", {}, `${side} `, make("select", { id: `pick-${side}${kind}`, onchange: (event) => {
    choice[side] = event.target.value;
    views.forEach((view) => view.show());
  } }, ...sources.map(([name, value]) => make("option", { value, selected: value === choice[side] }, name))));
  const lacks = best !== null && !epochs.includes(best) ? ` There is no picture of the best epoch, ${best}.` : "";
  const note = `Drag the divider. Each picture is the centre of an image, as a JPEG; samples/${kind ? `${kind}/` : ""} has ${sheets} lossless PNG file${sheets === 1 ? "" : "s"}.${lacks}`;
  return [make("div", { class: "pickers" }, pick("left"), pick("right"), make("p", { class: "note" }, note)),
    make("div", { class: "grid views" }, ...views.map((view) => view.figure))];
}

class Compare {
  constructor(image, choice, named) {
    Object.assign(this, { image, choice, named, under: make("img", { alt: "", draggable: "false" }), over: make("img", { class: "over", alt: "", draggable: "false" }) });
    this.bar = make("div", { class: "bar" });
    this.left = make("span", { class: "left" });
    this.right = make("span", { class: "right" });
    this.box = make("div", { class: "compare" }, this.under, this.over, this.bar, this.left, this.right);
    this.range = make("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Position of the divider in percent", oninput: () => this.move(Number(this.range.value)) });
    this.figure = make("figure", { class: "card" }, this.box, this.range);
    const follow = (event) => {
      const { left, width } = this.box.getBoundingClientRect();
      this.move(Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width)));
    };
    this.box.addEventListener("pointerdown", (event) => { this.box.setPointerCapture(event.pointerId); follow(event); });
    this.box.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
    this.show();
    this.move(50);
  }

  tile(which) { return this.image[which] || this.image.outputs.find((output) => output.epoch === which) || this.image.input; }

  show() {
    const left = this.tile(this.choice.left), right = this.tile(this.choice.right);
    for (const [img, label, tile] of [[this.over, this.left, left], [this.under, this.right, right]]) {
      img.src = tile.src;
      img.alt = label.textContent = tile.epoch ? `${this.named(tile.epoch)}: ${tile.caption}` : tile.caption;
    }
    this.under.width = right.width;
    this.under.height = right.height;
    this.under.style.aspectRatio = `${right.width} / ${right.height}`;
    this.under.style.height = "auto";
  }

  move(percent) {
    this.range.value = percent;
    this.over.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    this.bar.style.left = `${percent}%`;
  }
}

function tableOf({ head, rows, note }) {
  const numbers = rows[0].map((_, i) => head.length > 0 && i > 0 && rows.every((row) => /^-?[\d.,e+-]*( dB)?$/.test(row[i])));
  const cell = (tag) => (text, i) => make(tag, { class: numbers[i] ? "number" : null }, text);
  return make("div", { class: "card" }, note ? make("p", { class: "note" }, note) : null,
    scrolling("Table", make("table", { class: head.length ? "" : "two" },
      head.length ? make("thead", {}, make("tr", {}, ...head.map(cell("th")))) : null,
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td"))))))));
}

// A box whose content may be larger. A fade marks each side that hides some of it, and a line says how to see columns.
function scrolling(label, content) {
  const box = make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, content);
  const hint = make("p", { class: "note hint", hidden: true }, "Scroll sideways to see the rest →");
  const frame = make("div", { class: "frame" }, box);
  const update = () => {
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
    frame.classList.toggle("more-right", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
    frame.classList.toggle("more-below", box.scrollHeight - box.clientHeight - box.scrollTop > 1);
  };
  box.addEventListener("scroll", update);
  new ResizeObserver(update).observe(box);
  return make("div", {}, hint, frame);
}

function head() {
  const { epoch, epochs, step, steps } = data.progress, done = steps ? step / steps : epochs ? epoch / epochs : 0;
  const of = (value, total) => (value ?? 0).toLocaleString("en") + (total ? ` of ${total.toLocaleString("en")}` : "");
  const status = `${of(epoch, epochs)} epochs · ${of(step, steps)} steps · page written ${data.written}${data.state === "running" ? " · reload to update" : ""}`;
  const facts = data.facts.map(([name, value, detail]) => make("div", { class: "card fact" }, make("span", { class: "note" }, name), make("b", {}, value), make("span", { class: "note" }, detail)));
  document.getElementById("head").append(
    make("div", { class: "title" }, make("h1", {}, data.name), make("span", { class: `state ${/^[a-z]+$/.test(data.state) ? data.state : ""}` }, String(data.state))),
    data.error ? make("p", { class: "error" }, data.error) : "",
    done > 0 ? make("progress", { max: 1, value: Math.min(1, done), "aria-label": "Progress" }) : "", make("p", { class: "note" }, status),
    make("div", { class: "facts" }, ...facts));
}

function section(spec, number) {
  const parts = [];
  if (spec.note && (spec.tables || []).length) parts.push(make("p", { class: "note" }, spec.note));
  if (spec.pictures) parts.push(...picturesOf(spec.pictures));
  if ((spec.charts || []).length) {
    const own = spec.charts.map((chart) => new Chart(chart));
    charts.push(...own);
    parts.push(make("div", { class: own.length % 3 ? "grid" : "grid thirds" }, ...own.map((chart) => chart.figure)));
  }
  parts.push(...(spec.tables || []).map(tableOf));
  if (spec.text) parts.push(make("div", { class: "card" }, scrolling(spec.title, make("pre", {}, spec.text))));
  if (!parts.length) return;
  const id = `section-${number}`;
  document.getElementById("contents").append(make("a", { href: `#${id}` }, spec.title));
  document.getElementById("main").append(make("section", { id }, make("h2", {}, spec.title), ...parts));
}

head();
data.sections.forEach(section);
drawAll();
