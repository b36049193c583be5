// The page: which model it shows, and the key where the service asks for one.

import { apiKey, keepApiKey, listModels } from "./api.js";
import { byId, element, hideProblem, ignoreForbiddenClicks, showProblem, tryAgain } from "./dom.js";
import { Generator } from "./generate.js";
import { Workbench } from "./workbench.js";

const workbench = new Workbench();
const generator = new Generator(workbench);
let models = [];

/** `typed`: a key to try in the place of the one that is kept. */
async function start(typed) {
  const before = models;
  let key = "";
  byId("waiting").hidden = before.length > 0;
  try {
    key = typed ?? apiKey();
    models = await listModels(key);
  } catch (error) {
    showProblem(error, () => start(typed));
    return;
  } finally {
    byId("waiting").hidden = true;
  }
  hideProblem();
  keepApiKey(key); // only now that the service has taken it
  for (const node of document.querySelectorAll(".needs-model")) node.hidden = false;
  closeKeyForm();
  hideGuarded(key);
  if (JSON.stringify(models) === JSON.stringify(before)) {
    await workbench.again(); // a key has replaced another: the picture stays
    return;
  }
  const chosen = byId("model").value;
  byId("model").replaceChildren(...models.map(({ name }) => element("option", { value: name }, name)));
  const wanted = models.find(({ name }) => name === chosen) ?? models.find((model) => model.default);
  byId("model").value = wanted.name;
  await choose();
}

/** The service takes no key, or no longer that of this page. Whatever else fails says nothing about keys. */
function openKeyForm() {
  hideGuarded(true);
  if (!byId("key-form").hidden) return;
  byId("key-form").hidden = false;
  byId("key").focus(); // far away where the lower half of the page is shown
}

function closeKeyForm() {
  const form = byId("key-form");
  if (form.contains(document.activeElement)) byId("model").focus();
  form.hidden = true;
  form.reset();
}

/** A link cannot send a key: where one is asked for, those that need it lead nowhere. */
function hideGuarded(keyed) {
  for (const link of document.querySelectorAll("a.guarded")) link.hidden = Boolean(keyed);
}

async function choose() {
  const model = models.find(({ name }) => name === byId("model").value);
  const { picture, codes, quality } = model;
  const facts = [
    `${picture.any_size ? "any size" : `${picture.width} × ${picture.height}`} in ${picture.channels === 3 ? "colour" : "grey"}`,
    `${codes.codebook_size} codes`,
    quality.pictures ? `${quality.psnr_db.toFixed(1)} dB on its ${quality.split} set` : "",
    `version ${model.version.slice(0, 12)}`,
    model.provider.replace("ExecutionProvider", ""),
  ];
  byId("model-facts").textContent = facts.filter(Boolean).join(" · ");
  generator.open(model);
  await workbench.open(model);
}

ignoreForbiddenClicks();
byId("model").addEventListener("change", choose);
workbench.addEventListener("outdated", () => start());
byId("problem-close").addEventListener("click", () => hideProblem());
byId("problem-again").addEventListener("click", tryAgain);
byId("problem").addEventListener("problem", ({ detail }) => detail.status === 401 && openKeyForm());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  start(byId("key").value.trim());
});
start();
