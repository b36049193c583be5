"""When both clients try again, against a scripted service."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.client.scripted import MODELS, scripted
from vqserve import AsyncClient, Client, ProblemError, Retries
from vqserve.retries import retry_after_s


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    # The names in these two modules only: the server of other tests sleeps too.
    monkeypatch.setattr("vqserve.synchronous.time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr("vqserve.asynchronous.asyncio", SimpleNamespace(sleep=sleep, Semaphore=asyncio.Semaphore))
    return slept


def run_models(transport: httpx.MockTransport, asynchronous: bool, retries: Retries) -> Any:
    if not asynchronous:
        with Client("http://x", transport=transport, retries=retries) as client:
            return client.models()

    async def call() -> Any:
        async with AsyncClient("http://x", transport=transport, retries=retries) as client:
            return await client.models()

    return asyncio.run(call())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_retry_after_is_honoured(asynchronous: bool, pauses: list[float]) -> None:
    full = httpx.Response(429, headers={"Retry-After": "3"})
    transport, seen = scripted(
        full, httpx.Response(503, headers={"Retry-After": "1"}), httpx.Response(200, json=MODELS)
    )
    (model,) = run_models(transport, asynchronous, Retries())
    assert (model.name, len(seen), pauses) == ("m", 3, [3.0, 1.0])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_without_retry_after_the_pause_doubles(asynchronous: bool, pauses: list[float]) -> None:
    lost = httpx.ConnectError("refused")
    transport, seen = scripted(lost, httpx.Response(502), lost, httpx.Response(200, json=MODELS))
    run_models(transport, asynchronous, Retries(first_pause_s=1.0))
    assert len(seen) == 4
    assert all(low <= pause <= 2 * low for pause, low in zip(pauses, (0.5, 1.0, 2.0), strict=True))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_gives_up(asynchronous: bool, pauses: list[float]) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "1"})
    for answers, attempts in (
        ([busy] * 4, 4),
        ([httpx.Response(503, headers={"Retry-After": "31"})], 1),  # longer than the longest pause
        ([httpx.Response(404)], 1),  # would not help
        ([httpx.Response(504)], 1),  # the service took its time once already
    ):
        transport, seen = scripted(*answers)
        with pytest.raises(ProblemError):
            run_models(transport, asynchronous, Retries())
        assert len(seen) == attempts
    transport, seen = scripted(*[httpx.ConnectError("refused")] * 4)
    with pytest.raises(httpx.ConnectError):
        run_models(transport, asynchronous, Retries())
    assert len(seen) == 4


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ended", [httpx.ConnectTimeout, httpx.ReadTimeout, httpx.WriteTimeout])
def test_a_wait_that_ended_is_not_tried_again(
    ended: type[httpx.TimeoutException], asynchronous: bool, pauses: list[float]
) -> None:
    """A host that drops packets was tried four times, for four minutes in all."""
    transport, seen = scripted(ended("timed out"))
    with pytest.raises(ended):
        run_models(transport, asynchronous, Retries())
    assert len(seen) == 1 and not pauses


def test_a_retry_after_of_the_longest_pause_is_waited_for() -> None:
    answers = {asked: httpx.Response(429, headers={"Retry-After": asked}) for asked in ("30", "31")}
    assert {asked: Retries(max_pause_s=30.0).pause_s(1, answer) for asked, answer in answers.items()} == {
        "30": 30.0,
        "31": None,
    }


def test_attempts_may_be_many() -> None:
    """Number 1025 was an OverflowError."""
    retries = Retries(attempts=100_000, max_pause_s=1.0)
    assert all(0.5 <= (retries.pause_s(attempt, None) or 0) <= 1 for attempt in (4, 1024, 1025, 99_999))


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(passed, 0.1, 0.3) for passed in ("Wed, 21 Oct 2015 07:28:00 GMT", "0", "nonsense", "²", "")]
    + [(f"Wed, 21 Oct {year} 07:28:00 GMT", 0.1, 0.3) for year in ("10000", "99999999999999999999")],
)
def test_a_retry_after_that_has_passed_is_the_usual_pause(value: str, low: float, high: float) -> None:
    """Of a date that has passed by the client's clock, all attempts were gone at once."""
    pause = Retries().pause_s(1, httpx.Response(429, headers={b"Retry-After": value.encode("latin-1")}))
    assert pause is not None and low <= pause <= high


@pytest.mark.parametrize("ahead_s", [-3600, -60, 0, 3600])
def test_a_date_is_counted_from_that_of_the_answer(ahead_s: int) -> None:
    """By a clock that goes wrong it had passed, or was too far away to wait."""
    now = time.time() + ahead_s
    asked = {"Retry-After": formatdate(now + 5, usegmt=True)}
    answer = httpx.Response(503, headers=asked | {"Date": formatdate(now, usegmt=True)})
    assert (retry_after_s(answer), Retries().pause_s(1, answer)) == (5.0, 5.0)
    for date in ({}, {"Date": "nonsense"}):
        assert retry_after_s(httpx.Response(503, headers=asked | date)) == pytest.approx(max(0, ahead_s + 5), abs=2)
