// The service's HTTP API. In: pictures and codes. Out: the answer and how long it took; a Problem when it refuses.

const CONTAINER = "application/vnd.vqserve.codes";
const NPY = "application/x-npy";
const KEY_NAME = "vqserve-key";
const LONGEST_DETAIL = 200; // characters of an answer that is not the service's own
const INVALID_CODES = "urn:vqserve:problem:invalid-codes";
const TOO_MANY_PIXELS = "urn:vqserve:problem:picture-too-large";
const OUTDATED = ["urn:vqserve:problem:unknown-model", "urn:vqserve:problem:wrong-picture-size"];
const OF_ANOTHER_VERSION = /^version is .*, the codes would be decoded with '(\w+)'/; // in the service's words

/** What the service answers instead of a result, in its own words (RFC 9457). */
export class Problem extends Error {
  constructor({ title, detail, status, type }) {
    super(detail);
    Object.assign(this, { title, detail, status, type });
  }
}

/** The models have to be listed again. */
export class Outdated extends Problem {}

/** The key that is kept; a Problem where the browser gives the page no storage. */
export function apiKey() {
  try {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  } catch (error) {
    const detail = `The page keeps the API key in sessionStorage. The browser says: ${error.message}`;
    throw new Problem({ title: "The browser forbids the page to store data", detail });
  }
}

export const keepApiKey = (key) => sessionStorage.setItem(KEY_NAME, key);

const NOT_IN_A_HEADER = /[^\x20-\x7e]/; // browsers send what lies above ASCII in another encoding than the service reads

/**
 * Relative to the page, so that it also works behind a proxy that adds a path. Without the name and password that may stand
 * in the page's own address: `fetch` refuses them, and the browser sends them by itself.
 */
export function address(path, query = {}) {
  const url = new URL(path, location.origin + location.pathname);
  for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
  return url.href;
}

/** `key`: one to try, before it is kept. */
export async function listModels(key) {
  const { response } = await call("models", { key });
  return (await jsonOf(response)).models;
}

/** PNG bytes -> {codes, shape, width, height, ...}. */
export async function encode(query, picture, signal) {
  const { response, finish } = await send(picture, { query, signal });
  return { answer: await jsonOf(response), timing: finish() };
}

/** PNG bytes -> the container's bytes. */
export async function compress(query, picture, signal) {
  const { response, finish } = await send(picture, { query, accept: CONTAINER, signal });
  return { container: await reached(response.blob()), timing: finish() };
}

/** Whoever refuses so many bytes, the service or a proxy, means those of the PNG: the file it comes from may be a small JPEG. */
function send(picture, options) {
  return call("encode", { ...options, body: picture, type: picture.type }).catch((error) => {
    if (error.status !== 413 || error.type === TOO_MANY_PIXELS) throw error;
    const detail = `${error.detail} The picture has ${picture.size} bytes as PNG, which is what the page sends; make it smaller.`;
    throw new Problem({ ...error, detail: detail.trim() });
  });
}

/** {codes, width, height, version} -> a PNG file of that size, without the border that a multiple of the model's needs. */
export async function decode(query, grid, signal) {
  const body = JSON.stringify(grid);
  const options = { query, body, type: "application/json", accept: "image/png", signal };
  const { response, finish } = await call("decode", options).catch((error) => {
    const version = error.type === INVALID_CODES ? error.detail.match(OF_ANOTHER_VERSION)?.[1] : null;
    if (version) checkVersion({ version }, grid);
    throw error;
  });
  return { picture: await reached(response.blob()), timing: finish() };
}

/** Several grids of codes -> as many pictures of one size. */
export async function decodeMany(query, codes, signal) {
  const body = JSON.stringify({ codes });
  const { response } = await call("decode", { query, body, type: "application/json", accept: NPY, signal });
  const bytes = await reached(response.arrayBuffer());
  // The npy format: 8 bytes of magic and version, the length of a header in Python's syntax, the header, the numbers.
  const start = 10 + new DataView(bytes).getUint16(8, true);
  const shape = new TextDecoder().decode(bytes.slice(10, start)).match(/'shape': \(([^)]*)\)/)[1];
  const [count, height, width, channels] = shape.split(",").map(Number);
  const size = height * width * channels;
  return Array.from({ length: count }, (_, i) => {
    return { width, height, channels, data: new Uint8Array(bytes, start + i * size, size) };
  });
}

/** Calls `onRow` with each row of codes as it is drawn; the answer is that of the last event. */
export async function generate(query, settings, { signal, onRow }) {
  const body = JSON.stringify(settings);
  const options = { query, body, type: "application/json", accept: "text/event-stream", signal };
  const { response, finish, started } = await call("generate", options);
  let firstRowMs = null;
  for await (const { event, data } of events(response.body)) {
    if (event === "row") {
      firstRowMs ??= performance.now() - started;
      onRow(data);
    } else if (event === "done") {
      return { answer: data, timing: { ...finish(), firstRowMs } };
    } else if (data?.title) {
      throw new Problem(data);
    }
  }
  throw new Problem({ title: "The stream ended early", detail: "The service stopped before the last row." });
}

/** The page knows one version of each model: its colours, its labels and the shape of its codes. */
export function checkVersion({ version }, model) {
  if (version === model.version) return;
  const detail = `It is ${version.slice(0, 12)}, and the page shows ${model.version.slice(0, 12)}. Try again to take it.`;
  throw new Outdated({ title: "The service has another version of this model now", detail });
}

async function call(path, { query, body, type, accept = "application/json", signal, key = apiKey() } = {}) {
  const headers = { Accept: accept, "X-Server-Timing": "1" };
  if (type) headers["Content-Type"] = type;
  if (key) headers.Authorization = authorization(key);
  const started = performance.now();
  const response = await reached(fetch(address(path, query), { method: body ? "POST" : "GET", body, headers, signal }));
  if (!response.ok) throw refusal(await problemOf(response));
  if (isWebPage(response)) throw unreadable("It is a web page, which the service does not answer with.");
  const finish = () => ({ totalMs: performance.now() - started, stages: stagesOf(response) });
  return { response, finish, started };
}

/** A model that is unknown now was in the list, and a picture has the size that stood there: they have changed since. */
const refusal = (problem) => new (OUTDATED.includes(problem.type) ? Outdated : Problem)(problem);

function authorization(key) {
  const at = key.search(NOT_IN_A_HEADER);
  if (at < 0) return `Bearer ${key}`;
  const point = key.codePointAt(at).toString(16).toUpperCase().padStart(4, "0");
  const detail = `Its character ${at + 1} (U+${point}) cannot be sent in a header, which takes letters, digits and signs of ASCII.`;
  throw new Problem({ title: "This API key cannot be sent", detail, status: 400 }); // again it would be the same
}

/** A connection that fails is a Problem as well: the browser's own TypeError looks like a mistake in the page. */
async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    const detail = `The browser says: ${error.message.replace(/\.$/, "")}. See whether the service runs, then try again.`;
    throw new Problem({ title: "The service cannot be reached", detail });
  }
}

async function problemOf(response) {
  if (typeOf(response).startsWith("application/problem+json")) return jsonOf(response);
  const detail = isWebPage(response) ? "" : shortened(await reached(response.text()));
  return { status: response.status, title: `Status ${response.status}`, detail };
}

const typeOf = (response) => response.headers.get("Content-Type") ?? "";

/** What a proxy says in the place of the service. */
const isWebPage = (response) => typeOf(response).startsWith("text/html");

const shortened = (text) => (text.length > LONGEST_DETAIL ? `${text.slice(0, LONGEST_DETAIL)}…` : text);

const unreadable = (detail) => new Problem({ title: "The answer cannot be read", detail });

const jsonOf = async (response) => parseJson(await reached(response.text()));

/** The browser's own SyntaxError looks like a mistake in the page. */
function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw unreadable(error.message);
  }
}

/** Server-Timing: `run;dur=1.2, read;dur=0.1` -> [{name, ms}]. */
function stagesOf(response) {
  const header = response.headers.get("Server-Timing") ?? "";
  return [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => ({ name, ms: Number(ms) }));
}

/** The events of a text/event-stream, with their data read as JSON. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    yield* blocks.map(parseEvent).filter(({ data }) => data !== null);
  }
}

function parseEvent(block) {
  const lines = block.split("\n");
  const field = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1));
  const data = field("data").join("\n");
  return { event: (field("event")[0] ?? "message").trim(), data: data ? parseJson(data) : null };
}
