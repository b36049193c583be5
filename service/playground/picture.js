// Where the picture comes from: a file, the clipboard, the pad, or the first drawing of a model.
// In: what people bring. Out: a call of `show` with pixels that the model takes, at each change, and whether the picture
// is another one or the one that is being drawn on.

import { Problem } from "./api.js";
import { onPictureFile } from "./arrivals.js";
import { byId, showProblem } from "./dom.js";
import { Pad } from "./pad.js";
import { blank, fitImage, openImage } from "./pixels.js";

const SEVEN = [[7.5, 8], [20.5, 7.5], [16, 14], [13, 22]]; // the first picture, so that there is something to see

export class PictureSource {
  #model = null;
  #image = null; // the file that was opened, as the browser shows it; null for a drawing
  #picture = null; // the pixels that are shown
  #opening = null; // the file that was asked for last; null where the pad has been cleared since
  #reported;
  #show;

  /** `reported` runs what may fail, and shows its problem. */
  constructor(reported, show) {
    this.#reported = reported;
    this.#show = show;
    this.pad = new Pad(byId("pad"), byId("pen"), (picture, cleared) => this.#draw(picture, cleared));
    onPictureFile((file) => this.load(file));
    byId("clear").addEventListener("click", () => this.#clear());
    for (const id of ["fit", "invert"]) {
      byId(id).addEventListener("change", () => this.#image && this.#reported(() => this.#fit(this.#image)));
    }
  }

  /** A model that takes other pictures: a file is fitted to it again, and for a drawing the first one comes back. */
  open(model) {
    const takesTheSame = JSON.stringify(model.picture) === JSON.stringify(this.#model?.picture);
    this.#model = model;
    if (!takesTheSame) {
      byId("fit").value = model.picture.any_size ? "keep" : "crop";
      byId("invert").checked = false; // where any size is taken nothing shows that it is
    }
    for (const id of ["clear", "pad-help"]) byId(id).hidden = !this.#drawable;
    byId("how").textContent = this.#drawable
      ? "Draw, or drop, paste or open a picture. Then change its codes and see what they make."
      : "Drop, paste or open a picture. Then change its codes and see what they make.";
    try {
      if (takesTheSame) this.#take(this.#picture);
      else if (this.#image) this.#fit(this.#image);
      else this.#drawExample();
    } catch (error) {
      this.#image = null; // a file that is too large for this model
      this.#drawExample();
      showProblem(error); // last, as what has begun before it does not hide it
    }
  }

  /** A file or blob that the browser can show becomes the picture, inverted where that is chosen. */
  async load(blob) {
    if (!this.#model) return; // a key is asked for, or the service is not there
    this.#opening = blob;
    await this.#reported(async () => {
      const image = await openImage(blob).catch(() => {
        const detail = "The browser cannot show this file. Take a PNG, JPEG, WebP or BMP file.";
        throw new Problem({ title: "Not a picture", detail });
      });
      if (this.#opening === blob) this.#fit(image); // else another has been asked for since
    });
  }

  /** As `load`, and as it is: a picture that the model made. */
  async loadMade(blob) {
    byId("invert").checked = false;
    await this.load(blob);
  }

  get #drawable() {
    const { channels, any_size: anySize } = this.#model.picture;
    return channels === 1 && !anySize;
  }

  #drawExample() {
    const { width, height, channels } = this.#model.picture;
    const picture = blank(width, height, channels);
    if (this.#drawable) {
      this.pad.open(picture, true);
      this.pad.stroke(SEVEN.map(([x, y]) => [(x * width) / 28, (y * height) / 28]));
    } else {
      for (let i = 0; i < picture.data.length; i++) {
        const [x, y, c] = [Math.floor(i / channels) % width, Math.floor(i / channels / width), i % channels];
        picture.data[i] = 255 * [x / width, y / height, 1 - x / width][c];
      }
      this.#take(picture);
    }
  }

  #fit(image) {
    const picture = fitImage(image, this.#model.picture, byId("fit").value, byId("invert").checked);
    this.#image = image;
    this.#take(picture);
  }

  #clear() {
    this.#forgetFile();
    const { width, height, channels } = this.#model.picture;
    this.#take(blank(width, height, channels));
  }

  #take(picture) {
    const { width, height } = this.#model.picture;
    this.pad.open(picture, this.#drawable && picture.width === width && picture.height === height);
    this.#tell(picture, { another: true });
  }

  #draw(picture, cleared) {
    if (cleared) this.#forgetFile();
    this.#tell(picture, { another: false });
  }

  #tell(picture, change) {
    this.#picture = picture;
    byId("fit-controls").hidden = !this.#image || this.#model.picture.any_size;
    byId("picture-facts").textContent = `${picture.width} × ${picture.height}`;
    this.#show(picture, change);
  }

  #forgetFile() {
    this.#image = null;
    this.#opening = null;
  }
}
