// Says that a script of the page does not load: without it none of the others runs, so this one is no module.

addEventListener(
  "error",
  (event) => {
    const waiting = document.getElementById("waiting");
    if (waiting.hidden || (event.target !== window && !event.target.matches("script"))) return;
    waiting.textContent = "A script of the page does not load. See whether the service runs, then reload the page.";
  },
  { capture: true }, // the error of an element does not bubble
);
