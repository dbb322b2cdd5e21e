// A panel: what one model sees, as one large picture, small maps of all layers and heads, and numbers of the layer.

"use strict";

const STATES = { tokens: "before attention", compressed: "after attention", output: "after coding" };
const QUANTITIES = {
  subspace_coding_rate: ["Coding rate Rc", "on the layer's subspaces, nats a token: MSSA lowers it", (x) => x.toFixed(2)],
  coding_rate: ["Coding rate R", "of all tokens, nats a token", (x) => x.toFixed(2)],
  l0: ["Not zero", "share of the entries: ISTA lowers it", (x) => percentage(x)],
};

/** Makes an element: its attributes, or properties where it has them, and what is in it. */
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key === "className" ? "class" : key, value);
  }
  made.append(...children);
  return made;
}

/** A panel of a reading; `choose` is called with what the visitor chooses in it: layer, head, view, or patch. */
function makePanel(reading, picture, choose) {
  const panel = { reading, layer: reading.start.layer, head: reading.start.head, picture };
  panel.large = largeCanvas(panel, choose);
  panel.caption = element("p", { className: "caption", "aria-live": "polite" });
  panel.scale = element("span", { className: "scale" });
  panel.under = element("span", {});
  panel.cells = smallCells(panel, choose);
  panel.numbers = element("div", { className: "numbers" });
  const [rows, columns] = reading.grid;
  panel.root = element(
    "article",
    { className: "panel", "aria-label": reading.model },
    element("h2", {}, reading.model),
    element("p", { className: "facts" }, `${reading.layers} layers of ${reading.heads} heads, ${rows} × ${columns} patches`),
    element("div", { className: "seen" }, panel.large, panel.caption, underneath(panel)),
    element("div", { className: "inside" }, smallTable(panel), ...leftOut(reading), panel.numbers),
  );
  return panel;
}

/** A line that only eyes need: the scale of the map, and the value under the pointer. */
function underneath(panel) {
  return element("p", { className: "under", "aria-hidden": "true" }, panel.scale, panel.under);
}

function leftOut(reading) {
  const missing = reading.rows.flatMap((rows, layer) => (rows ? [] : [layer]));
  if (!missing.length) return [];
  const text =
    `Left out, to keep this file small: what patches attend to in layer${missing.length > 1 ? "s" : ""} ` +
    `${missing.join(", ")}. [CLS] is there in all. A larger --megabytes keeps more.`;
  return [element("p", { className: "left-out" }, text)];
}

function largeCanvas(panel, choose) {
  const { width, height } = panel.picture;
  const scale = 1280 / Math.max(width, height); // sharp lines, however small the photograph
  const canvas = element("canvas", {
    className: "large",
    tabIndex: 0,
    role: "application",
    "aria-roledescription": "grid of patches",
    "aria-label": `Photograph as ${panel.reading.model} sees it. Arrow keys choose a patch, Escape goes back to [CLS].`,
    width: Math.round(width * scale),
    height: Math.round(height * scale),
  });
  canvas.style.maxWidth = `calc(75vh * ${width / height})`; // all of it fits the window
  canvas.addEventListener("click", (event) => choose({ at: placeOf(event, canvas) }));
  canvas.addEventListener("keydown", (event) => moveByKey(event, panel, choose));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons === 1 && event.pointerType === "mouse") choose({ at: placeOf(event, canvas) }); // dragging
    tellUnder(event, panel);
  });
  canvas.addEventListener("pointerleave", () => (panel.under.textContent = ""));
  return canvas;
}

/** Where on the picture a pointer is: x and y from 0 to 1. */
function placeOf(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const share = (value, length) => Math.min(Math.max(value / length, 0), 0.999999);
  return { x: share(event.clientX - box.left, box.width), y: share(event.clientY - box.top, box.height) };
}

function patchAt(place, [rows, columns]) {
  return place === null ? null : Math.floor(place.y * rows) * columns + Math.floor(place.x * columns);
}

function middleOf(patch, [rows, columns]) {
  return { x: ((patch % columns) + 0.5) / columns, y: (Math.floor(patch / columns) + 0.5) / rows };
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function moveByKey(event, panel, choose) {
  const [rows, columns] = panel.reading.grid;
  if (event.key === "Escape") choose({ at: null });
  if (!STEPS[event.key]) return;
  event.preventDefault();
  const clamp = (value, length) => Math.min(Math.max(value, 0), length - 1);
  const from = panel.patch ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
  const step = panel.patch === null ? [0, 0] : STEPS[event.key]; // the first key begins in the middle
  const row = clamp(Math.floor(from / columns) + step[0], rows);
  const column = clamp((from % columns) + step[1], columns);
  choose({ at: middleOf(row * columns + column, panel.reading.grid) });
}

function tellUnder(event, panel) {
  const map = shownMap(panel);
  const patch = patchAt(placeOf(event, panel.large), panel.reading.grid);
  panel.under.textContent = map ? `${placeText(patch, panel.reading.grid)}: ${percent(map[patch])}` : "";
}

function placeText(patch, [, columns]) {
  return `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
}

/** Of small shares, as those of attention are. */
function percent(share) {
  return (100 * share).toFixed(share < 0.1 ? 2 : 1) + "%";
}

function percentage(share) {
  return (100 * share).toFixed(0) + "%";
}

function headName(reading, head) {
  return head < reading.heads ? `head ${head}` : "mean of the heads";
}

/** Buttons with small maps, layer by layer: the heads, their mean, and the colours of the tokens. */
function smallCells(panel, choose) {
  const { layers, heads } = panel.reading;
  const rows = [];
  for (let layer = 0; layer < layers; layer++) {
    const row = [];
    for (let column = 0; column <= heads + 1; column++) {
      const colours = column > heads;
      const name = colours ? "colours of the tokens" : headName(panel.reading, column);
      const button = element(
        "button",
        { type: "button", "aria-label": `layer ${layer}, ${name}`, title: `layer ${layer}, ${name}`, tabIndex: -1 },
        element("canvas", { "aria-hidden": "true" }),
      );
      const chosen = colours ? { layer, view: "colours" } : { layer, head: column };
      button.addEventListener("click", () => choose({ ...chosen, panel }));
      button.addEventListener("keydown", (event) => walkCells(event, panel, layer, column));
      row.push(button);
    }
    rows.push(row);
  }
  return rows;
}

function walkCells(event, panel, layer, column) {
  const step = STEPS[event.key];
  const next = step && panel.cells[layer + step[0]]?.[column + step[1]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function smallTable(panel) {
  const { heads } = panel.reading;
  const names = columnNames(panel.reading).map((name) => (heads > 4 ? name.replace("head ", "") : name));
  const header = ["layer", ...names].map((name) => element("th", { scope: "col" }, name));
  const rows = panel.cells.map((row, layer) =>
    element("tr", {}, element("th", { scope: "row" }, String(layer)), ...row.map((button) => element("td", {}, button))),
  );
  const table = element(
    "table",
    { className: "small", "aria-label": `Maps of ${panel.reading.model}; arrow keys move, Enter chooses` },
    element("thead", {}, element("tr", {}, ...header)),
    element("tbody", {}, ...rows),
  );
  table.style.minWidth = `calc(3rem + ${names.length} * 2.2rem)`; // of many heads, it scrolls
  return element("div", { className: "scroll" }, table);
}

function columnNames({ heads }) {
  return [...[...Array(heads).keys()].map((head) => `head ${head}`), "mean", "colours"];
}

function shownMap(panel) {
  return panel.maps[panel.layer]?.[panel.head] ?? null;
}

/** Computes the maps of the chosen token and draws the small ones. */
function drawSmall(panel, place) {
  const { reading } = panel;
  panel.patch = patchAt(place, reading.grid);
  panel.maps = panel.cells.map((_, layer) => layerMaps(reading, layer, panel.patch));
  panel.cells.forEach((row, layer) =>
    row.forEach((button, column) => {
      const map = panel.maps[layer]?.[column];
      const absent = column <= reading.heads && !map;
      button.classList.toggle("absent", absent);
      const [rows, columns] = reading.grid;
      const pixels = absent ? new ImageData(columns, rows) : map ? heatPixels(map, columns) : colourPixels(reading, layer);
      paintPixels(button.firstChild, pixels);
    }),
  );
}

/** Marks the chosen cell; it is the one that the tab key comes to. */
function markCells(panel, view) {
  panel.cells.forEach((row, layer) =>
    row.forEach((button, column) => {
      const chosen = layer === panel.layer && column === (view === "colours" ? row.length - 1 : panel.head);
      button.setAttribute("aria-pressed", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }),
  );
}

/** How much of a map hides the photograph beneath it: the more, the more attention. */
function overPhoto(share) {
  return 0.4 + 0.5 * Math.sqrt(share);
}

/** Draws the large picture and says what is on it. */
function drawLarge(panel, image, { view, rule, amount }) {
  const { reading, layer, patch } = panel;
  const context = panel.large.getContext("2d");
  const map = shownMap(panel);
  const kept = map && keptPatches(map, rule, amount);
  paintPhoto(context, image, view === "map");
  if (view === "colours") paintBlocks(context, colourPixels(reading, layer));
  if (view === "map" && map) paintBlocks(context, heatPixels(map, reading.grid[1], overPhoto));
  if (view === "mask" && map) paintOutside(context, kept, reading.grid);
  if (map) paintEdge(context, kept, reading.grid);
  if (patch !== null) paintMark(context, patch, reading.grid);
  panel.caption.textContent = captionOf(panel, map, kept);
  writeScale(panel, view === "map" ? map : null);
}

function writeScale(panel, map) {
  const ends = map && [Math.min, Math.max].map((choice) => percent(map.reduce((a, b) => choice(a, b))));
  panel.scale.replaceChildren(...(ends ? [ends[0], element("i", {}), ends[1]] : []));
}

function captionOf(panel, map, kept) {
  const { reading, layer, head, patch } = panel;
  const token = patch === null ? "[CLS]" : `the patch in ${placeText(patch, reading.grid)}`;
  const where = `layer ${layer}, ${headName(reading, head)}`;
  if (!map) return `${where}: what patches attend to here was left out of this file; [CLS] is there.`;
  const most = map.indexOf(map.reduce((a, b) => Math.max(a, b), -Infinity));
  const inside = kept.filter(Boolean).length / kept.length;
  return (
    `${where}: ${token} attends most to ${placeText(most, reading.grid)} (${percent(map[most])}). ` +
    `The mask covers ${percentage(inside)} of the photograph.`
  );
}

/** Rates and sparsity of the chosen layer, and a line through all layers beside each. */
function writeNumbers(panel) {
  const { reading, layer } = panel;
  const header = ["", ...Object.values(STATES), "after coding, by layer"].map((name) => element("th", { scope: "col" }, name));
  const rows = Object.entries(QUANTITIES).map(([quantity, [name, meaning, text]]) => {
    const measured = reading.measures[quantity];
    const cells = Object.keys(STATES).map((state) => element("td", {}, text(measured[state][layer])));
    const label = element("th", { scope: "row" }, name, element("small", {}, meaning));
    return element("tr", {}, label, ...cells, element("td", {}, sparkline(measured.output, layer, name)));
  });
  const table = element(
    "table",
    {},
    element("caption", {}, `Layer ${layer} in numbers`),
    element("thead", {}, element("tr", {}, ...header)),
    element("tbody", {}, ...rows),
  );
  panel.numbers.replaceChildren(element("div", { className: "scroll" }, table), ...namesOf(reading));
}

function namesOf(reading) {
  if (!reading.names.length) return [];
  const names = reading.names.map(([name, share]) => `${name} ${share < 0.01 ? percent(share) : percentage(share)}`);
  return [element("p", { className: "names" }, `Taken for: ${names.join(", ")}.`)];
}

const SVG = "http://www.w3.org/2000/svg";

function sparkline(values, chosen, name) {
  const [width, height, edge] = [120, 32, 5];
  const least = Math.min(...values);
  const range = Math.max(...values) - least || 1;
  const x = (layer) => edge + (layer / Math.max(values.length - 1, 1)) * (width - 2 * edge);
  const y = (value) => height - edge - ((value - least) / range) * (height - 2 * edge);
  const drawing = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  drawing.setAttribute("aria-label", `${name} by layer: ${values.map((value) => value.toFixed(2)).join(", ")}`);
  drawing.append(
    svgElement("polyline", { points: values.map((value, layer) => `${x(layer)},${y(value)}`).join(" ") }),
    svgElement("circle", { cx: x(chosen), cy: y(values[chosen]), r: 4 }),
  );
  return drawing;
}

function svgElement(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
