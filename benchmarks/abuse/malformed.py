"""Thousands of mutated PNG, JPEG and WebP files, as raw bodies and in forms: refused or decoded, never a server error.

Memory is compared with that after the first tenth.
"""

from __future__ import annotations

import http.client
import io
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.abuse.common import DIGIT, PICTURES, settle
from benchmarks.contestants import multipart
from benchmarks.report import goal
from benchmarks.server_process import Server, our_server

SIZES = {"pictures": (600, 10_000), "seed": (1, 1)}
WHAT = "Pictures with bytes changed, removed, doubled or cut off, every second one in a form, to `/encode?fit=resize`."
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_MEMORY_RATIO = 1.03


@dataclass(frozen=True)
class Sent:
    """`statuses` counts answers; "broken" is a connection that ended without one."""

    statuses: Counter[str]
    tenth_bytes: int
    end_bytes: int
    same_processes: bool


def run(bundle: Path, pictures: int, seed: int) -> dict[str, Any]:
    with our_server(bundle) as server:
        settle(server, DIGIT)
        sent = send(server, pictures, seed)
    server_errors = sum(n for status, n in sent.statuses.items() if status.startswith("5"))
    return {
        "what": WHAT,
        "statuses": dict(sorted(sent.statuses.items())),
        "rss_mb": [round(sent.tenth_bytes / 1e6, 1), round(sent.end_bytes / 1e6, 1)],
        "goals": [
            goal("pictures sent", sent.statuses.total(), at_least=pictures),
            goal("5xx", server_errors, at_most=0),
            goal("connections that the server broke", sent.statuses["broken"], at_most=0),
            goal("processes that died", int(not sent.same_processes), at_most=0),
            goal(
                "memory at the end / after the first tenth", sent.end_bytes / sent.tenth_bytes, at_most=MAX_MEMORY_RATIO
            ),
        ],
    }


def send(server: Server, pictures: int, seed: int) -> Sent:
    pids, statuses = server.pids(), Counter[str]()
    tenth_bytes = 0
    source = mutations(originals(), random.Random(seed))
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=60)) as client:
        for number in range(pictures):
            statuses[post(client, next(source), in_form=bool(number % 2))] += 1
            if number == pictures // 10:
                tenth_bytes = server.usage().rss_bytes
    return Sent(statuses, tenth_bytes, server.usage().rss_bytes, server.pids() == pids)


def originals() -> list[bytes]:
    """A digit and a photograph in each format, small enough that most bytes matter."""
    found = []
    for name in ("digit_7.png", "ladybird_crop.jpg"):
        with Image.open(PICTURES / name) as picture:
            for format_name in FORMATS:
                stream = io.BytesIO()
                picture.save(stream, format_name)
                found.append(stream.getvalue())
    return found


def mutations(files: list[bytes], source: random.Random) -> Iterator[bytes]:
    """Endless. Changes fall mostly near the start, where the headers are."""
    while True:
        data = bytearray(source.choice(files))
        for _ in range(source.randint(1, 4)):
            place, length = int(len(data) * source.random() ** 2), source.randint(1, 8)
            match source.randrange(5):
                case 0:
                    data[place : place + length] = source.randbytes(length)
                case 1:
                    del data[place : place + length]
                case 2:
                    data[place:place] = data[place : place + length]
                case 3:
                    data[place : place + 1] = bytes([source.choice((0, 1, 127, 128, 255))])
                case _:
                    data = data[: max(1, place)]
        yield bytes(data)


def post(client: http.client.HTTPConnection, picture: bytes, in_form: bool) -> str:
    """The status as text, or "broken" when the connection ended without one."""
    body, headers = multipart(picture) if in_form else (picture, {"Content-Type": "image/png"})
    try:
        client.request("POST", "/encode?fit=resize", body, headers)
        answer = client.getresponse()
        answer.read()
    except (http.client.HTTPException, ConnectionError):
        client.close()  # the next request opens it again
        return "broken"
    return str(answer.status)
