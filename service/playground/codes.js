// A grid of codes as a heat map that can be walked with the arrow keys. In: rows of codes and a colour (or texture) each.
// Out: its events "select", "press" (a click) and "activate" (Enter) {row, column, code}, and "erase" when the erased cells
// change.
//
// One canvas for any number of cells; for screen readers a single cell follows the cursor (aria-activedescendant).

import { element, setShape } from "./dom.js";
import { inkOn, NO_COLOUR } from "./colours.js";

const SMALLEST_LABELLED_PX = 21;
const SMALLEST_SPACED_PX = 7;
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class CodeGrid extends EventTarget {
  codes = [];
  #erasing = false;
  #erased = new Set(); // row * columns + column
  #cursor = { row: 0, column: 0 };
  #anchor = null; // where a drag that erases began
  #colours = [];
  #textures = null; // canvases that are drawn in place of the colours

  constructor(host) {
    super();
    this.host = host;
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.cell = element("div", { role: "gridcell", className: "cell" });
    host.append(this.canvas, element("div", { role: "row" }, this.cell));
    host.tabIndex = 0;
    host.addEventListener("keydown", (event) => this.#type(event));
    host.addEventListener("click", (event) => this.#press(event)); // no pointerdown, with which scrolling begins too
    host.addEventListener("pointerdown", (event) => this.#beginErasing(event));
    host.addEventListener("pointermove", (event) => this.#drag(event));
    for (const type of ["pointerup", "pointercancel"]) {
      host.addEventListener(type, ({ isPrimary }) => isPrimary && (this.#anchor = null));
    }
    new ResizeObserver(() => this.draw()).observe(host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Whether a drag erases cells or scrolls the page. */
  set erasing(erasing) {
    this.#erasing = erasing;
    this.host.classList.toggle("erasing", erasing);
  }

  get rows() {
    return this.codes.length;
  }

  get columns() {
    return this.codes[0]?.length ?? 0;
  }

  get selected() {
    const { row, column } = this.#cursor;
    return { row, column, code: this.codes[row]?.[column] };
  }

  get erasedCount() {
    return this.#erased.size;
  }

  /** Rows of codes, null where they are erased: what /generate calls `known`. */
  get known() {
    return this.codes.map((row, r) => row.map((code, c) => (this.isErased(r, c) ? null : code)));
  }

  isErased(row, column) {
    return this.#erased.has(row * this.columns + column);
  }

  show(codes, colours = this.#colours) {
    const sameShape = codes.length === this.rows && codes[0].length === this.columns;
    this.codes = codes.map((row) => [...row]);
    this.#colours = colours;
    this.#anchor = null; // a drag ends with the codes that it began on
    this.host.setAttribute("aria-rowcount", this.rows);
    this.host.setAttribute("aria-colcount", this.columns);
    setShape(this.host, this.columns, this.rows);
    if (!sameShape) {
      this.#erased.clear();
      this.#cursor = { row: this.rows >> 1, column: this.columns >> 1 };
    }
    this.draw();
    this.#place();
  }

  restoreErased() {
    this.#erased.clear();
    this.draw();
    this.#place();
    this.#tell("erase");
  }

  showTextures(textures) {
    this.#textures = textures;
    this.draw();
  }

  setCode(row, column, code) {
    this.codes[row][column] = code;
    this.#erased.delete(row * this.columns + column);
    this.draw();
    this.#place();
  }

  /**
   * Codes for the cells of a row that are null in `known` and still erased: what has been changed since is newer.
   * Returns the cells that it filled, for `takeBack`.
   */
  fillRow(row, codes, known) {
    const columns = codes.map((_, column) => column).filter((c) => known[row][c] === null && this.isErased(row, c));
    const filled = columns.map((column) => ({ row, column, code: codes[column], before: this.codes[row][column] }));
    for (const { column, code } of filled) {
      this.codes[row][column] = code;
      this.#erased.delete(row * this.columns + column);
    }
    this.draw();
    this.#place();
    return filled;
  }

  /** Cells that were filled are erased again, but for those that have got another code since. */
  takeBack(filled) {
    for (const { row, column, before } of filled.filter(({ row, column, code }) => this.codes[row][column] === code)) {
      this.codes[row][column] = before;
      this.#erased.add(row * this.columns + column);
    }
    this.draw();
    this.#place();
    this.#tell("erase");
  }

  select(row, column) {
    this.#cursor = {
      row: Math.max(0, Math.min(this.rows - 1, row)),
      column: Math.max(0, Math.min(this.columns - 1, column)),
    };
    this.#place();
    this.#tell("select");
  }

  /** Put the cursor on the first cell with this code, and tell nobody. */
  point(code) {
    const row = this.codes.findIndex((cells) => cells.includes(code));
    if (row < 0) return;
    this.#cursor = { row, column: this.codes[row].indexOf(code) };
    this.#place();
  }

  #type(event) {
    if (event.altKey || event.metaKey) return; // the browser's own, such as Alt+Left for the page before
    const { row, column } = this.#cursor;
    const move = MOVES[event.key];
    if (move) this.select(row + move[0], column + move[1]);
    else if (event.key === "Home") this.select(event.ctrlKey ? 0 : row, 0);
    else if (event.key === "End") this.select(event.ctrlKey ? this.rows - 1 : row, this.columns - 1);
    else if (event.key === "Enter") this.#tell("activate");
    else if (event.key === " " && this.#erasing) this.#eraseBox(this.#cursor, this.#cursor, !this.isErased(row, column));
    else return;
    event.preventDefault();
  }

  #press(event) {
    if (this.#erasing) return;
    const { row, column } = this.#at(event);
    this.select(row, column);
    this.#tell("press");
  }

  #beginErasing(event) {
    if (!this.#erasing || event.button || !event.isPrimary) return;
    const at = this.#at(event);
    this.select(at.row, at.column);
    this.host.setPointerCapture(event.pointerId);
    this.#anchor = { ...at, erase: !this.isErased(at.row, at.column), before: new Set(this.#erased) };
    this.#eraseBox(at, at, this.#anchor.erase);
  }

  #drag(event) {
    if (!this.#anchor || !event.isPrimary) return;
    const at = this.#at(event);
    this.#erased = new Set(this.#anchor.before);
    this.#eraseBox(this.#anchor, at, this.#anchor.erase);
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
    return {
      row: inside((event.clientY - box.top) / box.height, this.rows),
      column: inside((event.clientX - box.left) / box.width, this.columns),
    };
  }

  #eraseBox(a, b, erase) {
    for (let row = Math.min(a.row, b.row); row <= Math.max(a.row, b.row); row++) {
      for (let column = Math.min(a.column, b.column); column <= Math.max(a.column, b.column); column++) {
        if (erase) this.#erased.add(row * this.columns + column);
        else this.#erased.delete(row * this.columns + column);
      }
    }
    this.draw();
    this.#place();
    this.#tell("erase");
  }

  /** The visible cursor, which is also what a screen reader reads. */
  #place() {
    const { row, column, code } = this.selected;
    const state = this.isErased(row, column) ? "erased" : `code ${code}`;
    this.cell.id = `${this.host.id}-${row}-${column}`;
    this.cell.textContent = `Row ${row + 1}, column ${column + 1}, ${state}`;
    this.cell.setAttribute("aria-colindex", column + 1);
    this.cell.parentElement.setAttribute("aria-rowindex", row + 1);
    this.host.setAttribute("aria-activedescendant", this.cell.id);
    Object.assign(this.cell.style, {
      left: `${(column / this.columns) * 100}%`,
      top: `${(row / this.rows) * 100}%`,
      width: `${100 / this.columns}%`,
      height: `${100 / this.rows}%`,
    });
  }

  draw() {
    if (!this.rows || !this.host.clientWidth) return;
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(this.host.clientWidth * ratio);
    this.canvas.height = Math.max(1, Math.round(this.host.clientHeight * ratio));
    const context = this.canvas.getContext("2d");
    const [width, height] = [this.canvas.width / this.columns, this.canvas.height / this.rows];
    const labelled = width / ratio >= SMALLEST_LABELLED_PX;
    const gap = width / ratio >= SMALLEST_SPACED_PX ? Math.round(ratio) : 0;
    context.font = `${Math.round(Math.min(13 * ratio, width * 0.34))}px ${getComputedStyle(this.host).fontFamily}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const erased = new Path2D();
    this.codes.forEach((row, r) =>
      row.forEach((code, c) => {
        const [left, top] = [Math.round(c * width), Math.round(r * height)];
        const box = [left, top, Math.round((c + 1) * width) - left - gap, Math.round((r + 1) * height) - top - gap];
        if (this.isErased(r, c)) erased.rect(...box);
        else this.#fill(context, box, code, labelled);
      }),
    );
    if (this.#erased.size) this.#hatch(context, erased);
  }

  #fill(context, [left, top, width, height], code, labelled) {
    const colour = this.#colours[code] ?? NO_COLOUR;
    context.imageSmoothingEnabled = false;
    context.fillStyle = colour;
    if (this.#textures) context.drawImage(this.#textures[code], left, top, width, height);
    else context.fillRect(left, top, width, height);
    if (!labelled || this.#textures) return;
    context.fillStyle = inkOn(colour);
    context.fillText(code, left + width / 2, top + height / 2);
  }

  /** All erased cells at once: one by one, those of a photograph took seconds. */
  #hatch(context, cells) {
    const { width, height } = this.canvas;
    context.save();
    context.clip(cells);
    context.strokeStyle = getComputedStyle(this.host).getPropertyValue("--accent");
    context.lineWidth = devicePixelRatio;
    context.beginPath();
    for (let x = -height; x < width; x += 6 * devicePixelRatio) {
      context.moveTo(x, height);
      context.lineTo(x + height, 0);
    }
    context.stroke();
    context.restore();
  }

  #tell(type) {
    this.dispatchEvent(new CustomEvent(type, { detail: this.selected }));
  }
}
