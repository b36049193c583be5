// Small helpers around the document. In: ids, numbers, names. Out: elements and text for people.

import { Outdated } from "./api.js";

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const { className, ...attributes } = properties;
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Says something to screen readers without moving the focus. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/**
 * Whether a button does anything. `disabled` would take the focus from it, so it says so by aria-disabled instead, and
 * `ignoreForbiddenClicks` keeps its clicks from it.
 */
export function allow(button, allowed) {
  button.setAttribute("aria-disabled", !allowed);
}

/** Enter in a field of a form clicks its submit button too. */
export function ignoreForbiddenClicks() {
  const ignore = (event) => {
    if (!event.target.closest("[aria-disabled=true]")) return;
    event.preventDefault();
    event.stopPropagation();
  };
  document.addEventListener("click", ignore, { capture: true });
}

const focusedWithin = new WeakMap(); // what had the focus in a part of the page that is inert

/** Being inert takes the focus away; it comes back at the end where it has gone nowhere else. */
export function setInert(part, inert) {
  if (part.contains(document.activeElement)) focusedWithin.set(part, document.activeElement);
  part.inert = inert;
  if (inert) return;
  if (document.activeElement === document.body) focusedWithin.get(part)?.focus({ preventScroll: true });
  focusedWithin.delete(part);
}

let problems = 0;
let focusedBefore = null; // what had the focus when the message came: there it returns from a button that hides it
let retry = null; // what the message offers to do again

/** How many problems have been shown: what succeeds may hide those that stood when it began, and no newer one. */
export const problemsSoFar = () => problems;

/** `again`: does once more what has failed; offered where that may end otherwise. */
export function showProblem(error, again = null) {
  if (error.name === "AbortError") return;
  problems += 1;
  const problem = byId("problem");
  if (!problem.contains(document.activeElement)) focusedBefore = document.activeElement;
  byId("problem-title").textContent = error.title ?? "Something went wrong in the page";
  byId("problem-detail").textContent = error.detail ?? error.message;
  retry = mayPass(error) ? again : null;
  byId("problem-again").hidden = !retry;
  problem.hidden = false;
  keepClear(problem);
  problem.dispatchEvent(new CustomEvent("problem", { detail: error }));
}

/** No answer at all, or one about the service or the moment; any other is about what was sent, and would be the same. */
function mayPass(error) {
  const { status } = error;
  return error instanceof Outdated || !status || status >= 500 || status === 408 || status === 429;
}

/** The message goes first, so that it is seen and read to come again. */
export function tryAgain() {
  const again = retry;
  hideProblem();
  again();
}

export function hideProblem(upTo = problems) {
  if (upTo !== problems) return;
  const problem = byId("problem");
  const byKeyboard = problem.querySelector("button:focus-visible"); // to focus a field opens the keyboard of a phone
  problem.hidden = true;
  keepClear(null);
  if (byKeyboard) focusedBefore?.focus();
}

/** What gets the focus is scrolled to where `message`, which stays at the top of the window, does not cover it. */
function keepClear(message) {
  document.documentElement.style.scrollPaddingTop = message ? `${message.offsetHeight + 16}px` : "";
}

/** Codes, pictures and numbers of another picture than the one on top are pale until their own come. */
export function setStale(stale, ...ids) {
  for (const id of ids) byId(id).classList.toggle("stale", stale);
}

/** As large as its square frame allows. */
export function setShape(node, width, height) {
  node.style.aspectRatio = `${width} / ${height}`;
  node.classList.toggle("tall", height > width);
}

export function formatBytes(bytes) {
  if (bytes >= 999_950) return `${(bytes / 1_000_000).toFixed(1)} MB`;
  return bytes < 10_000 ? `${bytes} B` : `${(bytes / 1000).toFixed(1)} kB`;
}

export function formatMs(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(ms >= 10 ? 1 : 2)} ms`;
}

/** Saves `blob` under `name` when the link is followed; the blob before it is let go. */
export function offerDownload(link, blob, name) {
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.hidden = false;
}

/** Runs `work` for the latest arguments only: calls that come while it is busy replace each other. */
export function latest(work) {
  let busy = false;
  let waiting = null;
  return async function run(...given) {
    waiting = given;
    if (busy) return;
    busy = true;
    try {
      while (waiting) {
        const now = waiting;
        waiting = null;
        await work(...now);
      }
    } finally {
      busy = false;
    }
  };
}
