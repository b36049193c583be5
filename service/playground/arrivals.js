// Files that people open, paste or drop. In: what the browser tells of them. Out: calls of `load` with each.

import { byId, showProblem } from "./dom.js";

/** A file, or all that Firefox gives of a picture of another page: its address, which it would open in the place of this one. */
const bringsPicture = ({ target, dataTransfer: { types } }) =>
  types.includes("Files") || (types.includes("text/uri-list") && !target.matches?.("input, textarea"));

const NO_FILE = {
  title: "Only the address of a picture was dropped",
  detail: "Save the picture and drop its file, or copy the picture and paste it.",
};

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
      if (!bringsPicture(event)) return; // text that is dragged into a field
      event.preventDefault();
      byId("drop").classList.add("dropping");
    });
  }
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) byId("drop").classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    byId("drop").classList.remove("dropping");
    if (!bringsPicture(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) load(file);
    else showProblem(NO_FILE); // nor where another program has only promised one
  });
}
