// The worker of png.js: pixels -> a PNG file, grey or RGB with 8 bits a sample, so that the size shown is that of a fair PNG
// of the picture. (A canvas would write it as RGBA.)

addEventListener("message", async ({ data }) => postMessage(await encodePng(data).catch((error) => error)));

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** {width, height, channels, data} -> Blob of type image/png. */
async function encodePng({ width, height, channels, data }) {
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, 8); // bits a sample
  header.setUint8(9, channels === 1 ? 0 : 2); // grey or RGB
  const compressed = await deflate(filter(data, width * channels, channels));
  const parts = [
    new Uint8Array(SIGNATURE),
    chunk("IHDR", new Uint8Array(header.buffer)),
    chunk("IDAT", compressed),
    chunk("IEND", new Uint8Array()),
  ];
  return new Blob(parts, { type: "image/png" });
}

/** Each row by the filter with the smallest sum of absolute differences, as the PNG specification suggests. */
function filter(data, stride, step) {
  const rows = data.length / stride;
  const filtered = new Uint8Array(data.length + rows);
  const candidates = Array.from({ length: 5 }, () => new Int8Array(stride));
  for (let row = 0; row < rows; row++) {
    filterRow(candidates, data, row * stride, step);
    const costs = candidates.map(costOf);
    const best = costs.indexOf(Math.min(...costs));
    filtered[row * (stride + 1)] = best;
    filtered.set(candidates[best], row * (stride + 1) + 1);
  }
  return filtered;
}

/** The row that begins at `start` by all five filters at once, in the order of their numbers. */
function filterRow([none, sub, up, average, paeth], data, start, step) {
  const stride = none.length;
  for (let i = 0; i < stride; i++) {
    const value = data[start + i];
    const left = i >= step ? data[start + i - step] : 0;
    const above = start ? data[start + i - stride] : 0;
    const corner = start && i >= step ? data[start + i - stride - step] : 0;
    none[i] = value;
    sub[i] = value - left;
    up[i] = value - above;
    average[i] = value - ((left + above) >> 1);
    paeth[i] = value - nearest(left, above, corner);
  }
}

/** Paeth's predictor: which of the three is nearest to left + above - corner. */
function nearest(left, above, corner) {
  const [a, b, c] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? above : corner;
}

function costOf(bytes) {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) sum += Math.abs(bytes[i]);
  return sum;
}

async function deflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(name, body) {
  const bytes = new Uint8Array(body.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, body.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(body, 8);
  view.setUint32(body.length + 8, crc32(bytes.subarray(4, body.length + 8)));
  return bytes;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = ~0;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
