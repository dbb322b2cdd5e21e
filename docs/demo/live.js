// The live page: a visitor's own photograph, run in the browser by onnxruntime-web, and shown with the page's controls.

"use strict";

const model = JSON.parse(byId("model").textContent);
const SHOWN = 960; // longer side of a photograph on the page, pixels
let session = null;
let current = null; // the photograph: its name and pixels

async function start() {
  say("Loading the model…");
  ort.env.wasm.wasmPaths = new URL("./", location.href).href;
  ort.env.wasm.numThreads = 1; // more need headers that plain hosts of pages do not send
  session = await ort.InferenceSession.create(model.file, { executionProviders: ["wasm"] });
  const sample = await fetch(model.sample);
  await take(new File([await sample.blob()], model.sample));
}

/** Takes a file that the visitor chose, dropped or pasted. */
async function take(file) {
  if (!file || !session) return;
  try {
    current = { name: file.name, pixels: await decodePhoto(file) };
  } catch {
    say(`${file.name} is no photograph that this browser can read.`);
    return;
  }
  await look();
}

async function look() {
  say("Looking…");
  await new Promise((done) => setTimeout(done, 30)); // so that the words are on the screen first
  const began = performance.now();
  const reading = await readPhoto(current.pixels, Number(byId("detail").value));
  await showPhotograph({ name: current.name, picture: shownPhoto(current.pixels, SHOWN), readings: [reading] });
  say(`Seen in ${((performance.now() - began) / 1000).toFixed(1)} s, on this device.`);
}

function say(text) {
  byId("status").textContent = text;
}

/** What the model does with a photograph: the reading that a panel shows, and the logits. */
async function readPhoto(photo, shortSide) {
  const grid = gridOver(photo, model.patch, shortSide);
  const pixels = normalisedPhoto(photo, grid, model);
  const images = new ort.Tensor("float32", pixels, [1, 3, grid[0] * model.patch, grid[1] * model.patch]);
  const found = await session.run({ images });
  const values = Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, tensor.data]));
  return readingOf(values, grid);
}

function readingOf(values, grid) {
  const { name, layers, heads, width, dim, start } = model;
  const prefix = 1; // [CLS]
  const tokens = grid[0] * grid[1] + prefix;
  const rows = layersOf(values.queries, layers).map((queries, layer) => ({
    queries: wholeSteps(queries, heads * tokens),
    keys: wholeSteps(layersOf(values.keys, layers)[layer], heads * tokens),
  }));
  const cls = rows.flatMap((row) =>
    [...Array(heads).keys()].map((head) => attentionRow(row, head, 0, tokens, width, prefix)),
  );
  return {
    model: name,
    grid,
    prefix,
    layers,
    heads,
    width,
    start,
    rows,
    cls: Float64Array.from(cls.flatMap((map) => Array.from(map))),
    colours: Uint8Array.from(
      layersOf(values.output, layers).flatMap((output) => Array.from(principalColours(output, dim, grid))),
    ),
    measures: measuresOf(values, tokens),
    names: likeliest(values.logits, 3),
    logits: values.logits,
  };
}

function layersOf(values, layers) {
  const size = values.length / layers;
  return [...Array(layers).keys()].map((layer) => values.subarray(layer * size, (layer + 1) * size));
}

/** Tokens that were not quantised, in the form of those that were. */
function wholeSteps(values, count) {
  return { steps: values, scales: new Float32Array(count).fill(1) };
}

function measuresOf(values, tokens) {
  const { layers, heads, width, dim } = model;
  const states = Object.keys(STATES);
  const measure = (of) =>
    Object.fromEntries(
      states.map((state, at) => [state, [...Array(layers).keys()].map((layer) => of(layer * states.length + at))]),
    );
  const rate = (grams, at, size) => codingRate(grams.subarray(at * size * size, (at + 1) * size * size), size, tokens);
  return {
    coding_rate: measure((at) => rate(values.grams, at, dim)),
    subspace_coding_rate: measure((at) =>
      [...Array(heads).keys()].reduce((sum, head) => sum + rate(values.head_grams, at * heads + head, width), 0),
    ),
    l0: measure((at) => values.nonzero[at]),
  };
}

function likeliest(logits, count) {
  const shares = softmax(Float64Array.from(logits));
  const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a]);
  return order.slice(0, count).map((index) => [model.labels[index], shares[index]]);
}

function listenForPhotographs() {
  byId("file").addEventListener("change", (event) => take(event.target.files[0]));
  byId("detail").addEventListener("change", () => current && look());
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
}

listenForPhotographs();
start().catch((error) => say(`This browser cannot run the model: ${error.message}`));
