"""What a process tree uses, compared with a tree whose use is known; and that no process of it is left."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.server_process import ServerDidNotStart, answers, free_port, process_tree, running, usage_of

# Burns half a CPU second, holds 5 files, and answers on the port with Python's own server.
SERVER = """
import http.server, sys, time
files = [open(sys.argv[0] if sys.argv[0] != "-c" else "/dev/null") for _ in range(5)]
end = time.process_time() + 0.5
while time.process_time() < end: pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def test_a_child_is_counted_and_ended() -> None:
    port = free_port()
    with running([sys.executable, "-c", PARENT, SERVER, str(port)], port, "/", {}) as server:
        pids, usage = server.pids(), server.usage()
        assert len(pids) == 2
        assert 0.5 <= usage.cpu_s < 5
        assert usage.descriptors >= 5 + 2 * 3
        assert usage.threads == 2
        assert 5e6 < usage.rss_bytes < 5e8
    end = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    """A zombie that nobody has waited for yet is not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_server_that_ends_at_once_is_reported_with_its_output() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with pytest.raises(ServerDidNotStart, match="no model here"), running(command, free_port(), "/", {}):
        pass


def test_no_proxy_is_asked_for_a_server_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server was there, and after 90 seconds it `did not answer`."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    port = free_port()
    with running([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], port, "/", {}) as server:
        assert answers(server.url)


def test_a_process_that_is_gone_uses_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert process_tree(process.pid) == []
    assert usage_of([process.pid]).cpu_s == 0
