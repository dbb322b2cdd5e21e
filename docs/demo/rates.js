// Coding rates and principal components, as `whitebox_crate.analysis` and `whitebox_crate.segmentation.pca` have them.

"use strict";

/** R = 1/2 logdet(I + dim / (tokens eps^2) Z^T Z) of a Gram matrix Z^T Z, in nats a token. */
function codingRate(gram, dim, tokens, eps = 0.1) {
  const scale = dim / (tokens * eps * eps);
  const matrix = Float64Array.from(gram, (value, at) => value * scale + (at % (dim + 1) ? 0 : 1));
  return logDeterminant(matrix, dim) / 2;
}

/** Of a positive definite matrix, by Cholesky's factors, which take its place. */
function logDeterminant(matrix, size) {
  let sum = 0;
  for (let row = 0; row < size; row++) {
    for (let column = 0; column <= row; column++) {
      let value = matrix[row * size + column];
      for (let k = 0; k < column; k++) value -= matrix[row * size + k] * matrix[column * size + k];
      if (row === column) sum += Math.log(value);
      matrix[row * size + column] = row === column ? Math.sqrt(value) : value / matrix[column * size + column];
    }
  }
  return sum;
}

/** The first three principal components of tokens (patches, dim) as colours: (patches, 3), 0 to 255. */
function principalColours(tokens, dim, [rows, columns]) {
  const patches = rows * columns;
  const centred = centre(tokens, patches, dim);
  const directions = principalDirections(covariance(centred, patches, dim), dim, 3);
  const colours = new Uint8Array(3 * patches);
  directions.forEach((direction, channel) => {
    const scores = turned(project(centred, direction, patches, dim), channel === 0 ? [rows, columns] : null);
    const least = Math.min(...scores);
    const range = Math.max(...scores) - least || 1;
    scores.forEach((score, patch) => (colours[3 * patch + channel] = Math.round((255 * (score - least)) / range)));
  });
  return colours;
}

function centre(tokens, patches, dim) {
  const mean = new Float64Array(dim);
  tokens.forEach((value, at) => (mean[at % dim] += value / patches));
  return Float64Array.from(tokens, (value, at) => value - mean[at % dim]);
}

function covariance(centred, patches, dim) {
  const product = new Float64Array(dim * dim);
  for (let patch = 0; patch < patches; patch++)
    for (let row = 0; row < dim; row++) {
      const value = centred[patch * dim + row];
      for (let column = 0; value && column < dim; column++)
        product[row * dim + column] += value * centred[patch * dim + column];
    }
  return product;
}

function project(centred, direction, patches, dim) {
  return Array.from({ length: patches }, (_, patch) => dot(centred.subarray(patch * dim, (patch + 1) * dim), direction));
}

/** Signs by the scores alone: the longer tail is up; but with a grid, what lies along its border is down. */
function turned(scores, grid) {
  const tail = scores.reduce((sum, score) => sum + score ** 3, 0);
  const up = grid && Math.abs(borderMean(scores, grid)) > 1e-6 * meanSize(scores) ? -borderMean(scores, grid) : tail;
  return up < 0 ? scores.map((score) => -score) : scores;
}

function borderMean(scores, [rows, columns]) {
  const border = scores.filter((_, patch) => {
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    return row === 0 || column === 0 || row === rows - 1 || column === columns - 1;
  });
  return border.reduce((a, b) => a + b, 0) / border.length;
}

function meanSize(scores) {
  return scores.reduce((sum, score) => sum + Math.abs(score), 0) / scores.length;
}

const BLOCK = 8; // directions that are followed at once: more than are asked for, so that close ones come apart
const ROUNDS = 60;

/** The eigenvectors of a symmetric matrix with the largest eigenvalues: subspace iteration, then Rayleigh and Ritz. */
function principalDirections(matrix, size, count) {
  const block = Math.min(BLOCK, size);
  const largest = [...Array(size).keys()].sort((a, b) => matrix[b * size + b] - matrix[a * size + a]);
  let basis = largest.slice(0, block).map((at) => Float64Array.from({ length: size }, (_, entry) => Number(entry === at)));
  for (let round = 0; round < ROUNDS; round++) basis = orthonormal(basis.map((vector) => times(matrix, size, vector)));
  const images = basis.map((vector) => times(matrix, size, vector));
  const small = Float64Array.from({ length: block * block }, (_, at) =>
    dot(basis[Math.floor(at / block)], images[at % block]),
  );
  return eigenvectors(small, block)
    .slice(0, count)
    .map((parts) => combined(parts, basis));
}

function times(matrix, size, vector) {
  return Float64Array.from({ length: size }, (_, row) => dot(matrix.subarray(row * size, (row + 1) * size), vector));
}

function dot(a, b) {
  let sum = 0;
  for (let entry = 0; entry < a.length; entry++) sum += a[entry] * b[entry];
  return sum;
}

function combined(parts, vectors) {
  return vectors[0].map((_, entry) => vectors.reduce((sum, vector, at) => sum + parts[at] * vector[entry], 0));
}

/** Gram and Schmidt; what is left of a vector that depends on those before it is zero. */
function orthonormal(vectors) {
  const done = [];
  for (const vector of vectors) {
    const parts = done.map((one) => dot(one, vector));
    const rest = done.length ? combined([1, ...parts.map((part) => -part)], [vector, ...done]) : vector;
    const length = Math.sqrt(dot(rest, rest));
    done.push(rest.map((value) => (length > 1e-12 * Math.sqrt(dot(vector, vector)) ? value / length : 0)));
  }
  return done;
}

/** All eigenvectors of a small symmetric matrix, the largest eigenvalue first, by Jacobi's rotations. */
function eigenvectors(matrix, size) {
  const vectors = new Float64Array(size * size); // a vector in each row
  for (let row = 0; row < size; row++) vectors[row * size + row] = 1;
  for (let sweep = 0; sweep < 20; sweep++)
    for (let p = 0; p < size - 1; p++) for (let q = p + 1; q < size; q++) rotate(matrix, vectors, size, p, q);
  const order = [...Array(size).keys()].sort((a, b) => matrix[b * size + b] - matrix[a * size + a]);
  return order.map((row) => vectors.subarray(row * size, (row + 1) * size));
}

/** One rotation in the plane of p and q, after which the matrix is zero at (p, q). */
function rotate(matrix, vectors, size, p, q) {
  if (matrix[p * size + q] === 0) return;
  const ratio = (matrix[q * size + q] - matrix[p * size + p]) / (2 * matrix[p * size + q]);
  const tangent = (ratio < 0 ? -1 : 1) / (Math.abs(ratio) + Math.hypot(ratio, 1));
  const cosine = 1 / Math.hypot(tangent, 1);
  const sine = tangent * cosine;
  const mix = (values, first, second) => {
    const [a, b] = [values[first], values[second]];
    values[first] = cosine * a - sine * b;
    values[second] = sine * a + cosine * b;
  };
  for (let k = 0; k < size; k++) mix(matrix, p * size + k, q * size + k);
  for (let k = 0; k < size; k++) mix(matrix, k * size + p, k * size + q);
  for (let k = 0; k < size; k++) mix(vectors, p * size + k, q * size + k);
}
