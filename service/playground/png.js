// Pixels -> a PNG file, in a thread of its own: a photograph takes seconds, in which the page has to answer.

let worker = null;

/** {width, height, channels, data} -> Blob of type image/png. One at a time. */
export function encodePng(picture) {
  worker ??= new Worker(new URL("png_worker.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data instanceof Error ? reject(data) : resolve(data));
    worker.onerror = () => {
      worker = null; // the next picture tries again
      reject(new Error("png_worker.js, a script of the page, does not load. Is the service still there?"));
    };
    worker.postMessage(picture);
  });
}
