// Attention and masks in numbers: what was packed is unpacked, and rows and masks are computed as the library does.

"use strict";

function unpackBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

/** Queries or keys of a layer: steps (heads, tokens, width), and the length of a step for each token of each head. */
function unpackTokens(packed, bits) {
  const bytes = unpackBytes(packed.steps);
  return {
    steps: bits === 16 ? new Int16Array(bytes) : new Int8Array(bytes),
    scales: new Float32Array(unpackBytes(packed.scales)),
  };
}

function unpackRows(packed, bits) {
  if (!packed) return null;
  const queries = unpackTokens(packed.queries, bits);
  return { queries, keys: packed.keys ? unpackTokens(packed.keys, bits) : queries, plain: packed.plain };
}

/** A reading as the page works with it: [CLS] maps (layers, heads, patches), colours (layers, patches, 3). */
function unpackReading(packed) {
  const patches = packed.grid[0] * packed.grid[1];
  const steps = new Uint16Array(unpackBytes(packed.cls.steps));
  const peaks = new Float32Array(unpackBytes(packed.cls.peaks));
  return {
    ...packed,
    cls: Float32Array.from(steps, (step, index) => (step / 65535) * peaks[Math.floor(index / patches)]),
    colours: new Uint8Array(unpackBytes(packed.colours)),
    rows: packed.rows.map((rows) => unpackRows(rows, packed.bits)),
  };
}

/**
 * What a token attends to among the patches, in one head: softmax(q k^T / sqrt(width)), or of plain rows q k^T, without
 * the entries of the tokens before the patches, [CLS] and registers, of which there are `prefix`.
 */
function attentionRow(rows, head, token, tokens, width, prefix) {
  const { queries, keys, plain } = rows;
  const scale = queries.scales[head * tokens + token] / (plain ? 1 : Math.sqrt(width));
  const query = queries.steps.subarray((head * tokens + token) * width, (head * tokens + token + 1) * width);
  const row = new Float64Array(tokens);
  for (let other = 0; other < tokens; other++) {
    const start = (head * tokens + other) * width;
    let product = 0;
    for (let entry = 0; entry < width; entry++) product += query[entry] * keys.steps[start + entry];
    row[other] = product * scale * keys.scales[head * tokens + other];
  }
  return (plain ? row : softmax(row)).subarray(prefix);
}

function softmax(values) {
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Maps of all heads of a layer, and after them their mean; null where they were left out. Patch null is [CLS]. */
function layerMaps(reading, layer, patch) {
  const { prefix, width } = reading;
  const patches = reading.grid[0] * reading.grid[1];
  if (patch !== null && !reading.rows[layer]) return null;
  const maps = [];
  for (let head = 0; head < reading.heads; head++) {
    const start = (layer * reading.heads + head) * patches;
    maps.push(
      patch === null
        ? reading.cls.subarray(start, start + patches)
        : attentionRow(reading.rows[layer], head, prefix + patch, prefix + patches, width, prefix),
    );
  }
  maps.push(maps[0].map((_, at) => maps.reduce((sum, map) => sum + map[at], 0) / maps.length));
  return maps;
}

/** The patches that a map looks at most, by the rules of `attention_masks`; of "mean", so many times the mean. */
function keptPatches(map, rule, amount) {
  return rule === "mean" ? aboveMean(map, amount) : largestPatches(map, rule, amount);
}

function aboveMean(map, times) {
  const least = map.reduce((a, b) => Math.min(a, b), Infinity);
  // From the smallest value up, so that rounding of the mean cannot mark patches of a constant map.
  const mean = map.reduce((sum, value) => sum + (value - least), 0) / map.length;
  const cut = mean + (times - 1) * (mean + least);
  return Array.from(map, (value) => value - least > cut);
}

function largestPatches(map, rule, share) {
  const ascending = Array.from(map.keys()).sort((a, b) => map[a] - map[b]); // stable: later ones of equals are kept
  const sum = map.reduce((a, b) => a + b, 0);
  const first = map.length - Math.max(1, Math.floor(share * map.length + 0.5));
  const kept = new Array(map.length).fill(false);
  let mass = 0;
  ascending.forEach((patch, position) => {
    mass += map[patch] / sum;
    kept[patch] = rule === "mass" ? mass > 1 - share : position >= first;
  });
  return kept;
}
