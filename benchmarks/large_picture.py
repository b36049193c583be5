"""One large photograph through the service, both ways: seconds, and the memory that it takes.

    python -m benchmarks.large_picture PHOTO [--bundle models/photos] [--width 4000] [--height 3000] [--record]

In: a photograph, scaled to the size, and a bundle of any size. Out: one JSON line; `--record` also writes
docs/results/large_picture.json and a section of docs/benchmarks.md. Memory is looked at twenty times a second. Then
both ways again, while somebody else asks for small pictures of the same model: how long these take beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.quality import mean_squared_error, psnr_db
from benchmarks.report import RESULTS, command_line, machine, machine_line, table, write_result, write_section
from benchmarks.server_process import Server, our_server
from service.inference.containers import MEDIA_TYPE as CONTAINER

DEADLINE_MS = 300_000
ONE_LANE = "large_picture_one_lane"  # the record of the version before
LOOK_EVERY_S = 0.05
SMALL, SMALL_EVERY_S, SMALL_ALONE_S = 128, 0.1, 5.0  # pixels each way


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work` in a thread of its own, which is told when it is time to end. What it raises is raised here."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, done)
        try:
            yield
        finally:
            done.set()
            working.result()


@contextmanager
def peak_memory(server: Server) -> Iterator[list[int]]:
    """A list whose last item is the largest resident memory so far, in bytes."""
    peak = [server.usage().rss_bytes]

    def watch(done: threading.Event) -> None:
        while not done.wait(LOOK_EVERY_S):
            peak[-1] = max(peak[-1], server.usage().rss_bytes)

    with meanwhile(watch):
        yield peak


def ask(server: Server, path: str, body: bytes, sent: str, wanted: str) -> tuple[bytes, dict[str, float]]:
    with peak_memory(server) as peak:
        started = time.perf_counter()
        headers = {"content-type": sent, "accept": wanted}
        url, timeout = server.url + path, DEADLINE_MS / 1e3
        answer = httpx.post(url, content=body, headers=headers, timeout=timeout, trust_env=False)
        seconds = time.perf_counter() - started
    answer.raise_for_status()
    return answer.content, {"seconds": round(seconds, 1), "peak_mb": round(peak[-1] / 1e6, 1)}


@contextmanager
def small_pictures(server: Server, png: bytes) -> Iterator[list[float]]:
    """The seconds that /encode takes for this picture, asked again and again by one client."""
    seconds: list[float] = []

    def ask_on(done: threading.Event) -> None:
        with httpx.Client(base_url=server.url, timeout=DEADLINE_MS / 1e3, trust_env=False) as client:
            while not seconds or not done.wait(SMALL_EVERY_S):
                started = time.perf_counter()
                client.post("/encode?fit=pad", content=png, headers={"content-type": "image/png"}).raise_for_status()
                seconds.append(time.perf_counter() - started)

    with meanwhile(ask_on):
        yield seconds


def summary(seconds: list[float]) -> dict[str, float]:
    milliseconds = [1e3 * one for one in seconds]
    return {
        "requests": len(seconds),
        "p50_ms": round(float(np.median(milliseconds)), 1),
        "largest_ms": round(max(milliseconds), 1),
    }


def run(photo: Path, size: tuple[int, int], bundle: Path) -> dict[str, Any]:
    with Image.open(photo) as opened:
        picture = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    with our_server(bundle, request_deadline_ms=DEADLINE_MS) as server:
        start = server.usage().rss_bytes
        container, encoded = ask(server, "/encode?fit=pad", stream.getvalue(), "image/jpeg", CONTAINER)
        png, decoded = ask(server, "/decode", container, CONTAINER, "image/png")
        small = beside(server, picture, stream.getvalue(), container)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return {
        "bundle": bundle.name,
        "size": list(size),
        "container_bytes": len(container),
        "bits_per_pixel": round(8 * len(container) / (size[0] * size[1]), 4),
        "psnr_db": round(psnr_db(mean_squared_error(np.asarray(picture), pixels)), 2),
        "idle_mb": round(start / 1e6, 1),
        "encode": encoded,
        "decode": decoded,
        "small_pictures": small,
    }


def beside(server: Server, picture: Image.Image, jpeg: bytes, container: bytes) -> dict[str, dict[str, float]]:
    """A small picture alone, beside the large one that is encoded, and beside its container that is decoded."""
    stream = io.BytesIO()
    picture.crop((0, 0, SMALL, SMALL)).save(stream, "PNG")
    with small_pictures(server, stream.getvalue()) as alone:
        time.sleep(SMALL_ALONE_S)
    with small_pictures(server, stream.getvalue()) as encoding:
        ask(server, "/encode?fit=pad", jpeg, "image/jpeg", CONTAINER)
    with small_pictures(server, stream.getvalue()) as decoding:
        ask(server, "/decode", container, CONTAINER, "image/png")
    return {"alone": summary(alone), "/encode": summary(encoding), "/decode": summary(decoding)}


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    width, height = result["size"]
    rows = [(f"/{name}", result[name]["seconds"], result[name]["peak_mb"]) for name in ("encode", "decode")]
    before = json.loads((RESULTS / f"{ONE_LANE}.json").read_text(encoding="utf-8"))
    one_lane = before["small_pictures"]["/encode"]
    others = [(name.replace("alone", "nothing"), *one.values()) for name, one in result["small_pictures"].items()]
    return "\n\n".join(
        (
            "## One large picture",
            f"`{result['command']}` on {machine_line(result['machine'])}.",
            f"A photograph enlarged to {width}x{height} pixels goes in as JPEG, a container of "
            f"{result['container_bytes']:,} bytes ({result['bits_per_pixel']} bits per pixel, {result['psnr_db']} dB) "
            f"comes out, and a PNG comes back from it, by `models/{result['bundle']}`. Time and memory are meant here: "
            "an enlarged picture is smooth, so its quality says little. The idle service holds "
            f"{result['idle_mb']} MB.",
            table(("request", "seconds", "largest resident memory, MB"), rows),
            f"Somebody else asks /encode for codes of {SMALL}x{SMALL} pixels meanwhile, one picture after another:",
            table(("beside it", "small pictures", "p50, ms", "largest, ms"), others),
            f"With one lane for all, as in version 0.4.0 (`docs/results/{ONE_LANE}.json`, same command and kind of "
            "machine, the model of photographs that it had), "
            f"the largest beside /encode was {one_lane['largest_ms']:,.0f} ms.",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_picture", description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--bundle", type=Path, default=Path("models/photos"))
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--record", action="store_true", help="write docs/results/large_picture.json and the page")
    options = parser.parse_args()
    head = {"benchmark": "large_picture", "command": command_line(), "machine": machine()}
    result = {**head, **run(options.photo, (options.width, options.height), options.bundle)}
    if options.record:
        write_result("large_picture", result)
        write_section("large_picture", page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
