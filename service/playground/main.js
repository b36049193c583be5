// The page: which model it shows, and the key where the service asks for one.

import { apiKey, keepApiKey, listModels } from "./api.js";
import { byId, element, hideProblem, showProblem } from "./dom.js";
import { Generator } from "./generate.js";
import { Workbench } from "./workbench.js";

const workbench = new Workbench();
const generator = new Generator(workbench);
let models = [];

async function start(key) {
  try {
    models = await listModels(key);
  } catch (error) {
    showProblem(error);
    // Whatever else fails says nothing about keys: the form stays as it is, with what was typed.
    if (error.status === 401) {
      byId("key-form").hidden = false;
      hideGuarded(true);
    }
    return;
  }
  hideProblem();
  keepApiKey(key); // only now that the service has taken it
  byId("key-form").hidden = true;
  hideGuarded(key);
  for (const node of document.querySelectorAll(".needs-model")) node.hidden = false;
  byId("model").replaceChildren(...models.map(({ name }) => element("option", { value: name }, name)));
  byId("model").value = models.find((model) => model.default).name;
  await choose();
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

byId("model").addEventListener("change", choose);
byId("problem-close").addEventListener("click", () => hideProblem());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  start(byId("key").value.trim());
});
start(apiKey());
