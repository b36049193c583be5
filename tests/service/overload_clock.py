"""A clock that stands still, and requests that come to an `Overload` on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.inference.overload import Overload


class Timer:
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call = due, call

    def cancel(self) -> None:
        self.call = lambda: None


class Clock:
    """It stands still until `wait`, which runs what is due; also the event loop as far as this module needs one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.due <= self.now]
        self.timers = [timer for timer in self.timers if timer.due > self.now]
        for timer in due:
            timer.call()

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.inference.overload.perf_counter", clock)
    monkeypatch.setattr("service.inference.overload.get_running_loop", lambda: clock)
    return clock


def come(overload: Overload, clock: Clock, refusals: str, seconds: float) -> list[bool]:
    """One for each letter, `r` where it is refused, evenly in so many seconds."""
    told = []
    for letter in refusals:
        clock.wait(seconds / len(refusals))
        told.append(overload.note(refused=letter == "r"))
    return told


def overloaded(clock: Clock) -> Overload:
    overload = Overload(adapts=True)
    come(overload, clock, "rrrrrrrr", 0.25)
    assert overload.lasts
    return overload
