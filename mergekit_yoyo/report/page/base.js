"use strict";
// The data of the page, and how elements and numbers are made.

const data = JSON.parse(document.getElementById("data").textContent);
const models = data.models;
const REJECTED = data.least;
const WRITTEN_LAYERS = 12; // cells of a map with at most so many layers hold their number
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
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(2)} %`);
const weightText = (value) => (value === null ? "–" : value.toFixed(3));
const spanText = ([low, high], text) => (low === high ? text(low) : `${text(low)} to ${text(high)}`);
