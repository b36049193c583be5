// The upper half of the page: a picture, its codes, what they decode to, and what that costs.
// In: pictures from their source, or a sample. Out: everything that is shown about them, and the events "picture" when the
// codes are, or soon will be, those of another picture, and "outdated" when the service has another version of the model.

import { checkVersion, compress, decode, encode, Outdated, Problem } from "./api.js";
import { CodeGrid } from "./codes.js";
import { coloursOf, palette } from "./colours.js";
import { compressLine, decodeLine, decompressLine, encodeLine, showLines } from "./curl.js";
import { allow, announce, byId, hideProblem, latest, offerDownload, problemsSoFar, setInert, setStale, showProblem } from "./dom.js";
import { modeOf, showBytes, showTimes } from "./numbers.js";
import { PictureSource } from "./picture.js";
import { clear, compare, openImage, paint, paintDifference, readImage } from "./pixels.js";
import { encodePng } from "./png.js";
import { Textures } from "./textures.js";

const PALETTE_COLUMNS = { wide: 48, narrow: 24 };
const SHOWN = ["codes", "decoded", "difference", "bytes", "times", "codec-lines"]; // what is of the picture
const WIDE = matchMedia("(min-width: 46rem)");

export class Workbench extends EventTarget {
  #model = null;
  #picture = null;
  #file = null; // the picture as PNG, exactly what is sent
  #encoded = null; // the picture that the codes are of, and its codes as the service gave them
  #times = {};
  #superseded = new AbortController(); // of what is asked for the picture that is shown
  #decodings = 0; // how many have begun: only the latest is shown
  #unfinished = false; // whether the codes are there, and not all that comes after them
  #working = 0; // how many things are being done that will change the panels

  constructor() {
    super();
    this.source = new PictureSource((work) => this.#reported(work), (picture, change) => this.#take(picture, change));
    this.grid = new CodeGrid(byId("codes"));
    this.palette = new CodeGrid(byId("palette"));
    this.textures = new Textures(this.palette);
    this.encodeLatest = latest(() => this.#reported(() => this.#encode(), () => this.#encodeFailed()));
    this.decodeLatest = latest((done) => this.isCurrent && this.#reported(() => this.#decodeAgain(done), () => this.#clearDecoded()));
    WIDE.addEventListener("change", () => this.#model && this.#showPalette());
    this.#listenToCodes();
  }

  get model() {
    return this.#model;
  }

  /** Whether the codes are those of the picture that is shown. */
  get isCurrent() {
    return Boolean(this.#picture) && this.#encoded?.picture === this.#picture;
  }

  /** With its name even where it is the default: the service may be started again with another one. */
  get query() {
    return { model: this.#model.name };
  }

  /** For the lines that people copy. */
  get shortQuery() {
    return { model: this.#model.default ? "" : this.#model.name };
  }

  #encodeQuery(query = this.query) {
    return { ...query, fit: this.#model.picture.any_size ? "pad" : "" };
  }

  /** Serve another model, with the picture that is there where it takes such pictures. */
  async open(model) {
    this.#model = model;
    byId("code").max = model.codes.codebook_size - 1;
    [this.#encoded, this.#times] = [null, {}];
    this.textures.forget();
    this.#showPalette();
    this.#supersede();
    this.source.open(model);
  }

  /** The codes have changed: decode them again. `done`: what is said then. */
  async codesChanged(done = "Decoded again.") {
    setStale(true, "decoded", "difference", "codec-lines");
    this.#allowRestore();
    await this.decodeLatest(done);
  }

  /** Ask once more for what has been refused; of other models, main.js asks which they are. */
  async again(error) {
    if (error instanceof Outdated) this.dispatchEvent(new Event("outdated"));
    else await (this.isCurrent ? this.codesChanged("") : this.encodeLatest());
  }

  showTime(name, timing) {
    this.#times[name] = timing;
    showTimes(this.#times);
  }

  #showPalette() {
    const colours = coloursOf(this.#model);
    const columns = WIDE.matches ? PALETTE_COLUMNS.wide : PALETTE_COLUMNS.narrow;
    this.palette.show(palette(colours, Math.min(columns, colours.length)), colours);
    this.palette.point(this.grid.selected.code);
  }

  /** Another picture or model has come: what is still asked for the one before ends. */
  #supersede() {
    this.#superseded.abort();
    this.#superseded = new AbortController();
  }

  #take(picture, { another }) {
    if (another) {
      this.#supersede();
      for (const id of ["save-picture", "save-decoded"]) byId(id).hidden = true;
    }
    this.#picture = picture;
    setStale(true, ...SHOWN);
    this.#allowChanges();
    this.dispatchEvent(new Event("picture"));
    this.encodeLatest();
  }

  async #encode() {
    const [picture, model, { signal }] = [this.#picture, this.#model, this.#superseded];
    this.#decodings += 1; // what is still decoded belongs to the picture before
    this.#file = await encodePng(picture);
    signal.throwIfAborted();
    offerDownload(byId("save-picture"), this.#file, "picture.png");
    const { answer, timing } = await encode(this.#encodeQuery(), this.#file, signal);
    checkVersion(answer, model);
    this.#encoded = { picture, codes: answer.codes };
    this.grid.show(answer.codes, coloursOf(model));
    this.grid.restoreErased();
    this.#select();
    this.#allowChanges();
    setStale(false, "codes");
    byId("codes-facts").textContent = `${answer.shape.join(" × ")} of ${answer.codebook_size}`;
    this.showTime("encode", timing);
    await this.#decode(signal);
    await this.#compress(signal);
    announce(`Encoded to ${answer.shape.join(" by ")} codes. ${byId("decoded-facts").textContent}`);
  }

  async #decodeAgain(done = "") {
    const { signal } = this.#superseded;
    await this.#decode(signal);
    if (this.#unfinished) await this.#compress(signal);
    announce(`${done} ${byId("decoded-facts").textContent}`);
  }

  async #decode(signal) {
    const { picture: before } = this.#encoded;
    const decoding = (this.#decodings += 1);
    const { picture: blob, timing } = await decode(this.query, { ...this.#sized, version: this.#model.version }, signal);
    const image = await openImage(blob);
    signal.throwIfAborted();
    if (decoding !== this.#decodings) return; // other codes have been sent since
    const after = readImage(image, before.channels);
    const { mse, psnrDb, largest } = compare(before, after);
    offerDownload(byId("save-decoded"), blob, "decoded.png");
    paint(byId("decoded"), after);
    paintDifference(byId("difference"), before, after);
    setStale(false, "decoded", "difference");
    byId("decoded-facts").textContent = `MSE ${mse.toFixed(4)}, ${mse ? `${psnrDb.toFixed(1)} dB` : "no loss"}`;
    byId("difference-facts").textContent = `at most ${largest} of 255`;
    this.showTime("decode", timing);
    this.#showLines();
  }

  async #compress(signal) {
    const { container, timing } = await compress(this.#encodeQuery(), this.#file, signal);
    const mode = await modeOf(container);
    signal.throwIfAborted();
    const bits = Math.ceil(Math.log2(this.#model.codes.codebook_size));
    const raw = Math.ceil((this.grid.rows * this.grid.columns * bits) / 8);
    this.showTime("compress", timing);
    setStale(false, "bytes", "times");
    showBytes([
      ["pixels", this.#picture.data.length],
      ["PNG", this.#file.size],
      [`codes, ${bits} bits each`, raw],
      [`container, ${mode}`, container.size],
    ]);
    this.#unfinished = false;
    this.textures.show(this.#model, this.query).catch(showProblem); // last, so that it delays nothing that is timed
  }

  #showLines() {
    const [query, encodeQuery] = [this.shortQuery, this.#encodeQuery(this.shortQuery)];
    showLines(byId("codec-lines"), [
      ["Picture to codes", encodeLine(encodeQuery, "picture.png")],
      ["Codes to picture", decodeLine(query, this.#sized, "decoded.png")],
      ["Picture to bytes", compressLine(encodeQuery, "picture.png", "picture.vqc")],
      // Of the picture as it was: it must not replace what the changed codes make.
      ["Bytes to picture", decompressLine(query, "picture.vqc", this.#edited ? "unchanged.png" : "decoded.png")],
    ]);
    setStale(false, "codec-lines");
  }

  /** The codes with the size of the picture that they are of: what /decode takes. */
  get #sized() {
    const { width, height } = this.#encoded.picture;
    return { codes: this.grid.codes, width, height };
  }

  get #edited() {
    return this.#encoded.codes.some((codes, row) => codes.some((code, column) => code !== this.grid.codes[row][column]));
  }

  /** Codes of another picture, or none yet, are not there to be changed. */
  #allowChanges() {
    setInert(byId("change-tools"), !this.isCurrent);
    setStale(!this.isCurrent, "change-tools");
    this.#allowRestore();
  }

  #allowRestore() {
    const edited = this.isCurrent && this.#edited;
    allow(byId("restore"), this.isCurrent && (this.grid.erasedCount || edited));
    byId("bytes-facts").hidden = !edited;
  }

  #select() {
    const { row, column, code } = this.grid.selected;
    byId("code-place").textContent = `Row ${row + 1}, column ${column + 1}: code`;
    byId("code").value = code;
    this.palette.point(code);
  }

  #put(code) {
    if (!Number.isInteger(code) || code < 0 || code >= this.#model.codes.codebook_size) {
      showProblem(new Problem({ title: "Not a code", detail: `A code is a whole number from 0 to ${byId("code").max}.` }));
      this.#select(); // the code that the cell has
      return;
    }
    const { row, column } = this.grid.selected;
    this.grid.setCode(row, column, code);
    this.#select();
    this.codesChanged();
  }

  #listenToCodes() {
    this.grid.addEventListener("select", () => this.#select());
    this.grid.addEventListener("activate", () => byId("code").select());
    byId("code").addEventListener("change", ({ target }) => this.#put(target.valueAsNumber));
    for (const type of ["press", "activate"]) this.palette.addEventListener(type, ({ detail }) => this.#put(detail.code));
    byId("restore").addEventListener("click", () => {
      this.grid.show(this.#encoded.codes);
      this.grid.restoreErased();
      this.#select();
      this.codesChanged();
    });
    this.grid.addEventListener("erase", () => this.#allowRestore());
    for (const radio of document.querySelectorAll("input[name=mode]")) {
      radio.addEventListener("change", () => this.setMode(radio.value));
    }
    const chosen = () => document.querySelector("input[name=mode]:checked").value;
    addEventListener("pageshow", () => this.setMode(chosen())); // Back brings the choice of before
  }

  setMode(mode) {
    this.grid.erasing = mode === "erase";
    byId("change-tools").hidden = mode === "erase";
    byId("erase-tools").hidden = mode !== "erase";
  }

  #encodeFailed() {
    this.#unfinished = true;
    this.#clearDecoded();
    if (!this.isCurrent) setStale(true, ...SHOWN);
  }

  #clearDecoded() {
    if (!byId("decoded").classList.contains("stale")) return; // it is there: what has failed comes after it
    for (const id of ["decoded", "difference"]) clear(byId(id));
    setStale(false, "decoded", "difference"); // there is nothing to wait for
    for (const id of ["decoded-facts", "difference-facts"]) byId(id).textContent = "";
    byId("save-decoded").hidden = true;
  }

  /** `onFailure` is of what is asked of the service, which can be asked again. */
  async #reported(work, onFailure = null) {
    this.#setWorking(1);
    const before = problemsSoFar();
    try {
      await work();
      hideProblem(before);
    } catch (error) {
      if (error.name === "AbortError") return;
      showProblem(error, onFailure && (() => this.again(error)));
      onFailure?.();
    } finally {
      this.#setWorking(-1);
    }
  }

  #setWorking(change) {
    this.#working += change;
    byId("panels").setAttribute("aria-busy", this.#working > 0);
  }
}
