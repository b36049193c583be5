"""Files and text that come by paste and drop, and whether the page opens them: scripts for `page.evaluate`."""

from __future__ import annotations

DISPATCH = """([kind, data, type, id = "drop"]) => {
    const transfer = new DataTransfer();
    if (type === "file") transfer.items.add(new File([data], "x.txt", { type: "text/plain" }));
    else transfer.setData(type === "address" ? "text/uri-list" : "text/plain", data);
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.getElementById(id).dispatchEvent(event);
    return event.defaultPrevented;
}"""

# A file that comes is opened before its event ends, so that nobody has to wait to see that one is not.
COUNT_OPENED = """() => {
    window.opened = 0;
    const open = window.createImageBitmap;
    window.createImageBitmap = (...given) => {
        window.opened += 1;
        return open(...given);
    };
}"""
