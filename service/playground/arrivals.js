// Files that people open, paste or drop. In: what the browser tells of them. Out: calls of `load` with each.

import { byId } from "./dom.js";

export function onPictureFile(load) {
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) load(target.files[0]);
    target.value = "";
  });
  document.addEventListener("paste", ({ target, clipboardData }) => {
    const field = target.matches?.("[type=number], [type=password]");
    if (field && clipboardData.types.includes("text/plain")) return; // cells of a spreadsheet have a picture with them
    const files = [...clipboardData.files];
    const file = files.find(({ type }) => type.startsWith("image/")) ?? files[0];
    if (file) load(file);
  });
  for (const type of ["dragenter", "dragover"]) {
    document.addEventListener(type, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return; // text that is dragged into a field
      event.preventDefault();
      byId("drop").classList.add("dropping");
    });
  }
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) byId("drop").classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    byId("drop").classList.remove("dropping");
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) load(file); // none where another program has only promised one
  });
}
