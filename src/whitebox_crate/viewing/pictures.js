// Pictures on canvases: maps, masks, colours and the chosen patch over a photograph, and all of it as one PNG.

"use strict";

// Black to pale yellow through purple and orange: more is always lighter.
const HEAT = [
  [0, 0, 4],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
];
const EDGE = "#ffffff";
const MARK = "#2ee6d6";

function heatOf(share) {
  const at = Math.min(share, 1) * (HEAT.length - 1);
  const left = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[left].map((low, channel) => low + (at - left) * (HEAT[left + 1][channel] - low));
}

/** A map in colours, a pixel for each patch, from its least value to its largest; `opacityOf` takes that share. */
function heatPixels(map, columns, opacityOf = () => 1) {
  const least = map.reduce((a, b) => Math.min(a, b), Infinity);
  const range = map.reduce((a, b) => Math.max(a, b), -Infinity) - least || 1;
  const share = (patch) => (map[patch] - least) / range;
  return patchPixels(map.length, columns, (patch) => [...heatOf(share(patch)), 255 * opacityOf(share(patch))]);
}

/** The colours of the tokens after a layer, a pixel for each patch. */
function colourPixels(reading, layer) {
  const patches = reading.grid[0] * reading.grid[1];
  const start = layer * patches * 3;
  return patchPixels(patches, reading.grid[1], (patch) => [
    ...reading.colours.subarray(start + 3 * patch, start + 3 * patch + 3),
    255,
  ]);
}

function patchPixels(patches, columns, colourOf) {
  const pixels = new ImageData(columns, patches / columns);
  for (let patch = 0; patch < patches; patch++) pixels.data.set(colourOf(patch), 4 * patch);
  return pixels;
}

function canvasOf(pixels) {
  const canvas = document.createElement("canvas");
  paintPixels(canvas, pixels);
  return canvas;
}

function paintPixels(canvas, pixels) {
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Pixels over a whole canvas, each patch as a block. */
function paintBlocks(context, pixels) {
  context.save();
  context.imageSmoothingEnabled = false;
  context.drawImage(canvasOf(pixels), 0, 0, context.canvas.width, context.canvas.height);
  context.restore();
}

function paintPhoto(context, image, grey) {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  if (!grey) return;
  context.save();
  context.globalCompositeOperation = "saturation"; // of black: none. Not all browsers have filters of canvases
  context.fillRect(0, 0, width, height);
  context.restore();
}

/** Dims the patches outside of a mask. */
function paintOutside(context, kept, grid) {
  context.fillStyle = "rgb(12 14 20 / 78%)";
  kept.forEach((inside, patch) => {
    if (!inside) context.fillRect(...patchBox(context.canvas, patch, grid));
  });
}

/** The box of a patch on a canvas, in whole pixels so that neighbours meet: x, y, width, height. */
function patchBox(canvas, patch, [rows, columns]) {
  const row = Math.floor(patch / columns);
  const column = patch % columns;
  const [left, right] = [column, column + 1].map((line) => Math.round((line * canvas.width) / columns));
  const [top, bottom] = [row, row + 1].map((line) => Math.round((line * canvas.height) / rows));
  return [left, top, right - left, bottom - top];
}

/** The line between the patches inside of a mask and those outside. */
function paintEdge(context, kept, grid) {
  const [rows, columns] = grid;
  const line = new Path2D();
  kept.forEach((inside, patch) => {
    const [left, top, width, height] = patchBox(context.canvas, patch, grid);
    const column = patch % columns;
    if (column + 1 < columns && inside !== kept[patch + 1]) addLine(line, left + width, top, left + width, top + height);
    if (patch + columns < rows * columns && inside !== kept[patch + columns])
      addLine(line, left, top + height, left + width, top + height);
  });
  strokeTwice(context, line, EDGE, 2);
}

function addLine(path, x1, y1, x2, y2) {
  path.moveTo(x1, y1);
  path.lineTo(x2, y2);
}

/** Light on dark, so that the line is seen on any ground. */
function strokeTwice(context, path, colour, width) {
  const unit = context.canvas.width / 640;
  context.lineCap = "round";
  context.strokeStyle = "rgb(0 0 0 / 75%)";
  context.lineWidth = (width + 2) * unit;
  context.stroke(path);
  context.strokeStyle = colour;
  context.lineWidth = width * unit;
  context.stroke(path);
}

function paintMark(context, patch, grid) {
  const [left, top, width, height] = patchBox(context.canvas, patch, grid);
  const box = new Path2D();
  box.rect(left, top, width, height);
  strokeTwice(context, box, MARK, 3);
}

const SHEET = { gap: 24, width: 960, title: 44, caption: 74, label: 26 }; // pixels of the picture that is saved

/** Panels side by side as one picture: title, large picture, caption, and the small maps of all layers and heads. */
function sheetOf(panels, paper, ink) {
  const { gap, width } = SHEET;
  const sheet = document.createElement("canvas");
  sheet.width = gap + panels.length * (width + gap);
  sheet.height = Math.max(...panels.map((panel) => smallTop(panel) + panel.small.length * smallHeight(panel) + gap));
  const context = sheet.getContext("2d");
  context.fillStyle = paper;
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.fillStyle = ink;
  panels.forEach((panel, index) => paintColumn(context, panel, gap + index * (width + gap)));
  return sheet;
}

function paintColumn(context, panel, left) {
  const { gap, width, title } = SHEET;
  const largeTop = gap + title;
  const below = largeTop + heightAt(panel.large, width);
  context.imageSmoothingEnabled = true;
  context.font = "600 28px system-ui, sans-serif";
  context.fillText(panel.title, left, gap + 26, width);
  context.drawImage(panel.large, left, largeTop, width, heightAt(panel.large, width));
  context.font = "20px system-ui, sans-serif";
  panel.caption.forEach((line, index) => context.fillText(line, left, below + 30 + 28 * index, width));
  paintSmall(context, panel, left);
}

function paintSmall(context, panel, left) {
  const step = SHEET.width / panel.labels.length;
  const height = smallHeight(panel);
  const top = smallTop(panel);
  context.imageSmoothingEnabled = false;
  context.font = "16px system-ui, sans-serif";
  panel.labels.forEach((label, column) => context.fillText(label, left + column * step + 2, top - 8, step - 4));
  panel.small.forEach((row, layer) =>
    row.forEach((canvas, column) =>
      context.drawImage(canvas, left + column * step + 2, top + layer * height + 2, step - 4, height - 4),
    ),
  );
}

function smallTop(panel) {
  return SHEET.gap + SHEET.title + heightAt(panel.large, SHEET.width) + SHEET.caption + SHEET.label;
}

function smallHeight(panel) {
  return heightAt(panel.small[0][0], SHEET.width / panel.labels.length);
}

function heightAt(canvas, width) {
  return Math.round((canvas.height / canvas.width) * width);
}
