"""Work in threads: what waits is bounded, counted, and small work does not wait behind large."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.app import create_app
from service.errors import NotReady, QueueFull
from service.settings import Settings
from service.threads import LARGE, PRIOR, SMALL, SMALL_PIXELS, NoThread, Pool
from tests.conftest import Tiny


@pytest.fixture
def gauge() -> Gauge:
    return Gauge("waiting", "What waits.", registry=CollectorRegistry())


@pytest.fixture
def pool(gauge: Gauge) -> Iterator[Pool]:
    pool = Pool("test", 1, 3, 1000, gauge)
    yield pool
    pool.close()


def waiting(gauge: Gauge) -> float:
    return float(gauge._value.get())


@pytest.mark.asyncio
async def test_as_many_calls_wait_as_may_and_one_request_always(pool: Pool, gauge: Gauge) -> None:
    begun, going_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        going_on.wait(10)

    holding = pool.submit([hold], 2000)
    await asyncio.to_thread(begun.wait, 10)
    futures = pool.submit([lambda: 1] * 5, 5)  # nothing waits: the calls of one request, however many
    assert waiting(gauge) == 5
    with pytest.raises(QueueFull, match=r"5 pictures are waiting .* than the 3 that may \(VQSERVE_MAX_QUEUED_PICTURES"):
        pool.submit([lambda: 2], 1)
    for future in futures[1:]:
        future.cancel()
    await asyncio.sleep(0)
    assert waiting(gauge) == 1
    with pytest.raises(QueueFull, match=r"1 pictures are waiting .* more pixels .*\(VQSERVE_MAX_PIXELS_PER_REQUEST\)"):
        pool.submit([lambda: 3], 1000)  # with the one that waits 1001
    futures += pool.submit([lambda: 3, lambda: 4], 999)
    with pytest.raises(QueueFull):
        pool.submit([lambda: 5], 1)
    futures += pool.submit([lambda: 6] * 3, 3000, late=True)
    going_on.set()
    assert await asyncio.gather(*holding, futures[0], *futures[5:]) == [None, 1, 3, 4, 6, 6, 6]
    assert waiting(gauge) == 0
    assert not pool._stops, "nothing is kept of calls that have ended"


@pytest.mark.asyncio
async def test_what_is_given_up_is_let_go_before_a_thread_comes_to_it(pool: Pool, gauge: Gauge) -> None:
    """Pictures of clients that had left stayed in the executor's queue, beyond every limit."""

    class Picture:
        def decode(self) -> None:
            """Never called."""

    begun, going_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        going_on.wait(10)

    holding = pool.submit([hold], 1)
    await asyncio.to_thread(begun.wait, 10)
    picture = Picture()
    kept = weakref.ref(picture)
    (future,) = pool.submit([picture.decode], 1)
    del picture
    assert kept() is not None
    future.cancel()
    await asyncio.sleep(0)
    assert kept() is None and waiting(gauge) == 0
    going_on.set()
    await asyncio.gather(*holding)


@pytest.mark.asyncio
async def test_a_closed_pool_takes_nothing_and_counts_nothing(pool: Pool, gauge: Gauge) -> None:
    """What came after the end of the grace got 500, and was counted as waiting for good."""
    pool.close()
    with pytest.raises(NotReady, match="shutting down"):
        pool.submit([lambda: 1] * 2, 10)
    assert waiting(gauge) == 0 and pool._pixels == 0


@pytest.mark.asyncio
async def test_work_needs_no_thread_that_is_not_there_yet(gauge: Gauge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system had no thread left, work was refused with a 500 and counted as waiting for good."""

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = Pool("test", 2, 3, 1000, gauge)
    both = threading.Barrier(2, timeout=10)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", none_left)
        futures = pool.submit([both.wait, both.wait], 2)
    assert sorted(await asyncio.gather(*futures)) == [0, 1]
    assert waiting(gauge) == 0
    pool.close()


def test_a_pool_without_all_its_threads_keeps_no_process_from_ending(
    gauge: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, begun = threading.Thread.start, list[threading.Thread]()

    def none_left_but_one(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begins(thread)

    with monkeypatch.context() as full, pytest.raises(NoThread, match="new thread: allow more"):
        full.setattr(threading.Thread, "start", none_left_but_one)
        Pool("test", 2, 3, 1000, gauge)
    gc.collect()  # an executor's threads end with it
    begun[0].join(10)
    assert not begun[0].is_alive()


def test_small_work_does_not_wait_behind_large(tiny: Tiny) -> None:
    """A digit's container took 21 s while two photographs were encoded with effort, and the file of a plain one waited
    for those too."""

    async def main() -> None:
        app = create_app(Settings(**tiny.settings))
        async with app.router.lifespan_context(app):
            service, going_on = app.state.service, threading.Event()
            large = service.in_threads([lambda: going_on.wait(10)] * 3, SMALL_PIXELS + 1)
            async with asyncio.timeout(5):
                assert await service.in_thread(lambda: "small", SMALL_PIXELS) == "small"
            under_prior = service.in_threads([lambda: going_on.wait(10)] * 3, SMALL_PIXELS + 1, prior=True)
            assert not any(future.done() for future in (*large, *under_prior))
            waiting = {SMALL: 0.0, LARGE: 1.0, PRIOR: 1.0}
            expected = [f'vqserve_queued_work{{size="{size}"}} {count}' for size, count in waiting.items()]
            async with asyncio.timeout(5):
                while not all(line in service.metrics.render().decode() for line in expected):
                    await asyncio.sleep(0.01)
            going_on.set()
            await asyncio.gather(*large, *under_prior)

    asyncio.run(main())
