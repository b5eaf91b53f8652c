// Build elements of the page. Text goes through textContent alone, so that no response of a model
// becomes markup.
"use strict";
const ballast = { payload: JSON.parse(document.getElementById("payload").textContent) };

ballast.el = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== "") element.append(child);
  }
  return element;
};

// A number as a person reads it: four digits, thousands apart, a power of ten for the very small.
ballast.number = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
};

ballast.counted = (count, noun) => `${ballast.number(count)} ${noun}${count === 1 ? "" : "s"}`;

ballast.seconds = (value) => {
  if (value === null || value === undefined) return "–";
  if (value < 120) return `${ballast.number(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
};

ballast.percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

// Control characters as their pictures, so that they are seen and move nothing.
ballast.visible = (text) =>
  // oxlint-disable-next-line no-control-regex -- they are what must become visible
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (character) => {
    const code = character.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });

ballast.table = (heads, rows) => {
  const { el } = ballast;
  const cell = (value) =>
    el("td", { class: typeof value === "number" ? "number" : null },
      typeof value === "number" ? ballast.number(value) : value);
  return el("div", { class: "scroll" }, el("table", null,
    el("thead", null, el("tr", null, heads.map((head) => el("th", null, head)))),
    el("tbody", null, rows.map((row) => el("tr", null, row.map(cell))))));
};

ballast.choice = (label, id, options, change) => {
  const { el } = ballast;
  const select = el("select", { id, onchange: () => change(select.value) },
    options.map(([value, text]) => el("option", { value }, text)));
  return el("label", null, label, select);
};

ballast.legend = (pairs) => ballast.el("div", { class: "legend" },
  pairs.map(([color, text]) => ballast.el("span", null,
    ballast.el("i", { style: `background:${color}` }), text)));

ballast.css = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();
ballast.color = (place) => `var(--c${place % 7})`;
ballast.several = ballast.payload.runs.length > 1;
ballast.section = (id) => document.getElementById(id);
// The name of a run before what is said of it, where the page is about several.
ballast.runHeading = (run) =>
  ballast.several ? ballast.el("h3", null, run.name) : null;
