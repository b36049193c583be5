// Pictures as numbers. A picture is {width, height, channels, data}, data uint8 (H,W,C), as the model takes it.

import { Problem } from "./api.js";
import { setShape } from "./dom.js";

const MOST_PIXELS = 1 << 24; // of one picture: what the service takes by default, and a page can still work on
const LONGEST_PIXELATED = 400; // of a side; a frame is at most as large, and pixels left out make lines jagged

const BRIGHTER = [236, 118, 28];
const DARKER = [62, 126, 240];

export const blank = (width, height, channels) => {
  return { width, height, channels, data: new Uint8Array(width * height * channels) };
};

/** A file that the browser can show -> an ImageBitmap, colours as they are stored. */
export const openImage = (file) => createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });

/**
 * An image in the size of the model (`spec`: its picture), with the fit `crop`, `whole` or `keep`.
 * What is transparent lies on white; what lies outside a whole picture is black. A Problem where that is too large.
 */
export function fitImage(image, spec, fit, inverted) {
  const keep = fit === "keep";
  const width = keep ? image.width : spec.width;
  const height = keep ? image.height : spec.height;
  checkSize(width, height);
  checkReading();
  const scale = keep ? 1 : (fit === "crop" ? Math.max : Math.min)(width / image.width, height / image.height);
  const box = [(width - image.width * scale) / 2, (height - image.height * scale) / 2];
  box.push(image.width * scale, image.height * scale);
  const context = contextOf(width, height);
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, width, height);
  context.fillStyle = "white";
  context.fillRect(...box);
  context.drawImage(image, ...box);
  if (inverted) {
    context.globalCompositeOperation = "difference";
    context.fillRect(...box);
  }
  return fromRgba(context.getImageData(0, 0, width, height), spec.channels);
}

function checkSize(width, height) {
  if (width * height <= MOST_PIXELS) return;
  const detail = `${width}x${height} is more than ${MOST_PIXELS} pixels; make it smaller.`;
  throw new Problem({ title: "The picture has too many pixels", detail });
}

/** A decoded picture, pixel by pixel. */
export function readImage(image, channels) {
  const { width, height } = image;
  const context = contextOf(width, height);
  context.drawImage(image, 0, 0);
  checkReading();
  return fromRgba(context.getImageData(0, 0, width, height), channels);
}

/** Some browsers change a pixel here and there by one level; others, as Tor Browser, give a page noise for what it has drawn. */
function checkReading() {
  const context = contextOf(16, 16);
  const drawn = new ImageData(16, 16);
  for (let i = 0; i < drawn.data.length; i++) drawn.data[i] = i % 4 === 3 ? 255 : 37 * i % 256;
  context.putImageData(drawn, 0, 0);
  const { data } = context.getImageData(0, 0, 16, 16);
  if (data.every((value, i) => Math.abs(value - drawn.data[i]) <= 1)) return;
  const detail = "Against fingerprinting it gives noise in their place. Allow this page to read canvases, or take another browser.";
  throw new Problem({ title: "The browser hides pixels from the page", detail });
}

/** Grey by the weights of ITU-R 601, as the service does. */
function fromRgba({ width, height, data }, channels) {
  const picture = blank(width, height, channels);
  for (let i = 0; i < width * height; i++) {
    if (channels === 3) for (let c = 0; c < 3; c++) picture.data[3 * i + c] = data[4 * i + c];
    else picture.data[i] = (19595 * data[4 * i] + 38470 * data[4 * i + 1] + 7471 * data[4 * i + 2] + 32768) >> 16;
  }
  return picture;
}

export function paint(canvas, { width, height, channels, data }) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = data[i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  show(canvas, image);
}

/** Orange where `after` is brighter than `before`, blue where it is darker, the page where they agree. */
export function paintDifference(canvas, before, after) {
  const { width, height, channels } = before;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += after.data[i * channels + c] - before.data[i * channels + c];
    const difference = sum / channels;
    const colour = difference > 0 ? BRIGHTER : DARKER;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = colour[c];
    image.data[4 * i + 3] = Math.min(255, 2 * Math.abs(difference));
  }
  show(canvas, image);
}

/** MSE is the mean over samples in [0, 1], as in the bundle's manifest; PSNR in dB comes from it. */
export function compare(before, after) {
  let squares = 0;
  let largest = 0;
  for (let i = 0; i < before.data.length; i++) {
    const difference = before.data[i] - after.data[i];
    squares += difference * difference;
    largest = Math.max(largest, Math.abs(difference));
  }
  const mse = squares / before.data.length / 255 ** 2;
  return { mse, psnrDb: mse ? -10 * Math.log10(mse) : Infinity, largest };
}

export function clear(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

function show(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  setShape(canvas, image.width, image.height);
  canvas.style.imageRendering = Math.max(image.width, image.height) > LONGEST_PIXELATED ? "auto" : "pixelated";
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function contextOf(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "black";
  return context;
}
