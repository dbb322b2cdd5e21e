// From a photograph to what a model takes, as `whitebox_crate.preprocess.fit_photo` does it: whole patches, normalised.

"use strict";

const MOST_PIXELS = 16e6; // what canvases of all browsers hold
const LONGEST = 4; // times the shorter side, so that no panorama asks for any amount of memory
const PRECISION = 22; // bits of a weight after the point, as in Pillow

/** The pixels of a file, upright, on white: RGBA. */
async function decodePhoto(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The grid of patches over a photograph: [rows, columns]. */
function gridOver({ width, height }, patch, shortSide) {
  const scale = Math.min(shortSide / Math.min(width, height), (LONGEST * shortSide) / Math.max(width, height));
  return [height, width].map((side) => Math.max(1, roundToEven((side * scale) / patch)));
}

/** As Python rounds: halves to the even neighbour. */
function roundToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** The photograph at the size of a grid, (pixels / 255 - mean) / std, channel by channel. */
function normalisedPhoto(photo, [rows, columns], { patch, mean, std }) {
  const [height, width] = [rows * patch, columns * patch];
  const { data } = resized(photo, width, height);
  const values = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++)
    for (let pixel = 0; pixel < height * width; pixel++)
      values[channel * height * width + pixel] = (data[4 * pixel + channel] / 255 - mean[channel]) / std[channel];
  return values;
}

/**
 * Pillow's bicubic filter, antialiased, bit for bit: along rows first, then along columns, each rounded to 8 bits. (Pillow
 * 13 does some pictures in the other order, such as those that shrink along columns alone: a difference of 2 of 255.)
 */
function resized(photo, width, height) {
  const wide = { data: new Uint8ClampedArray(4 * width * photo.height), width, height: photo.height };
  resampleLines(photo.data, wide.data, weightsOf(photo.width, width), photo.height, {
    from: [4, 4 * photo.width],
    to: [4, 4 * width],
  });
  const tall = { data: new Uint8ClampedArray(4 * width * height), width, height };
  resampleLines(wide.data, tall.data, weightsOf(photo.height, height), width, {
    from: [4 * width, 4],
    to: [4 * width, 4],
  });
  return tall;
}

/** Resamples lines of pixels; `from` and `to` have how far apart pixels and lines lie. */
function resampleLines(source, target, weights, lines, { from, to }) {
  weights.forEach(({ first, parts }, position) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (PRECISION - 1);
        let at = first * from[0] + line * from[1] + channel;
        for (let tap = 0; tap < parts.length; tap++, at += from[0]) sum += source[at] * parts[tap];
        target[position * to[0] + line * to[1] + channel] = Math.floor(sum / 2 ** PRECISION); // clamped to 0 to 255
      }
    }
  });
}

/** For each of `after` pixels, which of `before` it is made of and by what parts, as whole numbers. */
function weightsOf(before, after) {
  const scale = before / after;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: after }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + 2 * stretch + 0.5), before);
    const raw = Array.from({ length: end - first }, (_, tap) => bicubic((first + tap - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    const parts = raw.map((part) => Math.trunc((part / sum) * 2 ** PRECISION + (part / sum < 0 ? -0.5 : 0.5)));
    return { first, parts };
  });
}

function bicubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** The photograph as the page shows it: a JPEG in a data URL, its longer side at most `side`. */
function shownPhoto(photo, side) {
  const scale = Math.min(1, side / Math.max(photo.width, photo.height));
  const full = canvasOf(new ImageData(photo.data, photo.width, photo.height));
  const small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(photo.width * scale));
  small.height = Math.max(1, Math.round(photo.height * scale));
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(full, 0, 0, small.width, small.height);
  return { data: small.toDataURL("image/jpeg", 0.85), width: small.width, height: small.height };
}
