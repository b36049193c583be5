"""A fixed rate from many connections, by h2load (Debian package `nghttp2-client`): overload that costs little to make.

In: an address, one request, a rate. Out: `Offered`, as `benchmarks.open_loop` gives it. Every connection sends
`PER_CONNECTION` requests a second at even distances, so a stranger's request does not wait for another one's answer; a
connection whose last answer takes longer than its pause sends late, which `late_p99_s` shows. Latencies count from the
moment a request was sent. The generator of `benchmarks.open_loop` is Python: at ten thousand requests a second it would
measure itself.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.open_loop import FAILED, Answer, Offered
from benchmarks.wrk import Request

PER_CONNECTION = 5.0  # requests a second
RAMP_S = 1.0  # in which the connections are made, so that they do not all send at the same moment
LOOK_S = 0.2


def fixed_rate(
    url: str,
    request: Request,
    per_second: float,
    seconds: float,
    during: Callable[[], None] = lambda: None,
) -> Offered:
    """Offer `per_second` for `seconds`, after a second in which the connections are made. `during` must be quick.

    Raises:
        RuntimeError: h2load failed; the message is what it wrote.
    """
    program = shutil.which("h2load")
    if program is None:
        raise SystemExit("h2load is not installed: apt-get install nghttp2-client")
    connections = max(1, round(per_second / PER_CONNECTION))
    together, pause_ms = ramp_of(connections)
    ramp = ["-r", str(together), f"--rate-period={pause_ms}ms"]
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(request.body)
        headers = [part for name, value in request.headers.items() for part in ("-H", f"{name}: {value}")]
        count = connections * max(1, round(PER_CONNECTION * (seconds + RAMP_S)))
        command = [program, "--h1", f"-c{connections}", *ramp, f"-n{count}", f"--rps={PER_CONNECTION:g}"]
        command += ["-d", str(body), f"--log-file={log}", *headers, url + request.path]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - h2load, with numbers and our own address
            while process.poll() is None:
                during()
                time.sleep(LOOK_S)
            assert process.stderr is not None
            errors = process.stderr.read()
        if process.returncode:
            raise RuntimeError(f"h2load failed: {errors}")
        return read_log(log, seconds)


def ramp_of(connections: int) -> tuple[int, int]:
    """How many connections to make at once, and the pause in milliseconds until the next: as few and as evenly as a
    ramp of `RAMP_S` allows, since those that are made together send together from then on."""
    pause_ms = max(1, int(1000 * RAMP_S / connections))
    return math.ceil(connections * pause_ms / (1000 * RAMP_S)), pause_ms


def read_log(log: Path, seconds: float) -> Offered:
    """The answers to what was sent in `seconds` after the ramp, and how late the slowest percent of it was sent."""
    rows = np.loadtxt(log, np.int64, ndmin=2)  # start in microseconds, status or -1, microseconds until the end
    rows = rows[rows[:, 0].argsort()]
    sent_s = (rows[:, 0] - rows[0, 0]) / 1e6
    within = (sent_s >= RAMP_S) & (sent_s < RAMP_S + seconds)
    answers = [
        Answer(float(at - RAMP_S), row[2] / 1e6, max(int(row[1]), FAILED))
        for at, row in zip(sent_s[within], rows[within], strict=True)
    ]
    late = np.maximum(0, rows[:, 2] / 1e6 - 1 / PER_CONNECTION)  # by how much an answer delayed the next request
    return Offered(answers, seconds, float(np.percentile(late, 99)))
