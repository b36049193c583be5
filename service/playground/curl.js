// The same calls for a terminal. In: what the page has just sent. Out: a list of curl lines, each with a button to copy it.

import { address, apiKey } from "./api.js";
import { announce, element } from "./dom.js";

const LONGEST_JSON = 4096; // characters on a command line that a person may still want to paste

const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** `options`: words that come after `curl`, quoted here where a shell needs it. */
export function curlLine(path, query, options) {
  const key = apiKey() ? ["-H", '"Authorization: Bearer $VQSERVE_KEY"'] : [];
  return ["curl", ...options.map(quote), ...key, quote(address(path, query))].join(" ");
}

export const encodeLine = (query, file) => curlLine("encode", query, ["-F", `img=@${file}`]);

export const compressLine = (query, file, output) =>
  curlLine("encode", query, ["-F", `img=@${file}`, "-H", "Accept: application/vnd.vqserve.codes", "-o", output]);

export const decompressLine = (query, container, output) =>
  curlLine("decode", query, [
    ...["--data-binary", `@${container}`, "-H", "Content-Type: application/vnd.vqserve.codes", "-o", output],
  ]);

/** `grid`: {codes, width, height}; null where the codes are too many for a command line. */
export const decodeLine = (query, grid, output) => jsonLine("decode", query, grid, ["-o", output]);

export const generateLine = (query, settings, output) => jsonLine("generate", query, settings, output ? ["-o", output] : []);

function jsonLine(path, query, body, options) {
  const json = JSON.stringify(body);
  if (json.length > LONGEST_JSON) return null;
  return curlLine(path, query, ["-H", "Content-Type: application/json", "-d", json, ...options]);
}

/** `lines`: [[title, line or null]]; a line that is null is left out. Rows stay where they are, with the focus in them. */
export function showLines(list, lines) {
  const rows = Object.fromEntries([...list.children].map((row) => [row.dataset.title, row]));
  let next = list.firstElementChild;
  for (const [title, line] of lines.filter(([, line]) => line)) {
    const row = rows[title] ?? list.insertBefore(rowOf(title), next);
    row.querySelector("code").textContent = line;
    next = row.nextElementSibling;
    delete rows[title];
  }
  for (const row of Object.values(rows)) row.remove();
}

function rowOf(title) {
  const button = element("button", { type: "button", className: "quiet", "aria-label": `Copy: ${title}` }, "Copy");
  const code = element("code", { tabindex: "0", role: "group", "aria-label": `curl: ${title}` }); // `code` may have no name
  button.addEventListener("click", () => copy(code, button));
  return element("li", { "data-title": title }, element("span", { className: "curl-title" }, title), code, button);
}

/** Browsers only give the clipboard to localhost and https, where people allow it; else the line is selected for Ctrl+C. */
async function copy(code, button) {
  const copied = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  if (!copied) getSelection().selectAllChildren(code);
  button.textContent = copied ? "Copied" : "Selected";
  announce(copied ? "Copied to the clipboard." : "Selected. Copy it with Ctrl+C.");
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
