"""Pure parts of the abuses: what is sent, and what is made of the figures. One of them runs against a tiny service."""

from __future__ import annotations

import math
import random
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.abuse import bad_clients as bad_clients_module
from benchmarks.abuse import malformed, overload
from benchmarks.abuse.__main__ import ABUSES, main
from benchmarks.abuse.bad_clients import Behaviour, bad_clients, half_closed, idle, slow
from benchmarks.abuse.common import batch_request, page
from benchmarks.abuse.contract import one_line
from benchmarks.h2load import RAMP_S, ramp_of, read_log
from benchmarks.open_loop import FAILED
from benchmarks.report import goal
from benchmarks.server_process import our_server
from service.wire.npy import read_npy
from tests.conftest import Tiny

HEAD_BYTES = 60
REQUEST = b"x" * (HEAD_BYTES - 4) + b"\r\n\r\n" + b"body of which nobody sends all"


def test_mutations_repeat_with_their_seed_and_change_nearly_all() -> None:
    files = malformed.originals()
    first, again = (list(islice(malformed.mutations(files, random.Random(3)), 200)) for _ in range(2))
    assert first == again
    assert sum(data not in files for data in first) > 190
    assert {file[:4] for file in files} == {b"\x89PNG", b"\xff\xd8\xff\xe0", b"RIFF"}


def test_a_batch_is_64_pictures_of_the_bundle(tiny: Tiny) -> None:
    pictures = read_npy(batch_request(tiny.grey).body)
    assert pictures.shape == (64, 28, 28, 1)
    assert pictures.dtype == np.uint8


def test_overload_goals() -> None:
    case = {"answered_p99_ms": 30, "unloaded_p99_ms": 10, "answered_by_capacity": 0.6, "refused_p99_ms": None}
    found = overload.goals("x", {**case, "peak_growth_mb": 4, "server_errors": 0, "not_answered": 1})
    assert [one["value"] for one in found] == [3, 0.6, None, 4, 1]
    assert [one["met"] for one in found] == [False, True, False, True, False]
    assert overload.compared({"digits": case}).endswith(
        "digits answered at 3.0 times the unloaded p99, 0.60 of the capacity, and refused in no ms (p99)."
    )


def test_what_h2load_logs(tmp_path: Path) -> None:
    """Start, status or -1, duration, in microseconds and in the order of the answers; the ramp does not count."""
    rows = [(500_000, 200, 900), (1_000_000, 429, 100_000), (2_100_000, 200, 3_000), (2_000_000, 429, 500_000)]
    rows += [(2_500_000, -1, 7_000), (3_600_000, 200, 1_000)]
    (tmp_path / "log").write_text("".join(f"{start}\t{status}\t{took}\n" for start, status, took in rows))
    found = read_log(tmp_path / "log", seconds=2.0)
    assert [(round(one.due_s, 3), one.status) for one in found.answers] == [(0.5, 429), (0.6, 200), (1.0, FAILED)]
    assert found.latencies(429).tolist() == [0.5]
    assert 0.2 < found.late_p99_s <= 0.3  # half a second for an answer, where the next request was due after 0.2 s


def test_the_page_has_every_recorded_abuse() -> None:
    facts = {"cpu": "x", "cpus": 2, "python": "3.11", "onnxruntime": "1", "load_average_1min": 0}
    result = {"what": "Things.", "command": "c", "machine": facts, "goals": [goal("g", 1, at_most=2)]}
    text = page({"slow_clients": result, "kill": result})
    assert text.count("Things.") == 2
    assert "### Slow clients" in text


def test_a_failure_of_schemathesis_in_one_line() -> None:
    failure = {"code": "ST202", "title": "Rejected", "operations": ["POST /a", "GET /b"], "count": 2}
    assert one_line(failure) == "ST202 Rejected: POST /a, GET /b"


@pytest.mark.parametrize("name", ABUSES)
def test_every_abuse_says_what_it_does_and_how_long(name: str) -> None:
    abuse = ABUSES[name]
    assert abuse.__doc__
    assert all(short <= full for short, full in abuse.SIZES.values())


def test_malformed_pictures_against_a_real_service(tiny: Tiny) -> None:
    with our_server(tiny.grey) as server:
        found = malformed.send(server, pictures=40, seed=2)
    assert found.statuses.total() == 40
    assert found.same_processes
    assert not any(status.startswith("5") for status in found.statuses)


def test_an_unknown_abuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["arson"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize("connections", [1, 7, 91, 330, 528, 1000, 2001])
def test_connections_begin_one_by_one_within_the_ramp(connections: int) -> None:
    """In groups, they sent in groups for good: fifteen requests every ten milliseconds, at half of the load."""
    together, pause_ms = ramp_of(connections)
    assert together == max(1, -(-connections // 1000))
    assert 0 < math.ceil(connections / together) * pause_ms <= 1000 * RAMP_S + pause_ms


class Listener(socketserver.ThreadingTCPServer):
    """Reads what comes on each connection until it ends, or has been silent for `patience_s`; then closes it."""

    request_queue_size = 128  # fifty come at once: of those that find no room each tries again after seconds

    def __init__(self, patience_s: float) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.patience_s = patience_s
        self.came: list[bytearray] = []

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self.came.append(came := bytearray())
        request.settimeout(self.patience_s)
        with suppress(TimeoutError):
            while data := request.recv(1000):
                came += data


@pytest.mark.parametrize(
    ("behaviour", "patience_s", "first", "again"),
    [
        (slow, 9.0, REQUEST[: HEAD_BYTES + 2], False),
        (half_closed, 9.0, REQUEST[:40], True),
        (idle, 0.2, b"", True),
        (slow, 0.5, REQUEST[: HEAD_BYTES + 1], True),  # its next byte, after a second, meets a closed connection
    ],
)
def test_bad_clients_send_what_they_should_and_come_again_when_they_are_cut_off(
    behaviour: Behaviour, patience_s: float, first: bytes, again: bool
) -> None:
    with Listener(patience_s) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        with bad_clients(("127.0.0.1", listener.server_address[1]), REQUEST, {behaviour: 2}) as crowd:
            until(lambda: len(listener.came) >= 2 + 2 * again and listener.came[0].startswith(first), listener.came)
            assert len(listener.came[0]) < len(first) + 10 * (behaviour is slow) + 1
            assert (len(listener.came) > 2) == again
            assert (crowd.connections > 2) == again
        listener.shutdown()
        thread.join()


def test_a_pause_is_no_time_for_bad_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that would have come again meanwhile would all come at its end."""
    now = 0.0
    monkeypatch.setattr(bad_clients_module, "monotonic", lambda: now)
    with Listener(9.0) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        with bad_clients(("127.0.0.1", listener.server_address[1]), REQUEST, {half_closed: 50}) as crowd:
            until(lambda: len(crowd._asleep) == 50, crowd._asleep)  # all have been cut off, and sleep for 0.2 to 1.8 s
            crowd.pause()
            now += 60.0
            crowd.resume()
            crowd.pause()  # it returns when they have looked at the clock once more
            assert crowd.connections == 50
            crowd.resume()

            def later() -> bool:
                nonlocal now
                now += 1.8
                return crowd.connections >= 100

            until(later, crowd._asleep)
        listener.shutdown()
        thread.join()


def until(reached: Callable[[], bool], shown: object, limit_s: float = 60.0) -> None:
    """Wait; the bad clients run when nobody else wants the processors, which may take long on a busy machine."""
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline, shown
        time.sleep(0.02)
