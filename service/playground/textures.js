// What each code looks like. In: a model. Out: one small canvas a code, the middle patch of a picture of that code alone,
// and the palette that shows them.

import { decodeMany, Problem } from "./api.js";
import { paint } from "./pixels.js";

const CODES_A_REQUEST = 32; // few, as a service may take fewer pictures a request than it does by default

/** Shown when all are there. They are a decoration: pictures do not wait for them, and do not end them. */
export class Textures {
  #palette;
  #asked = null; // an AbortController, once they have been asked for

  constructor(palette) {
    this.#palette = palette;
  }

  /** The model is another one. */
  forget() {
    this.#asked?.abort();
    this.#asked = null;
    this.#palette.showTextures(null);
  }

  /** Asked for once a model: without them the palette keeps its colours, which serve as well. */
  async show(model, query) {
    if (this.#asked) return;
    this.#asked = new AbortController();
    const { signal } = this.#asked;
    try {
      const textures = await texturesOf(model, query, signal);
      if (!signal.aborted) this.#palette.showTextures(textures);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
    }
  }
}

async function texturesOf(model, query, signal) {
  const { codes, picture } = model;
  // A middle cell with neighbours of its own kind on all sides, where the model allows so small a picture.
  const [rows, columns] = picture.any_size ? [3, 3] : [codes.height, codes.width];
  const textures = [];
  for (let first = 0; first < codes.codebook_size; first += CODES_A_REQUEST) {
    const count = Math.min(CODES_A_REQUEST, codes.codebook_size - first);
    const grids = Array.from({ length: count }, (_, i) => uniform(rows, columns, first + i));
    const pictures = await decodeMany(query, grids, signal);
    for (const one of pictures) textures.push(patch(one, rows >> 1, columns >> 1, picture.multiple_of));
  }
  return textures;
}

const uniform = (rows, columns, code) => Array.from({ length: rows }, () => Array(columns).fill(code));

function patch({ width, channels, data }, row, column, size) {
  const cut = { width: size, height: size, channels, data: new Uint8Array(size * size * channels) };
  for (let y = 0; y < size; y++) {
    const start = ((row * size + y) * width + column * size) * channels;
    cut.data.set(data.subarray(start, start + size * channels), y * size * channels);
  }
  const canvas = document.createElement("canvas");
  paint(canvas, cut);
  return canvas;
}
