// The lower half of the page: new pictures from the prior, and the completion of erased codes.
// In: the form. Out: a sheet that fills row by row while the service draws.

import { checkVersion, generate, Outdated } from "./api.js";
import { coloursOf, NO_COLOUR, rgbOf } from "./colours.js";
import { generateLine, showLines } from "./curl.js";
import { allow, announce, byId, element, formatMs, hideProblem, problemsSoFar, showProblem } from "./dom.js";

const CLICK_HELP = "A click on a sample takes it to the top as the picture.";

export class Generator {
  #workbench;
  #running = null; // {controller, settings} of the request that is on its way
  #refusal = 0; // which problem was the last of its own: what succeeds here does not hide that of a picture

  constructor(workbench) {
    this.#workbench = workbench;
    byId("generate-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#sheet();
    });
    for (const id of ["cancel", "complete-cancel"]) byId(id).addEventListener("click", () => this.#running?.controller.abort());
    byId("complete").addEventListener("click", () => this.#complete());
    byId("label").addEventListener("change", () => this.#allowGuidance());
    workbench.grid.addEventListener("erase", () => this.#showErased());
    workbench.addEventListener("picture", () => this.#forgetCompletion());
    byId("restore").addEventListener("click", () => this.#forgetCompletion());
    byId("keep-seed").addEventListener("click", ({ target }) => (byId("seed").value = target.dataset.seed));
  }

  open(model) {
    this.#abandon();
    byId("generate-body").hidden = !model.prior;
    byId("no-prior").hidden = model.prior;
    for (const id of ["label-field", "guidance-field"]) byId(id).hidden = !model.labels;
    const labels = (model.labels ?? []).map((name, index) => element("option", { value: index }, name));
    byId("label").replaceChildren(element("option", { value: "" }, "any"), ...labels);
    this.#allowGuidance();
    this.#emptySheet(CLICK_HELP);
    byId("generate-lines").replaceChildren();
    this.#showErased();
  }

  /** Without a label there is nothing to push towards. */
  #allowGuidance() {
    byId("guidance").disabled = byId("label").value === "";
  }

  /** {name in the service's JSON: id of its field} of what a completion takes too. */
  get #fields() {
    const fields = { label: "label", temperature: "temperature", top_k: "top-k", top_p: "top-p", seed: "seed" };
    return byId("guidance").disabled ? fields : { ...fields, guidance: "guidance" };
  }

  /** The form as the service's JSON, without what is left to its defaults. */
  #settings() {
    const filled = Object.entries(this.#fields).filter(([, id]) => byId(id).value !== "");
    return Object.fromEntries(filled.map(([name, id]) => [name, Number(byId(id).value)]));
  }

  async #sheet() {
    const { model, shortQuery } = this.#workbench;
    const settings = { n: Number(byId("n").value), ...this.#settings() };
    const height = byId("sheet").offsetHeight;
    this.#emptySheet("Waiting for the first row…");
    byId("sheet").style.minHeight = `${height}px`; // so that the page does not jump before the first row
    let cells = null; // until the service has agreed to so many
    const cellsFor = (items) => (cells ??= this.#showCells(items.map((_, index) => new Sample(model, index))));
    const onRow = ({ row, items }) => {
      items.forEach(({ codes }, index) => cellsFor(items)[index].showRow(row, codes));
      byId("generate-facts").textContent = `Row ${row + 1} of ${model.codes.height}`;
    };
    showLines(byId("generate-lines"), [["This sheet", generateLine(shortQuery, settings, "samples.png")]]);
    const outcome = await this.#run(settings, onRow);
    if (!outcome) return;
    const { answer, timing } = outcome;
    if (!answer) {
      this.#emptySheet(outcome.ended);
      return;
    }
    answer.items.forEach((item, index) => cellsFor(answer.items)[index].show(item, () => this.#take(item)));
    byId("keep-seed").dataset.seed = answer.seed;
    byId("keep-seed").hidden = false;
    const rows = `first row ${formatMs(timing.firstRowMs)}, all ${formatMs(timing.totalMs)}`;
    byId("generate-facts").textContent = `Seed ${answer.seed}; ${rows}. ${CLICK_HELP}`;
    const same = { ...settings, seed: answer.seed };
    showLines(byId("generate-lines"), [
      ["This sheet", generateLine(shortQuery, same, "samples.png")],
      ["Row by row", generateLine(shortQuery, same, null)?.replace("curl ", "curl -N -H 'Accept: text/event-stream' ")],
    ]);
    announce(`${answer.items.length} samples are ready.`);
  }

  async #complete() {
    // Of what is no number a browser gives "", which would be taken for the default; its own words come from the field.
    if (!Object.values(this.#fields).every((id) => byId(id).reportValidity())) return;
    const { grid, shortQuery } = this.#workbench;
    const [known, before, filled] = [grid.known, JSON.stringify(grid.codes), []];
    const settings = { n: 1, ...this.#settings(), known };
    const outcome = await this.#run(settings, ({ row, items }) => filled.push(...grid.fillRow(row, items[0].codes, known)));
    if (!outcome) return;
    const { answer, timing } = outcome;
    if (!answer) {
      grid.takeBack(filled);
      // A code that was changed meanwhile has been decoded beside some that are gone now.
      if (JSON.stringify(grid.codes) !== before) await this.#workbench.codesChanged();
      return;
    }
    this.#workbench.showTime("complete", timing);
    showLines(byId("complete-lines"), [["This completion", generateLine(shortQuery, { ...settings, seed: answer.seed }, "completed.png")]]);
    this.#showErased();
    await this.#workbench.codesChanged("The erased codes are completed."); // last: when it ends, the picture may be another one
  }

  /**
   * The picture is another one, or its own codes are wanted back.
   * Only a completion has known codes; a sheet has nothing to do with the picture.
   */
  #forgetCompletion() {
    if (this.#running?.settings.known) this.#abandon();
    byId("complete-lines").replaceChildren();
    this.#showErased();
  }

  #emptySheet(facts) {
    this.#showCells([]);
    byId("generate-facts").textContent = facts;
    byId("keep-seed").hidden = true;
  }

  #showCells(cells) {
    byId("sheet").style.minHeight = "";
    byId("sheet").replaceChildren(...cells.map(({ button }) => button));
    return cells;
  }

  #take(item) {
    this.#workbench.source.loadMade(pngOf(item.image));
    byId("codec-heading").focus({ preventScroll: true }); // else the next Tab leads back to the sheet
    byId("codec-heading").scrollIntoView({ block: "start" });
  }

  #showErased() {
    const { grid, model, isCurrent } = this.#workbench;
    const count = grid.erasedCount;
    const fits = grid.rows === model?.codes.height && grid.columns === model.codes.width;
    allow(byId("complete"), count && !this.#running && model?.prior && fits && isCurrent);
    byId("erase-how").hidden = !model?.prior;
    if (model && !model.prior) byId("erase-help").textContent = "This model has no prior, so it cannot complete erased codes.";
    else if (model?.prior && !fits) byId("erase-help").textContent = sizeHelp(model, grid);
    else if (count) byId("erase-help").textContent = `${count} of ${grid.rows * grid.columns} codes are erased.`;
    else byId("erase-help").textContent = "Drag over the codes to erase a region.";
  }

  /** {answer, timing}; {ended}, in words, where it was cancelled or failed; null where it was abandoned. */
  async #run(settings, onRow) {
    this.#abandon();
    const run = { controller: new AbortController(), settings };
    const isCurrent = () => this.#running === run;
    this.#setRunning(run);
    announce("Drawing…");
    try {
      const options = { signal: run.controller.signal, onRow: (row) => isCurrent() && onRow(row) };
      const outcome = await generate(this.#workbench.query, settings, options);
      if (!isCurrent()) return null;
      checkVersion(outcome.answer, this.#workbench.model);
      hideProblem(this.#refusal);
      return outcome;
    } catch (error) {
      if (!isCurrent()) return null;
      const cancelled = error.name === "AbortError";
      if (cancelled) announce("Cancelled.");
      else this.#refuse(error);
      return { ended: cancelled ? "Cancelled." : "" };
    } finally {
      if (isCurrent()) this.#setRunning(null);
    }
  }

  #refuse(error) {
    showProblem(error, error instanceof Outdated ? () => this.#workbench.again(error) : null);
    this.#refusal = problemsSoFar();
  }

  /** What is running has lost its place on the page: it ends, and shows nothing any more. */
  #abandon() {
    this.#running?.controller.abort();
    this.#setRunning(null);
  }

  #setRunning(run) {
    this.#running = run;
    for (const id of ["cancel", "complete-cancel"]) allow(byId(id), run);
    allow(byId("generate"), !run);
    this.#showErased();
  }
}

/** The prior has learned grids of one size; the pictures of a model of any size have others too. */
function sizeHelp({ codes, picture }, grid) {
  const side = picture.multiple_of;
  return (
    `The prior completes pictures of ${codes.width * side} × ${codes.height * side} pixels only, ` +
    `with ${codes.height} × ${codes.width} codes; this one has ${grid.rows} × ${grid.columns}.`
  );
}

/** One picture of the sheet: first its codes as colours, then the picture. */
class Sample {
  constructor(model, index) {
    const { width, height } = model.codes;
    this.colours = coloursOf(model);
    this.labels = model.labels ?? [];
    this.canvas = element("canvas", { width, height, "aria-hidden": "true" });
    this.caption = element("span", { className: "caption" }, "\u00a0");
    this.button = element("button", { type: "button", className: "sample", "aria-label": `Sample ${index + 1}` }, this.canvas, this.caption);
    this.button.disabled = true;
    this.name = `Sample ${index + 1}`;
  }

  showRow(row, codes) {
    const image = new ImageData(codes.length, 1);
    codes.forEach((code, x) => image.data.set([...rgbOf(this.colours[code] ?? NO_COLOUR), 255], 4 * x));
    this.canvas.getContext("2d").putImageData(image, 0, row);
  }

  show({ image, label, bits }, onClick) {
    const picture = element("img", { src: `data:image/png;base64,${image}`, alt: "" });
    this.canvas.replaceWith(picture);
    const parts = [this.labels[label], bits == null ? null : `${bits.toFixed(0)} bits`].filter(Boolean);
    const apart = parts.map((part) => element("bdi", {}, part)); // a label may be written from right to left
    this.caption.replaceChildren(...apart.flatMap((part, i) => (i ? [" · ", part] : [part])));
    this.button.setAttribute("aria-label", `${this.name}, ${parts.join(", ")}: take it as the picture`);
    this.button.disabled = false;
    this.button.addEventListener("click", onClick);
  }
}

function pngOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}
