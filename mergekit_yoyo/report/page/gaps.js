// Distances between the models, and of each from the center.

function drawGaps() {
  const cell = (value, tipText, self) => {
    if (self) return make("td", { className: "self" }, "·");
    if (value === null) return make("td", { className: "self" }, "–");
    const element = make("td", { "data-tip": tipText }, percent(value));
    tint(element, "gaps", value);
    return element;
  };
  const body = models.map((model, i) => make("tr", {},
    make("th", { scope: "row", title: model.name }, model.short),
    ...models.map((other, j) => cell(data.gaps[i][j],
      `${model.short} and ${other.short}: ${percent(data.gaps[i][j])}`, i === j))));
  const center = make("tr", { className: "center" }, make("th", { scope: "row" }, "the center"),
    ...models.map((model, i) => cell(data.centers[i],
      `${model.short} and the center: ${percent(data.centers[i])}`, false)));
  const heads = models.map((m) => make("th", { scope: "col", title: m.name }, m.short));
  byId("gaps").append(make("thead", {}, make("tr", {}, make("td"), ...heads)),
    make("tbody", {}, ...body, center));
}

drawGaps();
