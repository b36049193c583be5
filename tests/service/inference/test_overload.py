"""Overload that lasts is told from a burst, and the door lets few in meanwhile."""

from __future__ import annotations

import pytest

from service.inference.overload import WHY_SHORT, Door, Overload
from tests.service.overload_clock import Clock, clock, come

__all__ = ["clock"]  # a fixture


class Waiting:
    """Queues, of which nothing is real but their number."""

    enough = 4

    def __init__(self, pictures: int = 0) -> None:
        self.pictures = pictures
        self.given_up = 0

    def in_hand(self, query: bytes) -> int:
        return 0 if query == b"model=idle" else self.pictures

    def give_up_waiting(self) -> None:
        self.given_up += 1


def come_to(door: Door, clock: Clock, refusals: str, path: str = "/encode") -> None:
    """As `come`, in a quarter of a second."""
    for letter in refusals:
        clock.wait(0.25 / len(refusals))
        door.note(door.why_full if letter == "r" else None, path, b"")


@pytest.mark.parametrize(
    ("refusals", "seconds", "lasts"),
    [
        ("arrarr" * 2, 0.25, True),
        ("arrarr", 0.25, False),  # more than a third of one window only, and half of the next
        ("aaar" * 3, 0.35, False),  # a quarter
        ("rrrr" * 3, 0.09, False),  # a burst
        ("rrrr" * 3, 1.6, False),  # each time after half a second of silence
        ("rrrr" * 3, 1.2, True),
        ("aaaarrrr", 0.25, False),
    ],
)
def test_refusals_of_two_windows_are_overload(clock: Clock, refusals: str, seconds: float, lasts: bool) -> None:
    changes: list[bool] = []
    overload = Overload(changes.append, adapts=True)
    told = come(overload, clock, refusals, seconds)
    assert overload.lasts is lasts
    assert changes == [True] * lasts
    assert sum(told) == lasts  # once, for what has to follow


def test_clients_that_are_refused_and_come_again_together_stay_a_burst(clock: Clock) -> None:
    overload = Overload(adapts=True)
    for _ in range(5):
        come(overload, clock, "aaaaarrrrrrrrrrrrrrr", 0.02)
        clock.wait(1.0)  # Retry-After
    assert not overload.lasts


def test_overload_ends_after_two_windows_without(clock: Clock) -> None:
    changes: list[bool] = []
    overload = Overload(changes.append, adapts=True)
    come(overload, clock, "rrrrrrrr", 0.25)
    come(overload, clock, "aaaa" + "rrrr" + "aaaa", 0.36)  # not in succession
    assert overload.lasts
    assert come(overload, clock, "aaar", 0.12) == [False] * 4  # it ends, and nothing has to be given up
    assert not overload.lasts
    assert changes == [True, False]


def test_overload_ends_where_nothing_comes_any_more(clock: Clock) -> None:
    """Metrics, and the autoscaler that reads them, had it last until the next requests came."""
    changes: list[bool] = []
    overload = Overload(changes.append, adapts=True)
    come(overload, clock, "rrrrrrrr", 0.25)
    for _ in range(8):
        come(overload, clock, "rrrr", 0.25)
    assert overload.lasts
    clock.wait(0.9)
    assert overload.lasts
    clock.wait(0.2)
    assert not overload.lasts
    clock.wait(2.0)
    assert changes == [True, False]
    come(overload, clock, "rrrrrrrrrrrr", 0.36)
    come(overload, clock, "aaaaaaaa", 0.25)
    clock.wait(0.2)
    come(overload, clock, "rrrrrrrrrrrr", 0.36)
    assert changes == [True, False] * 2 + [True]
    assert sum(timer.due > clock.now and timer.call.__name__ == "_end_in_time" for timer in clock.timers) == 1


def test_after_a_minute_the_long_queue_has_another_try(clock: Clock) -> None:
    """A few callers that ask again at once are refused for ever by a queue that has no room for all of them."""
    changed_s: list[float] = []
    overload = Overload(lambda lasts: changed_s.append(clock.now), adapts=True)
    for _ in range(70):
        come(overload, clock, "rrrr" * 3, 1.0)
    began, ended, began_again = changed_s
    assert 60 <= ended - began < 62
    assert began_again - ended < 0.4


def test_without_adapting_nothing_is_overload(clock: Clock) -> None:
    overload = Overload()
    assert not any(come(overload, clock, "rrrrrrrr", 0.25))
    assert not overload.lasts


@pytest.mark.parametrize(
    ("window_s", "refusals", "lasts"),
    [
        (0.105, "rrrr", True),
        (0.095, "rrrr", False),
        (0.49, "rrrr", True),
        (0.51, "rrrr", False),
        (0.2, "rraaa", True),
        (0.2, "rrraaaaaaa", False),
        (0.2, "rraaaa", False),  # a third
    ],
)
def test_windows_have_a_length_and_a_share(clock: Clock, window_s: float, refusals: str, lasts: bool) -> None:
    """All of a window come at its end, so that it ends with the last of them."""
    overload = Overload(adapts=True)
    for _ in range(2):
        for letter in refusals[:-1]:
            overload.note(refused=letter == "r")
        clock.wait(window_s)
        overload.note(refused=refusals[-1] == "r")
    assert overload.lasts is lasts


def closed(door: Door, inside: int = 0, path: str = "/encode", query: bytes = b"") -> str | None:
    return door.why_closed(inside, path, query)


def test_the_door_lets_few_in_while_overload_lasts(clock: Clock) -> None:
    queues, changes = Waiting(4), list[bool]()
    door = Door(100, adapts=True, on_change=changes.append)
    come_to(door, clock, "rrrrrrrr")  # before the models are open
    assert not changes
    door.open_to(queues)
    come_to(door, clock, "rrrrrrrr")
    assert closed(door) == WHY_SHORT
    assert closed(door, path="/models") is closed(door, query=b"model=idle") is None
    assert closed(door, 100, "/models") == door.why_full
    queues.pictures = 2
    assert closed(door, 99) is None
    door.expect("/models")
    door.expect("/encode")
    assert closed(door) is None
    door.expect("/encode")
    assert closed(door) == WHY_SHORT  # two wait, two have come in this turn
    (none_just_in,) = clock.soon
    none_just_in()
    assert closed(door) is None
    come_to(door, clock, "aaaaaaaa")
    door.expect("/encode")  # without overload nobody counts
    queues.pictures = 4
    assert closed(door) is None
    assert (queues.given_up, changes) == (1, [True, False])


@pytest.mark.parametrize(("pictures", "path"), [(3, "/encode"), (4, "/generate")])
def test_a_process_that_slow_uploads_fill_is_not_overloaded(clock: Clock, pictures: int, path: str) -> None:
    door, queues = Door(2, adapts=True), Waiting(pictures)
    door.open_to(queues)
    come_to(door, clock, "rrrrrrrr", path)
    assert queues.given_up == 0
    assert [closed(door, inside) for inside in range(3)] == [None, None, door.why_full]


def test_a_door_that_does_not_adapt_is_closed_by_number_only(clock: Clock) -> None:
    door, queues = Door(2), Waiting(1000)
    door.open_to(queues)
    come_to(door, clock, "rrrrrrrr")
    assert [closed(door, inside) for inside in range(3)] == [None, None, door.why_full]
    assert queues.given_up == 0
