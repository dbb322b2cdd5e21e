// The page: what the visitor has chosen, the controls that choose it, and the panels that show it.

"use strict";

const chosen = {
  place: null, // of the patch, x and y from 0 to 1; null for [CLS]
  rule: "mean",
  amounts: { mean: 1, mass: 0.6, entries: 0.6 },
  view: "map",
};
const SLIDERS = {
  mean: { min: 0.2, max: 4, step: 0.05, text: (x) => `above ${x.toFixed(2)} × the mean` },
  mass: { min: 0.02, max: 1, step: 0.01, text: (x) => `patches with ${(100 * x).toFixed(0)}% of the attention` },
  entries: { min: 0.02, max: 1, step: 0.01, text: (x) => `the top ${(100 * x).toFixed(0)}% of the patches` },
};
let panels = [];
const photo = new Image();

function byId(id) {
  return document.getElementById(id);
}

/** Takes what was chosen, in a panel or by a control, and draws what it changes. */
function choose({ panel, layer, head, view, at }) {
  const changed = panels.filter((one) => !panel || one === panel || byId("together").checked);
  for (const one of changed) {
    if (layer !== undefined) one.layer = Math.min(layer, one.reading.layers - 1);
    // The mean of the heads comes after them, however many there are.
    if (head !== undefined) one.head = head === panel.reading.heads ? one.reading.heads : Math.min(head, one.reading.heads - 1);
  }
  if (view) setView(view);
  else if (head !== undefined && chosen.view === "colours") setView("map");
  if (at !== undefined) chosen.place = at;
  if (at !== undefined) panels.forEach((one) => drawSmall(one, chosen.place));
  draw();
}

function setView(view) {
  chosen.view = view;
  document.querySelector(`input[name=view][value=${view}]`).checked = true;
}

/** Draws everything but the small maps, which only another token changes. */
function draw() {
  const amount = chosen.amounts[chosen.rule];
  byId("amount-text").textContent = SLIDERS[chosen.rule].text(amount);
  byId("cls").setAttribute("aria-pressed", String(chosen.place === null));
  for (const panel of panels) {
    drawLarge(panel, photo, { ...chosen, amount });
    markCells(panel, chosen.view);
    writeNumbers(panel);
  }
}

function setSlider() {
  const slider = byId("amount");
  const { min, max, step } = SLIDERS[chosen.rule];
  Object.assign(slider, { min, max, step, value: chosen.amounts[chosen.rule] });
}

/** Shows a photograph with its readings, unpacked. */
async function showPhotograph({ name, picture, readings }) {
  photo.src = picture.data;
  await photo.decode();
  chosen.place = null;
  document.title = `${name}: ${readings.map((reading) => reading.model).join(", ")}`;
  byId("name").textContent = name;
  panels = readings.map((reading) => makePanel(reading, picture, choose));
  byId("panels").replaceChildren(...panels.map((panel) => panel.root));
  byId("panels").dataset.count = String(panels.length);
  byId("together-label").hidden = panels.length < 2;
  panels.forEach((panel) => drawSmall(panel, null));
  draw();
}

function savePicture() {
  const style = getComputedStyle(document.body);
  const parts = panels.map((panel) => ({
    title: panel.reading.model,
    caption: panel.caption.textContent.split(/(?<=\.) (?=The mask)/),
    labels: columnNames(panel.reading),
    large: panel.large,
    small: panel.cells.map((row) => row.map((button) => button.firstChild)),
  }));
  sheetOf(parts, style.backgroundColor, style.color).toBlob((blob) => {
    const link = element("a", { href: URL.createObjectURL(blob), download: `${byId("name").textContent}.view.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

function switchTheme() {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

function listen() {
  for (const radio of document.querySelectorAll("input[name=view]"))
    radio.addEventListener("change", () => choose({ view: radio.value }));
  for (const radio of document.querySelectorAll("input[name=rule]"))
    radio.addEventListener("change", () => {
      chosen.rule = radio.value;
      setSlider();
      draw();
    });
  byId("amount").addEventListener("input", () => {
    chosen.amounts[chosen.rule] = Number(byId("amount").value);
    draw();
  });
  byId("cls").addEventListener("click", () => choose({ at: null }));
  byId("theme").addEventListener("click", switchTheme);
  byId("png").addEventListener("click", savePicture);
  setSlider();
}

/** The photographs that are in the file itself, with a list to choose from if there are several. */
function showOwnData() {
  const { photographs } = JSON.parse(byId("data").textContent);
  const show = (index) =>
    showPhotograph({ ...photographs[index], readings: photographs[index].readings.map(unpackReading) });
  const list = byId("photographs");
  list.append(...photographs.map(({ name }, index) => element("option", { value: String(index) }, name)));
  list.parentElement.hidden = photographs.length < 2;
  list.addEventListener("change", () => show(Number(list.value)));
  show(0);
}

listen();
if (byId("data")) showOwnData();
