// One tensor of the table, opened: its numbers, and packed experts one by one.

function detail(tensor) {
  const sheet = make("div", { className: "sheet" });
  const integer = (value) => String(value);
  const facts = [tensor.dtype];
  if (tensor.problems > 1) facts.push(`${tensor.problems} merges, one per expert; numbers are means`);
  for (const [title, span, text] of [["rank", tensor.rank, integer], ["energy", tensor.energy, format],
    ["λ", tensor.scale, format], ["recall strength", tensor.strength, format],
    ["condition number below", tensor.condition, format], ["changed by rounding", tensor.rounding, percent],
    ["iterations", tensor.iterations, integer]]) {
    if (span) facts.push(`${title} ${spanText(span, text)}`);
  }
  for (const kind of tensor.found) facts.push(kind.replaceAll("_", " "));
  for (const [name, value] of Object.entries(tensor.options ?? {})) facts.push(`${name}: ${value}`);
  if (tensor.passed) facts.push(`taken from ${tensor.passed.join(", ")}`);
  sheet.append(make("p", { className: "facts" }, facts.join(" · ")));
  if (tensor.problems) {
    const shown = tensor.quantities.map((values, q) => ({ ...data.quantities[q], values }))
      .filter(({ values }) => values.some((value) => value !== null));
    const heads = ["", ...shown.map(({ title }) => title), "share of the center", "norm", "rejected in"];
    const lines = models.map((model, m) => (tensor.norm[m] === null ? null : make("tr", {},
      make("th", { scope: "row", title: model.name }, model.short),
      ...[...shown.map((each) => (each.percent ? percent : format)(each.values[m])), format(tensor.center[m]),
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
      tint(cell, "weights", value / 1000);
      strip.append(cell);
    }
    if (strip.childElementCount) grid.append(make("span", {}, `${model.short} ${part}`), strip);
  }));
  return grid;
}
