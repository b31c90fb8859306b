"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const models = data.models;
const tensors = data.tensors.map((values) =>
  Object.fromEntries(data.fields.map((field, i) => [field, values[i]])));
const REJECTED = data.least;
const WRITTEN_LAYERS = 12; // cells of a map with at most so many layers hold their number
const FIRST_ROWS = 200; // of the table; the rest on demand
const dark = matchMedia("(prefers-color-scheme: dark)");
const byId = (id) => document.getElementById(id);

/** An element with properties, attributes (`data-`, `aria-`, ...) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function format(value) {
  if (value === null) return "–";
  return value === 0 || Math.abs(value) >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}
const weightText = (value) => (value === null ? "–" : value.toFixed(3));
const spanText = ([low, high], text) => (low === high ? text(low) : `${text(low)} to ${text(high)}`);

// --- colors -------------------------------------------------------------------------------------

const channels = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

/** The color of a share in [0, 1], and a readable one for text on it. */
function shade(share) {
  const stops = data.scales[dark.matches ? "dark" : "light"];
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [channels(stops[first]), channels(stops[first + 1])];
  const mixed = from.map((value, i) => Math.round(value + (to[i] - value) * (place - first)));
  const light = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2];
  return { fill: `rgb(${mixed.join(", ")})`, text: light < 140 ? "#ffffff" : "#1d2733" };
}

/** Color an element by its share; it keeps the share for a change between dark and light. */
function tint(element, share) {
  const { fill, text } = shade(share);
  element.dataset.share = share;
  element.style.backgroundColor = fill;
  element.style.color = text;
}

function drawRamp() {
  const stops = data.scales[dark.matches ? "dark" : "light"];
  byId("ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
}

dark.addEventListener("change", () => {
  for (const element of document.querySelectorAll("[data-share]")) {
    tint(element, Number(element.dataset.share));
  }
  drawRamp();
});

// --- tooltips -----------------------------------------------------------------------------------

const tip = byId("tip");

function showTip(target) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - size.width / 2, 6),
    document.documentElement.clientWidth - size.width - 6);
  const above = box.top - size.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 4 ? box.bottom + 8 : above}px`;
}

for (const [enter, leave] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
  document.addEventListener(enter, (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (target) showTip(target);
  });
  document.addEventListener(leave, () => { tip.hidden = true; });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

// --- heat maps ----------------------------------------------------------------------------------

const NOTES = {
  weights: "Weight by layer and kind of module, mean over elements. Choose a cell to see its tensors.",
  distances: "Distance from the center, where 1 is the size of the weights themselves (RMS over "
    + "elements). Choose a cell to see its tensors.",
};

function largest(grid) {
  const known = [grid.values, grid.outsideValues].flat(Infinity).filter((value) => value !== null);
  return Math.max(0, ...known);
}

function mapCell(model, kind, layer, share, what) {
  const [weight, distance] = [data.weights, data.distances].map((grid) => {
    const place = layer === null ? grid.outside.indexOf(kind) : grid.kinds.indexOf(kind);
    return layer === null ? grid.outsideValues[model][place]
      : grid.values[model][place][grid.layers.indexOf(layer)];
  });
  const value = what === "weights" ? weight : distance;
  if (value === null) return make("td", { className: "none" });
  const rejected = weight < REJECTED;
  const written = layer === null || data.weights.layers.length <= WRITTEN_LAYERS;
  const short = value < 0.995 ? value.toFixed(2).slice(1) : value.toFixed(2);
  const where = `${layer === null ? "" : `layer ${layer} `}${kind}`;
  const text = `${models[model].short}\n${where}\nweight ${weightText(weight)}`
    + `${rejected ? ", rejected" : ""}\ndistance ${format(distance)}`;
  const cell = make("td", {
    tabIndex: -1, "data-tip": text, "aria-label": text.replaceAll("\n", ", "),
    "data-kind": kind, "data-layer": layer ?? "outside", "data-value": value,
  }, what === "weights" && rejected ? "×" : written ? short : "");
  tint(cell, share(value));
  return cell;
}

function drawMap(model, what) {
  const grid = data[what];
  const top = largest(grid) || 1;
  const share = (value) => (what === "weights" ? value : value / top);
  const body = make("tbody");
  for (const kind of grid.kinds) {
    const cells = grid.layers.map((layer) => mapCell(model, kind, layer, share, what));
    body.append(make("tr", {}, make("th", { scope: "row", title: kind }, kind), ...cells));
  }
  grid.outside.forEach((kind, i) => {
    const cell = mapCell(model, kind, null, share, what);
    cell.colSpan = Math.max(1, grid.layers.length);
    const head = make("th", { scope: "row", title: kind }, kind);
    body.append(make("tr", { className: i || !grid.kinds.length ? "" : "outer" }, head, cell));
  });
  const step = grid.layers.length > WRITTEN_LAYERS ? 4 : 1;
  const numbers = grid.layers.map((layer, i) =>
    make("th", { scope: "col", "aria-label": `layer ${layer}` }, i % step ? "" : `${layer}`));
  const table = make("table", { className: "map", "data-model": model },
    make("thead", {}, make("tr", {}, make("td", { className: "none" }), ...numbers)), body);
  table.setAttribute("aria-label", `${models[model].short}: ${what} by layer and module`);
  table.style.setProperty("--cell", grid.layers.length > WRITTEN_LAYERS ? "17px" : "30px");
  const first = table.querySelector("td[data-tip]");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", walk);
  table.addEventListener("click", (event) => choose(event.target.closest("td[data-tip]")));
  return make("figure", { style: "margin:0;min-width:0" },
    make("h3", { title: models[model].name }, models[model].short),
    make("div", { className: "scroll" }, table));
}

/** Arrow keys walk over the cells of a map, Enter shows the tensors of one. */
function walk(event) {
  const cell = event.target.closest("td[data-tip]");
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.key === "Enter") choose(cell);
  if (!cell || !(event.key in steps)) return;
  event.preventDefault();
  const [down, right] = steps[event.key];
  const rows = [...cell.closest("tbody").rows];
  const row = rows[rows.indexOf(cell.parentElement) + down];
  const next = row?.cells[Math.min(cell.cellIndex + right, row.cells.length - 1)];
  if (!next?.dataset.tip) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function choose(cell) {
  if (!cell) return;
  const { layer, kind } = cell.dataset;
  filters.reset();
  Object.assign(filters.elements.layer, { value: layer });
  Object.assign(filters.elements.kind, { value: data.kinds.indexOf(kind) });
  drawTable();
  byId("all").scrollIntoView();
}

function drawMaps(what) {
  const top = largest(data[what]);
  byId("map-note").textContent = NOTES[what];
  byId("most").textContent = what === "weights" ? "1" : top.toPrecision(3);
  byId("cross").hidden = what !== "weights";
  // an anchor that was not weighed has no map
  const drawn = models.map((_, model) => model).filter((model) =>
    [data[what].values[model], data[what].outsideValues[model]].flat(2).some((v) => v !== null));
  byId("maps").replaceChildren(...drawn.map((model) => drawMap(model, what)));
  for (const button of document.querySelectorAll("[data-map]")) {
    button.setAttribute("aria-pressed", button.dataset.map === what);
  }
  arrange();
}

/** As many maps side by side as fit, in rows of equal length. */
function arrange() {
  const layers = data.weights.layers.length;
  const needed = 170 + layers * (layers > WRITTEN_LAYERS ? 18 : 31);
  const fit = Math.max(1, Math.floor((byId("maps").clientWidth + 32) / (needed + 32)));
  const count = Math.max(1, byId("maps").childElementCount);
  byId("maps").style.setProperty("--across", Math.ceil(count / Math.ceil(count / fit)));
  document.documentElement.style.setProperty("--box", `${byId("tensors").parentElement.clientWidth}px`);
}

// --- distances between models -------------------------------------------------------------------

function drawGaps() {
  const top = Math.max(...[data.gaps, data.centers].flat(Infinity).filter((v) => v !== null), 1e-9);
  const cell = (value, tipText, self) => {
    if (self) return make("td", { className: "self" }, "·");
    if (value === null) return make("td", { className: "self" }, "–");
    const element = make("td", { "data-tip": tipText }, format(value));
    tint(element, value / top);
    return element;
  };
  const body = models.map((model, i) => make("tr", {},
    make("th", { scope: "row", title: model.name }, model.short),
    ...models.map((other, j) => cell(data.gaps[i][j],
      `${model.short} and ${other.short}: ${format(data.gaps[i][j])}`, i === j))));
  const center = make("tr", { className: "center" }, make("th", { scope: "row" }, "the center"),
    ...models.map((model, i) => cell(data.centers[i],
      `${model.short} and the center: ${format(data.centers[i])}`, false)));
  const heads = models.map((m) => make("th", { scope: "col", title: m.name }, m.short));
  byId("gaps").append(make("thead", {}, make("tr", {}, make("td"), ...heads)),
    make("tbody", {}, ...body, center));
}

// --- table of tensors ---------------------------------------------------------------------------

const filters = byId("filters");
const rejections = (tensor) => tensor.rejected.reduce((sum, count) => sum + count, 0);
const columns = [
  { title: "Tensor", key: (_, i) => i, up: true },
  ...models.map((model, m) => ({ title: model.short, name: model.name, key: (t) => t.weight[m] })),
  { title: "Disagreement", key: (t) => t.disagreement },
  { title: "Rejected", key: (t) => rejections(t) },
  { title: "Shape", key: (t) => t.shape.reduce((product, size) => product * size, 1), text: true },
];
tensors.forEach((tensor, i) => { tensor.keys = columns.map((column) => column.key(tensor, i)); });
const sorting = { column: 0, up: true };
const open = new Set();
let limit = FIRST_ROWS;

function visible() {
  const { text, layer, kind, rejected } = filters.elements;
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = tensors.filter((t) =>
    words.every((word) => t.name.toLowerCase().includes(word))
    && (!layer.value || String(t.layer ?? "outside") === layer.value)
    && (!kind.value || t.kind === Number(kind.value))
    && (!rejected.value || (rejected.value === "any" ? rejections(t) > 0
      : t.rejected[Number(rejected.value)] > 0)));
  const { column, up } = sorting;
  // what has no number comes last in both directions
  return shown.sort((a, b) => {
    const [x, y] = [a.keys[column], b.keys[column]];
    if (x === null || y === null) return (x === null) - (y === null);
    return up ? x - y : y - x;
  });
}

function weightCell(tensor, m) {
  const value = tensor.weight[m];
  if (value === null) return make("td", {}, tensor.passed?.includes(models[m].name) ? "all" : "–");
  const mark = make("i", {}, value < REJECTED ? "×" : "");
  tint(mark, value);
  const cell = make("td", {}, make("span", { className: "w" }, mark, weightText(value)));
  if (tensor.low && tensor.low[m] !== tensor.high[m]) {
    cell.append(make("small", {}, `${tensor.low[m].toFixed(2)}–${tensor.high[m].toFixed(2)}`));
  }
  return cell;
}

function row(tensor) {
  const expanded = open.has(tensor.name);
  const button = make("button", { type: "button", "aria-expanded": expanded }, tensor.name);
  button.addEventListener("click", () => toggle(tensor, button));
  const count = rejections(tensor);
  const all = tensor.problems > 1 ? ` of ${tensor.problems * models.length}` : "";
  const cells = [
    make("th", { scope: "row" }, button),
    ...models.map((_, m) => weightCell(tensor, m)),
    make("td", {}, tensor.problems ? format(tensor.disagreement) : "passed through"),
    make("td", {}, count ? `${count}${all}` : "0"),
    make("td", { className: "text" }, tensor.shape.join(" × ")),
  ];
  const line = make("tr", { className: "row", "data-name": tensor.name }, ...cells);
  return expanded ? [line, detail(tensor)] : [line];
}

function toggle(tensor, button) {
  const line = button.closest("tr");
  const opening = !open.has(tensor.name);
  button.setAttribute("aria-expanded", opening);
  if (opening) {
    open.add(tensor.name);
    line.after(detail(tensor));
  } else {
    open.delete(tensor.name);
    line.nextElementSibling.remove();
  }
}

function detail(tensor) {
  const sheet = make("div", { className: "sheet" });
  const integer = (value) => String(value);
  const facts = [tensor.dtype];
  if (tensor.problems > 1) facts.push(`${tensor.problems} merges, one per expert; numbers are means`);
  for (const [title, span, text] of [["rank", tensor.rank, integer], ["energy", tensor.energy, format],
    ["λ", tensor.scale, format], ["recall strength", tensor.strength, format],
    ["condition number below", tensor.condition, format], ["iterations", tensor.iterations, integer]]) {
    if (span) facts.push(`${title} ${spanText(span, text)}`);
  }
  for (const kind of tensor.found) facts.push(kind.replaceAll("_", " "));
  for (const [name, value] of Object.entries(tensor.options ?? {})) facts.push(`${name}: ${value}`);
  if (tensor.passed) facts.push(`taken from ${tensor.passed.join(", ")}`);
  sheet.append(make("p", { className: "facts" }, facts.join(" · ")));
  if (tensor.problems) {
    const shown = tensor.quantities.map((values, q) => ({ title: data.quantities[q], values }))
      .filter(({ values }) => values.some((value) => value !== null));
    const heads = ["", ...shown.map(({ title }) => title), "share of the center", "norm", "rejected in"];
    const lines = models.map((model, m) => (tensor.norm[m] === null ? null : make("tr", {},
      make("th", { scope: "row", title: model.name }, model.short),
      ...[...shown.map(({ values }) => format(values[m])), format(tensor.center[m]),
        tensor.norm[m].toPrecision(4), `${tensor.rejected[m]} of ${tensor.problems}`]
        .map((text) => make("td", {}, text)))));
    sheet.append(make("div", { className: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...lines.filter(Boolean)))));
  }
  if (tensor.strip.length) sheet.append(strips(tensor));
  return make("tr", { className: "detail" }, make("td", { colSpan: columns.length }, sheet));
}

/** The weights of packed experts, a line per model, or two where gate and up merge apart. */
function strips(tensor) {
  const parts = tensor.problems === 2 * tensor.shape[0] ? ["gate", "up"] : [""];
  const grid = make("div", { className: "strips" });
  models.forEach((model, m) => parts.forEach((part, p) => {
    const strip = make("div", { className: "strip" });
    for (let problem = p; problem < tensor.problems; problem += parts.length) {
      const value = tensor.strip[problem * models.length + m];
      if (value === null) continue;
      const label = `${model.short}, expert ${Math.floor(problem / parts.length)} ${part}`;
      const cell = make("i", { "data-tip": `${label}: ${(value / 1000).toFixed(3)}` },
        value / 1000 < REJECTED ? "×" : "");
      tint(cell, value / 1000);
      strip.append(cell);
    }
    if (strip.childElementCount) grid.append(make("span", {}, `${model.short} ${part}`), strip);
  }));
  return grid;
}

function drawTable() {
  const shown = visible();
  byId("tensors").tBodies[0].replaceChildren(...shown.slice(0, limit).flatMap(row));
  const number = (value) => value.toLocaleString("en");
  byId("count").textContent = shown.length === tensors.length ? number(tensors.length)
    : `${number(shown.length)} of ${number(tensors.length)}`;
  byId("more").hidden = shown.length <= limit;
  byId("more").textContent = `Show all ${number(shown.length)}`;
  [...byId("tensors").tHead.rows[0].cells].forEach((head, i) => {
    if (i !== sorting.column) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", sorting.up ? "ascending" : "descending");
  });
}

function startTable() {
  const heads = columns.map((column, i) => {
    const button = make("button", { type: "button", title: column.name ?? "" }, column.title);
    button.addEventListener("click", () => {
      sorting.up = sorting.column === i ? !sorting.up : Boolean(column.up);
      sorting.column = i;
      drawTable();
    });
    return make("th", { scope: "col", className: column.text ? "text" : "" }, button);
  });
  byId("tensors").tHead.append(make("tr", {}, ...heads));
  const { text, layer, kind, rejected } = filters.elements;
  const option = (value, text) => make("option", { value }, text);
  layer.append(...data.weights.layers.map((number) => option(number, number)));
  if (data.weights.outside.length) layer.append(option("outside", "outside"));
  kind.append(...data.kinds.map((name, i) => option(i, name)));
  rejected.append(option("any", "any model"), ...models.map((model, m) => option(m, model.short)));
  const narrow = () => { limit = FIRST_ROWS; drawTable(); };
  text.addEventListener("input", narrow);
  for (const select of [layer, kind, rejected]) select.addEventListener("change", narrow);
  filters.addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => { filters.reset(); narrow(); });
  byId("more").addEventListener("click", () => { limit = Infinity; drawTable(); });
  for (const button of document.querySelectorAll("[data-tensor]")) {
    button.addEventListener("click", () => {
      filters.reset();
      filters.elements.text.value = button.dataset.tensor;
      open.add(button.dataset.tensor);
      drawTable();
      byId("all").scrollIntoView();
    });
  }
}

for (const button of document.querySelectorAll("[data-map]")) {
  button.addEventListener("click", () => drawMaps(button.dataset.map));
}
new ResizeObserver(arrange).observe(document.body);
drawRamp();
drawMaps("weights");
drawGaps();
startTable();
drawTable();
