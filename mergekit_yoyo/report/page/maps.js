// Heat maps: a quantity, or its change, by layer and kind of module, one map a model.

const cellOf = (grid, map, model, kind, layer) => (layer === null
  ? grid.outsideValues[model][map.outside.indexOf(kind)]
  : grid.values[model][map.kinds.indexOf(kind)][map.layers.indexOf(layer)]);

/** A number in a cell, as short as it can be. */
function short(value, { percent: inPercent, signed, scales }) {
  const number = inPercent ? 100 * value : value;
  const fine = signed && scales[0].high < 0.02 ? 1 : 0;
  const digits = inPercent ? (Math.abs(number) < 9.95 ? 1 : 0) + fine : 2;
  const text = number.toFixed(digits);
  if (Number(text) === 0) return "0";
  const plus = signed && number > 0 ? "+" : "";
  return plus + (Math.abs(number) < 1 ? text.replace("0.", ".") : text).replace("-", "−");
}

function told(map, model, kind, layer) {
  const text = map.percent ? percent : format;
  const values = (map.sides.length ? map.sides : [map])
    .map((grid) => cellOf(grid, map, model, kind, layer));
  if (values.includes(null)) return null;
  const rejected = map.key === "weights" && values.at(-1) < REJECTED ? ", rejected" : "";
  return `${map.title} ${values.map(text).join(" → ")}${rejected}`;
}

function mapCell(model, kind, layer, map) {
  const value = cellOf(map, map, model, kind, layer);
  if (value === null) return make("td", { className: "none" });
  const rejected = map.key === "weights" && !map.signed && value < REJECTED;
  const written = layer === null || map.layers.length <= WRITTEN_LAYERS;
  const where = `${layer === null ? "" : `layer ${layer} `}${kind}`;
  const lines = data.maps.map((each) => told(each, model, kind, layer)).filter(Boolean);
  const text = [models[model].short, where, ...lines].join("\n");
  const cell = make("td", {
    tabIndex: -1, "data-tip": text, "aria-label": text.replaceAll("\n", ", "),
    "data-kind": kind, "data-layer": layer ?? "outside", "data-value": value,
  }, rejected ? "×" : written ? short(value, map) : "");
  tint(cell, map.key, value);
  return cell;
}

function outerRow(model, kind, map, edge) {
  const cell = mapCell(model, kind, null, map);
  cell.colSpan = Math.max(1, map.layers.length);
  return make("tr", { className: edge }, make("th", { scope: "row", title: kind }, kind), cell);
}

function drawMap(model, map) {
  const body = make("tbody");
  const [above, below] = [map.outside.slice(0, map.before), map.outside.slice(map.before)];
  for (const kind of above) body.append(outerRow(model, kind, map, ""));
  map.kinds.forEach((kind, i) => {
    const cells = map.layers.map((layer) => mapCell(model, kind, layer, map));
    const edge = i === 0 && above.length ? "edge" : "";
    body.append(make("tr", { className: edge }, make("th", { scope: "row", title: kind }, kind), ...cells));
  });
  below.forEach((kind, i) => {
    body.append(outerRow(model, kind, map, i === 0 && map.kinds.length ? "edge" : ""));
  });
  const step = map.layers.length > WRITTEN_LAYERS ? 4 : 1;
  const numbers = map.layers.map((layer, i) =>
    make("th", { scope: "col", "aria-label": `layer ${layer}` }, i % step ? "" : `${layer}`));
  const corner = make("th", { className: "corner" }, map.layers.length ? "layer" : "");
  const table = make("table", { className: "map", "data-model": model },
    make("thead", {}, make("tr", {}, corner, ...numbers)), body);
  table.setAttribute("aria-label", `${models[model].short}: ${map.title} by layer and module`);
  table.style.setProperty("--cell", map.layers.length > WRITTEN_LAYERS ? "17px" : "30px");
  const first = table.querySelector("td[data-tip]");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", walk);
  table.addEventListener("click", (event) => choose(event.target.closest("td[data-tip]")));
  return make("figure", {},
    make("h3", { title: models[model].name }, models[model].short),
    make("div", { className: "scroll" }, table));
}

/** Arrow keys walk over the cells of a map, Enter chooses one. */
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

/** Whoever shows more of a place listens on `#maps`. */
function choose(cell) {
  if (cell) byId("maps").dispatchEvent(new CustomEvent("choose", { detail: { ...cell.dataset } }));
}

function drawMaps(key) {
  const map = data.maps.find((each) => each.key === key);
  byId("map-note").textContent = map.note;
  byId("map-legend").dataset.legend = key;
  drawLegend(byId("map-legend"));
  // an anchor that was not weighed has no map
  const drawn = models.map((_, model) => model).filter((model) =>
    [map.values[model], map.outsideValues[model]].flat(2).some((v) => v !== null));
  byId("maps").replaceChildren(...drawn.map((model) => drawMap(model, map)));
  for (const button of document.querySelectorAll("[data-map]")) {
    button.setAttribute("aria-pressed", button.dataset.map === key);
  }
  arrange(map.layers.length);
}

/** As many maps side by side as fit, in rows of equal length. */
function arrange(layers = data.maps[0].layers.length) {
  const needed = 170 + layers * (layers > WRITTEN_LAYERS ? 18 : 31);
  const fit = Math.max(1, Math.floor((byId("maps").clientWidth + 32) / (needed + 32)));
  const count = Math.max(1, byId("maps").childElementCount);
  byId("maps").style.setProperty("--across", Math.ceil(count / Math.ceil(count / fit)));
}

if (data.maps.length) {
  for (const button of document.querySelectorAll("[data-map]")) {
    button.addEventListener("click", () => drawMaps(button.dataset.map));
  }
  markStretch();
  drawMaps(data.maps[0].key);
  new ResizeObserver(() => arrange()).observe(document.body);
}
