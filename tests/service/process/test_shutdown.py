"""The end of the service. What it does to work in threads: it is stopped, and nobody waits for it. What begins it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing import Pipe

import httpx
import pytest
from uvicorn.config import Config
from uvicorn.server import Server

from service.app import create_app
from service.errors import NotReady
from service.process import supervisor
from service.routes.service import Service
from service.settings import Settings
from service.stopping import check_stop
from service.threads import SMALL_PIXELS
from tests.conftest import Tiny
from tests.service.process.test_workers import workers_of
from tests.service.serving import answers, free_port, serving, until


class Looking:
    """Work of at least 30 s that looks whether it is to stop."""

    def __init__(self) -> None:
        self.running = False

    def __call__(self) -> None:
        self.running = True
        try:
            for _ in range(3000):
                check_stop()
                time.sleep(0.01)
        finally:
            self.running = False


def inside(tiny: Tiny, work: Callable[[Service], Awaitable[None]]) -> float:
    """Run `work` inside the app's lifespan. Out: the seconds that its end took."""

    async def main() -> float:
        app = create_app(Settings(**tiny.settings))
        async with app.router.lifespan_context(app):
            await work(app.state.service)
            started = time.perf_counter()
        return time.perf_counter() - started

    return asyncio.run(main())


def test_the_end_does_not_wait_for_the_threads(tiny: Tiny) -> None:
    """It waited for the pool, however long after the grace that was. What has not begun never begins."""
    works, futures = [Looking() for _ in range(3)], []

    async def work(service: Service) -> None:
        futures.extend(service.in_threads(works, 2 * SMALL_PIXELS))
        while not (works[0].running and works[1].running):
            await asyncio.sleep(0.01)

    assert inside(tiny, work) < 10
    until(lambda: not any(one.running for one in works))
    assert futures[2].cancelled()


def test_who_still_waits_at_the_end_hears_why(tiny: Tiny) -> None:
    async def work(service: Service) -> None:
        looking = Looking()
        future = service.in_thread(looking, 2 * SMALL_PIXELS)
        while not looking.running:
            await asyncio.sleep(0.01)
        service.close()
        with pytest.raises(NotReady, match="shutting down"):
            await future

    inside(tiny, work)


def test_a_cancelled_future_frees_its_thread(tiny: Tiny) -> None:
    async def work(service: Service) -> None:
        looking = Looking()
        future = service.in_thread(looking, 2 * SMALL_PIXELS)
        while not looking.running:
            await asyncio.sleep(0.01)
        future.cancel()
        async with asyncio.timeout(10):
            while looking.running:
                await asyncio.sleep(0.01)
        await service.in_thread(lambda: None, 2 * SMALL_PIXELS)

    inside(tiny, work)


_OPENS_FOR_EVER = """
import threading
from service import app
from service.process.command_line import main

def open_service(settings, metrics):
    print("opens", flush=True)
    threading.Event().wait()

app.open_service = open_service
main()
"""


@pytest.mark.parametrize(
    ("number", "ends_by"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)],
)
@pytest.mark.usefixtures("hangup_ends")
def test_a_start_ends_at_once(tiny: Tiny, number: signal.Signals, ends_by: signal.Signals) -> None:
    """It went on until all models were open, for minutes where TensorRT builds them, and was killed at last. After
    Ctrl-C it even said that it serves, and its status was 0."""
    variables = {**os.environ, "VQSERVE_BUNDLES": str(tiny.grey), "VQSERVE_DEVICE": "cpu", "VQSERVE_PORT": "0"}
    command = [sys.executable, "-c", _OPENS_FOR_EVER]
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"opens\n"
        process.send_signal(number)
        assert process.wait(10) == -ends_by
    finally:
        process.kill()
        process.communicate()


def test_a_worker_imports_its_app_before_the_server_has_the_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM during the import was noted only, and all models were opened before it was acted on."""
    seen = list[object]()
    monkeypatch.setattr(Config, "load_app", lambda config: seen.append(signal.getsignal(signal.SIGTERM)))
    monkeypatch.setattr(Server, "run", lambda server, sockets: seen.append("runs"))
    before = signal.getsignal(signal.SIGTERM)
    supervisor._Server(Config("service.app:create_app"), Pipe()[1]).run([])
    assert seen == [before, "runs"]


_HANGS = """
import os, signal, threading
from service.process.ending import tell_why_it_ends

tell_why_it_ends()
if {first}:  # the kernel keeps this from the first process of a container
    signal.raise_signal = lambda number: None
threading.Thread(target=threading.Event().wait).start()
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("first", [False, True])
def test_the_end_waits_for_no_thread_also_in_a_container(first: bool) -> None:
    """As its first process the service ended with status 0, or waited for a run that hung until it was killed."""
    done = subprocess.run([sys.executable, "-c", _HANGS.format(first=first)], timeout=20, check=False)
    assert done.returncode == (128 + signal.SIGTERM if first else -signal.SIGTERM)


_HANGS_WHILE_IT_SERVES = """
import threading
from service.process.command_line import main

threading.Thread(target=threading.Event().wait).start()
main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_end_waits_for_no_thread_after_it_has_served(tiny: Tiny, number: signal.Signals, status: int) -> None:
    """After Ctrl-C it waited for a run that hung, and a second one showed a traceback."""
    port = str(free_port())
    variables = {**os.environ, "VQSERVE_BUNDLES": str(tiny.grey), "VQSERVE_DEVICE": "cpu", "VQSERVE_PORT": port}
    process = subprocess.Popen([sys.executable, "-c", _HANGS_WHILE_IT_SERVES], env=variables, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 60)
        process.send_signal(number)
        assert process.wait(20) == status
    finally:
        process.kill()
        process.wait(30)


_READS = """
import os, runpy, signal
from service import bundle

def load_bundles(folders):
    signal.raise_signal = lambda number: None  # as above
    os.kill(os.getpid(), signal.SIGTERM)

bundle.load_bundles = load_bundles
runpy.run_module("service", run_name="__main__")
"""


_IMPORTS = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "uvicorn":
            signal.raise_signal = lambda number: None  # as above
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
runpy.run_module("service", run_name="__main__")
"""


@pytest.mark.parametrize("begins", [_IMPORTS, _READS], ids=["imports", "reads bundles"])
def test_a_container_ends_while_its_service_begins(tiny: Tiny, begins: str) -> None:
    """Its first process did not hear SIGTERM, went on to serve, and was killed."""
    variables = {**os.environ, "VQSERVE_BUNDLES": str(tiny.grey), "VQSERVE_DEVICE": "cpu", "VQSERVE_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", begins], env=variables, timeout=20, check=False)
    assert done.returncode == 128 + signal.SIGTERM


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """For the processes that are started meanwhile, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.usefixtures("hangup_ends")
def test_sighup_is_sigterm(tiny: Tiny, workers: str) -> None:
    """It ended a single process at once. Several were all started anew, during which SIGTERM was not heard. At the end
    of a terminal each of them gets it, and the workers leave it to the first."""
    with serving(tiny.grey, VQSERVE_WORKERS=workers, VQSERVE_DRAIN_S="3") as (process, address):
        for pid in (*workers_of(process.pid), process.pid):
            os.kill(pid, signal.SIGHUP)
        until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
        for path in ("/readyz", "/v2/health/ready"):  # this process will not answer another time
            assert "retry-after" not in httpx.get(f"{address}{path}").headers
        assert process.wait(30) == (-signal.SIGTERM if workers == "1" else 0)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_that_is_ignored_stays_so(tiny: Tiny, workers: str) -> None:
    """Several workers did not care that nohup had started them."""
    port = free_port()
    command = ["nohup", sys.executable, "-m", "service", "--bundle", str(tiny.grey), "--port", str(port)]
    variables = {**os.environ, "VQSERVE_WORKERS": workers, "VQSERVE_DEVICE": "cpu", "VQSERVE_DRAIN_S": "0"}
    output = subprocess.DEVNULL
    process = subprocess.Popen(command, env=variables, stdin=output, stdout=output, stderr=output)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 60)
        process.send_signal(signal.SIGHUP)
        time.sleep(1.2)  # twice as long as the supervisor takes to see it
        assert answers(f"http://127.0.0.1:{port}/readyz")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)
