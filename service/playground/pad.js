// The drawing pad: a canvas whose pixels are the picture's. In: a pen or the arrow keys. Out: grey pixels at each change,
// and whether it has cleared them.

import { blank, paint } from "./pixels.js";

const RADIUS = 1.1; // pixels; the strokes of MNIST are 2 to 3 wide

export class Pad {
  #picture = null;
  #canvas;
  #marker;
  #onChange;
  #last = null; // where the pen was, [x, y] in pixels
  #keys = { x: 0, y: 0, down: false };

  constructor(canvas, marker, onChange) {
    this.#canvas = canvas;
    this.#marker = marker;
    this.#onChange = onChange;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, ({ isPrimary }) => isPrimary && (this.#last = null));
    }
    canvas.addEventListener("keydown", (event) => this.#type(event));
    canvas.addEventListener("focus", () => this.#placeMarker());
    canvas.addEventListener("blur", () => (marker.hidden = true));
  }

  /** Draw on this picture from now on; without `enabled` it is only shown. */
  open(picture, enabled) {
    this.#picture = { ...picture, data: picture.data.slice() };
    this.#keys = { x: picture.width >> 1, y: picture.height >> 1, down: false };
    this.#last = null; // a stroke ends with the picture that it is on
    this.#canvas.classList.toggle("drawable", enabled);
    this.#canvas.tabIndex = enabled ? 0 : -1;
    this.#canvas.setAttribute("role", enabled ? "application" : "img"); // of an image screen readers keep the arrow keys
    if (enabled) this.#canvas.setAttribute("aria-describedby", "pad-help");
    else this.#canvas.removeAttribute("aria-describedby");
    this.enabled = enabled;
    paint(this.#canvas, picture);
    this.#placeMarker();
  }

  clear() {
    const { width, height, channels } = this.#picture;
    this.#picture = blank(width, height, channels);
    this.#changed(true);
  }

  /** A line of the pen's width through `points`, as if it had been drawn. */
  stroke(points) {
    for (let i = 1; i < points.length; i++) this.#line(points[i - 1], points[i]);
    this.#changed();
  }

  #press(event) {
    if (!this.enabled || event.button || !event.isPrimary) return; // another button or finger draws nothing
    this.#canvas.setPointerCapture(event.pointerId);
    this.#last = this.#at(event);
    this.stroke([this.#last, this.#last]);
  }

  #move(event) {
    if (!this.#last || !event.isPrimary) return;
    const between = event.getCoalescedEvents?.() ?? []; // browsers have them on localhost and https only
    const points = [this.#last, ...between.map((one) => this.#at(one)), this.#at(event)];
    this.#last = points.at(-1);
    this.stroke(points);
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#picture.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  #type(event) {
    if (!this.enabled || event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === " ") this.#keys.down = !this.#keys.down;
    else if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else if (!step) return;
    event.preventDefault();
    const from = [this.#keys.x + 0.5, this.#keys.y + 0.5];
    if (step) this.#moveKeys(step);
    if (this.#keys.down) this.stroke([from, [this.#keys.x + 0.5, this.#keys.y + 0.5]]);
    this.#placeMarker();
  }

  #moveKeys([dx, dy]) {
    const { width, height } = this.#picture;
    this.#keys.x = Math.max(0, Math.min(width - 1, this.#keys.x + dx));
    this.#keys.y = Math.max(0, Math.min(height - 1, this.#keys.y + dy));
  }

  #placeMarker() {
    const { width, height } = this.#picture;
    this.#marker.hidden = !this.enabled || !this.#canvas.matches(":focus-visible");
    this.#marker.classList.toggle("down", this.#keys.down);
    const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = this.#canvas;
    this.#marker.style.left = `${offsetLeft + ((this.#keys.x + 0.5) / width) * offsetWidth}px`;
    this.#marker.style.top = `${offsetTop + ((this.#keys.y + 0.5) / height) * offsetHeight}px`;
  }

  /** Each pixel takes the part of it that the pen covers, and never less than it had. */
  #line([x0, y0], [x1, y1]) {
    const { width, height, data } = this.#picture;
    const [dx, dy] = [x1 - x0, y1 - y0];
    const squared = dx * dx + dy * dy;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const along = squared ? ((x + 0.5 - x0) * dx + (y + 0.5 - y0) * dy) / squared : 0;
        const t = Math.max(0, Math.min(1, along));
        const distance = Math.hypot(x + 0.5 - x0 - t * dx, y + 0.5 - y0 - t * dy);
        const covered = Math.max(0, Math.min(1, RADIUS + 0.5 - distance));
        data[y * width + x] = Math.max(data[y * width + x], Math.round(255 * covered));
      }
    }
  }

  #changed(cleared = false) {
    paint(this.#canvas, this.#picture);
    this.#onChange({ ...this.#picture, data: this.#picture.data.slice() }, cleared);
  }
}
