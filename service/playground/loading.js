// Says that a script of the page does not load or fails: without it none of the others runs, so this one is no module.

addEventListener(
  "error",
  ({ target, message }) => {
    const waiting = document.getElementById("waiting");
    if (waiting.hidden || (target !== window && !target.matches("script"))) return;
    waiting.textContent =
      target === window
        ? `A script of the page fails. The browser says: ${message.replace(/\.$/, "")}. Reload the page, or take a newer browser.`
        : "A script of the page does not load. See whether the service runs, then reload the page.";
  },
  { capture: true }, // the error of an element does not bubble
);
