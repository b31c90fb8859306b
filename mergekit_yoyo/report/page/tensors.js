// The table of all tensors: filters, sorting, rows.

const tensors = data.tensors.map((values) =>
  Object.fromEntries(data.fields.map((field, i) => [field, values[i]])));
const FIRST_ROWS = 200; // the rest on demand
const filters = byId("filters");
const rejections = (tensor) => tensor.rejected.reduce((sum, count) => sum + count, 0);
const columns = [
  { title: "Tensor", key: (_, i) => i, up: true },
  ...models.map((model, m) => ({ title: model.short, name: model.name, key: (t) => t.weight[m] })),
  { title: "Disagreement, %", key: (t) => t.disagreement },
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
  tint(mark, "weights", value);
  const cell = make("td", {}, make("span", { className: "w" }, mark, weightText(value)));
  if (tensor.low && tensor.low[m] !== tensor.high[m]) {
    cell.append(make("small", {}, `${tensor.low[m].toFixed(2)}–${tensor.high[m].toFixed(2)}`));
  }
  return cell;
}

const points = (value) => (value === null ? "–" : (100 * value).toFixed(2));

function row(tensor) {
  const expanded = open.has(tensor.name);
  const button = make("button", { type: "button", "aria-expanded": expanded }, tensor.name);
  button.addEventListener("click", () => toggle(tensor, button));
  const count = rejections(tensor);
  const all = tensor.problems > 1 ? ` of ${tensor.problems * models.length}` : "";
  const cells = [
    make("th", { scope: "row" }, button),
    ...models.map((_, m) => weightCell(tensor, m)),
    make("td", {}, tensor.problems ? points(tensor.disagreement) : "passed through"),
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
  layer.append(...data.maps[0].layers.map((number) => option(number, number)));
  if (data.maps[0].outside.length) layer.append(option("outside", "outside"));
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

byId("maps").addEventListener("choose", ({ detail: { layer, kind } }) => {
  filters.reset();
  Object.assign(filters.elements.layer, { value: layer });
  Object.assign(filters.elements.kind, { value: data.kinds.indexOf(kind) });
  drawTable();
  byId("all").scrollIntoView();
});
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.setProperty("--box", `${target.clientWidth}px`);
}).observe(byId("tensors").parentElement);
startTable();
drawTable();
