// One colour a code. In: the model's description. Out: ["#rrggbb"] of length K, and the ink that is readable on each.

export const NO_COLOUR = "#ffffff"; // of a code that the model does not have

const GOLDEN_ANGLE = 137.508;
const MIDDLE_LUMINANCE = 0.179; // equally far from black and from white: sqrt(1.05 * 0.05) - 0.05

/** The mean colours of the decoded patches where the bundle knows them; distinct hues where it does not. */
export function coloursOf(model) {
  if (model.codebook_colours) return model.codebook_colours;
  return Array.from({ length: model.codes.codebook_size }, (_, code) => fromHue(code * GOLDEN_ANGLE));
}

export function rgbOf(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}

/** 0 black to 1 white. */
export function lightness(colour) {
  const [red, green, blue] = rgbOf(colour);
  return (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
}

/** Of black and white the one that contrasts more by WCAG, which is at least 4.5:1. */
export function inkOn(colour) {
  const [red, green, blue] = rgbOf(colour).map((value) => linear(value / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > MIDDLE_LUMINANCE ? "#000000" : "#ffffff";
}

const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);

/** The codes from dark to light, in rows of `columns`. The last row repeats the last code to its end. */
export function palette(colours, columns) {
  const order = colours.map((_, code) => code).sort((a, b) => lightness(colours[a]) - lightness(colours[b]) || a - b);
  const rows = [];
  for (let start = 0; start < order.length; start += columns) rows.push(order.slice(start, start + columns));
  const last = rows.at(-1);
  while (last.length < columns) last.push(last.at(-1));
  return rows;
}

function fromHue(degrees) {
  const channel = (shift) => {
    const k = (shift + degrees / 30) % 12;
    const value = 0.55 - 0.27 * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return Math.round(255 * value).toString(16).padStart(2, "0");
  };
  return `#${channel(0)}${channel(8)}${channel(4)}`;
}
