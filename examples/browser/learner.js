// A learner written by sk_meta, adapted in the browser, and ink as images for it.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // several need headers that a plain file server lacks

/** A classifier with local labels, out of a file that sk_meta.onnx.to_onnx wrote. */
export class Learner {
  static async load(url) {
    const learner = new Learner();
    const options = { logSeverityLevel: 3 }; // no warning of n_steps, which has a default
    learner.session = await ort.InferenceSession.create(url, options);
    const inputs = learner.session.inputMetadata;
    // [n_support, channels, height, width]: the first is a name, the others are numbers.
    learner.rowShape = inputs.find((input) => input.name === "X_support").shape.slice(1);
    return learner;
  }

  /**
   * Adapt to labelled rows and classify others.
   *
   * @param {Float32Array[]} support  Rows to adapt from, each flattened.
   * @param {number[]} labels  Class of each: 0, 1, ... without gaps.
   * @param {Float32Array[]} query  Rows to classify.
   * @returns {Promise<number[][]>}  For each query row the probability of each class.
   */
  async probabilities(support, labels, query) {
    const { probabilities } = await this.session.run({
      X_support: this.#rows(support),
      y_support: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt)),
      X_query: this.#rows(query),
    });
    const [, nClasses] = probabilities.dims;
    return query.map((_, row) =>
      Array.from(probabilities.data.subarray(row * nClasses, (row + 1) * nClasses)),
    );
  }

  #rows(rows) {
    const length = this.rowShape.reduce((product, side) => product * side, 1);
    const data = new Float32Array(rows.length * length);
    rows.forEach((row, i) => data.set(row, i * length));
    return new ort.Tensor("float32", data, [rows.length, ...this.rowShape]);
  }
}

// The usual drawing of Omniglot, in parts of the image's side: 68 of 105 pixels long,
// with a pen of 5 pixels.
const PEN = 5 / 105;
const EXTENT = 68 / 105 - PEN;

/**
 * Strokes as an image like those of load_omniglot: ink is 1, centred, of the usual size.
 *
 * @param {number[][][]} strokes  Each a list of points [x, y], in any unit.
 * @param {number} side  Height and width of the image in pixels.
 * @param {number} smallest  Drawings smaller than this, in the unit of the points, are
 *     not enlarged further: a dot remains a dot.
 * @returns {Float32Array}  side * side values from 0 to 1.
 */
export function toImage(strokes, side, smallest = 0) {
  const [left, right] = range(strokes.flat().map(([x]) => x));
  const [top, bottom] = range(strokes.flat().map(([, y]) => y));
  const fine = 4 * side; // averaged over areas, as load_omniglot does
  const extent = Math.max(right - left, bottom - top, smallest) || 1;
  const scale = (EXTENT * fine) / extent;
  const context = new OffscreenCanvas(fine, fine).getContext("2d");
  context.translate(fine / 2, fine / 2);
  context.scale(scale, scale);
  context.translate(-(left + right) / 2, -(top + bottom) / 2);
  drawStrokes(context, strokes, (PEN * fine) / scale);
  const { data } = context.getImageData(0, 0, fine, fine);
  const image = new Float32Array(side * side);
  for (let pixel = 0; pixel < fine * fine; pixel++) {
    const row = Math.floor(pixel / fine / 4);
    const column = Math.floor((pixel % fine) / 4);
    image[row * side + column] += data[4 * pixel + 3] / 255 / 16;
  }
  return image;
}

/** Draw strokes on a canvas, round at their ends. */
export function drawStrokes(context, strokes, width) {
  Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    const [x, y] = stroke[0];
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + width / 100, y); // a line without length would leave no dot
    for (const point of stroke) context.lineTo(...point);
    context.stroke();
  }
}

/** An image as a canvas element, ink dark, that keeps the values as `image`. */
export function thumbnail(image) {
  const side = Math.sqrt(image.length);
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pixels = new ImageData(side, side);
  image.forEach((ink, i) => (pixels.data[4 * i + 3] = 255 * ink));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return Object.assign(canvas, { image });
}

function range(values) {
  return [Math.min(...values), Math.max(...values)];
}
