// Palettes and scales: the color of a number, again when the theme or the scale changes.

const dark = matchMedia("(prefers-color-scheme: dark)");
let stretch = data.stretch;
const INK = "#1d2733";
const colored = Object.fromEntries([...data.maps, ...(data.gapScale ? [data.gapScale] : [])]
  .map((each) => [each.key, each]));

const channels = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
const stopsOf = (key) => colored[key].palette[dark.matches ? "dark" : "light"];
const scaleOf = (key) => colored[key].scales.at(stretch ? -1 : 0);

/** The place of a value between the first color and the last, from 0 to 1. */
function shareOf(value, { low, high, root }) {
  const part = Math.min(Math.max((value - low) / (high - low), 0), 1);
  return root ? Math.sqrt(part) : part;
}

function luminance(color) {
  const [red, green, blue] = color.map((channel) => {
    const c = channel / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
}

/** The color of a share, and one that is readable on it. */
function shade(share, stops) {
  const place = share * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [channels(stops[first]), channels(stops[first + 1])];
  const mixed = from.map((value, i) => Math.round(value + (to[i] - value) * (place - first)));
  const light = luminance(mixed);
  const white = 1.05 / light > light / luminance(channels(INK));
  return { fill: `rgb(${mixed.join(", ")})`, text: white ? "#ffffff" : INK };
}

/** Color an element by its value on the scale of `key`; it keeps both for `repaint`. */
function tint(element, key, value) {
  element.dataset.scale = key;
  element.dataset.shown = value;
  paint(element);
}

function paint(element) {
  const key = element.dataset.scale;
  const share = shareOf(Number(element.dataset.shown), scaleOf(key));
  const { fill, text } = shade(share, stopsOf(key));
  element.dataset.share = share;
  element.style.backgroundColor = fill;
  element.style.color = text;
}

/** A legend: the colors with their numbers, what the ends mean, and whether it is stretched. */
function drawLegend(element) {
  const key = element.dataset.legend;
  const { ends, signed } = colored[key];
  const scale = scaleOf(key);
  const ramp = make("i", { className: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${stopsOf(key).join(", ")})`;
  const ticks = scale.ticks.map(([value, label]) => {
    const tick = make("b", {}, label);
    tick.style.left = `${100 * shareOf(value, scale)}%`;
    return tick;
  });
  const [low, high] = scale.stretched ? ["", ""] : ends;
  const crossed = key === "weights" && !signed ? [make("span", { className: "cross" }, "× rejected")] : [];
  element.replaceChildren(
    ...(scale.stretched ? [make("strong", {}, "stretched")] : []),
    make("span", {}, low), make("span", { className: "scale" }, ramp, ...ticks),
    make("span", {}, high), ...crossed);
}

function repaint() {
  document.querySelectorAll("[data-scale]").forEach(paint);
  document.querySelectorAll("[data-legend]").forEach(drawLegend);
}

dark.addEventListener("change", repaint);
for (const button of document.querySelectorAll("[data-stretch]")) {
  button.addEventListener("click", () => {
    stretch = button.dataset.stretch === "true";
    markStretch();
    repaint();
  });
}

function markStretch() {
  for (const button of document.querySelectorAll("[data-stretch]")) {
    button.setAttribute("aria-pressed", button.dataset.stretch === String(stretch));
  }
}
