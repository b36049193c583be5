// Pixels -> a PNG file, grey or RGB with 8 bits a sample, so that the size shown is that of a fair PNG of the picture.
// (A canvas would write it as RGBA.)

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** {width, height, channels, data} -> Blob of type image/png. */
export async function encodePng({ width, height, channels, data }) {
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
  for (let row = 0; row < rows; row++) {
    const candidates = FILTERS.map((predict) => filterRow(data, row, stride, step, predict));
    const costs = candidates.map((bytes) => bytes.reduce((sum, byte) => sum + Math.min(byte, 256 - byte), 0));
    const best = costs.indexOf(Math.min(...costs));
    filtered[row * (stride + 1)] = best;
    filtered.set(candidates[best], row * (stride + 1) + 1);
  }
  return filtered;
}

function filterRow(data, row, stride, step, predict) {
  const bytes = new Uint8Array(stride);
  const start = row * stride;
  for (let i = 0; i < stride; i++) {
    const left = i >= step ? data[start + i - step] : 0;
    const above = row ? data[start + i - stride] : 0;
    const corner = row && i >= step ? data[start + i - stride - step] : 0;
    bytes[i] = data[start + i] - predict(left, above, corner);
  }
  return bytes;
}

const FILTERS = [
  () => 0,
  (left) => left,
  (_, above) => above,
  (left, above) => (left + above) >> 1,
  (left, above, corner) => {
    const estimate = left + above - corner;
    const [a, b, c] = [left, above, corner].map((value) => Math.abs(estimate - value));
    return a <= b && a <= c ? left : b <= c ? above : corner;
  },
];

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
