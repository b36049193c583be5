// The panels "Bytes" and "Time". In: sizes and times by their names. Out: bars, and lines of milliseconds.

import { byId, element, formatBytes, formatMs } from "./dom.js";

const CONTAINER_MODES = ["plain", "by frequency", "with the prior", "with the prior"];
const STAGES = {
  read: "request",
  decode_picture: "read picture",
  run: "model",
  encode_answer: "write answer",
};

/** `sizes`: [[title, bytes]]. */
export function showBytes(sizes) {
  const most = Math.max(...sizes.map(([, bytes]) => bytes));
  const bars = sizes.flatMap(([title, bytes]) => {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${(100 * bytes) / most}%`;
    return [element("dt", {}, title), element("dd", {}, bar, element("span", {}, formatBytes(bytes)))];
  });
  byId("bytes").replaceChildren(...bars);
}

/** `times`: {title: {totalMs, stages}}. */
export function showTimes(times) {
  byId("times").replaceChildren(...Object.entries(times).flatMap(([title, time]) => timeRow(title, time)));
}

/** Which way of coding was the shortest: the low bits of the container's third byte (docs/code-format.md). */
export async function modeOf(container) {
  const [flags] = new Uint8Array(await container.slice(2, 3).arrayBuffer());
  return CONTAINER_MODES[flags & 3];
}

function timeRow(title, { totalMs, stages }) {
  const inside = stages.reduce((sum, { ms }) => sum + ms, 0);
  const parts = stages.map(({ name, ms }) => `${STAGES[name] ?? name} ${formatMs(ms)}`);
  if (parts.length) parts.push(`network and browser ${formatMs(Math.max(0, totalMs - inside))}`);
  return [
    element("dt", {}, title),
    element("dd", {}, element("span", { className: "total" }, formatMs(totalMs)), element("span", { className: "soft small" }, parts.join(", "))),
  ];
}
