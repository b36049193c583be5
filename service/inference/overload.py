"""Telling overload from a burst. In: each request or batch item, refused or not. Out: whether queues are kept short.

A long queue is right for a burst: it is answered late rather than not. Under a load that lasts, is more than can be
answered, and comes from callers that do not wait for one another, the same queue is only a delay, which every answer
pays and none gains by. So when refusals last, what waits is given up and what comes is refused where anything else
waits; answers are nearly as fast as without load, and as many. The idea is that of CoDel (Nichols and Jacobson,
"Controlling Queue Delay", 2012), where a queue that stays is a bad one, and of WeChat's overload control (Zhou et al.,
2018), which looks at a window of time or of so many requests. It is a choice of the operator: a few callers that ask
again at once could all wait in a long queue, and not in a short one.
"""

from __future__ import annotations

from asyncio import TimerHandle, get_running_loop
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

_SHARE = 1 / 3  # of what came: about what 1.5 times the capacity loses
_WINDOW_S, _FEWEST = 0.1, 4  # a window ends when it has lasted so long and has so many
# A longer window is no pressure: clients that all ask again after the second that they were told stay a burst.
_LONGEST_S = 0.5
_WINDOWS = 2  # in succession, to begin and to end
_SILENCE_S = 1.0  # so long without a whole window, and it has ended too
_LOOK_AGAIN_S = 60.0  # then it ends in any case: refusals by a short queue do not show what a long one would do
TO_ENGINES = frozenset({"/encode", "/decode"})  # the paths of requests that wait for nothing but an engine
WHY_SHORT = (
    "More has been asked for some time than can be answered, and while that lasts hardly anything may wait "
    "(VQSERVE_SHORT_QUEUE_IN_OVERLOAD)."
)


class Overload:
    """`on_change` hears when it begins (True) and ends. Without `adapts` it never does. Belongs to the event loop."""

    def __init__(self, on_change: Callable[[bool], None] = lambda lasts: None, *, adapts: bool = False) -> None:
        self.lasts = False
        self._adapts = adapts
        self._on_change = on_change
        self._began = perf_counter()
        self._came = self._refused = self._changing = 0
        self._look: TimerHandle | None = None
        self._since = 0.0

    def note(self, *, refused: bool) -> bool:
        """One more has come. Whether overload begins with it, so that what waits should be given up."""
        if not self._adapts:
            return False
        self._came += 1
        self._refused += refused
        if self._came < _FEWEST or (seconds := perf_counter() - self._began) < _WINDOW_S:
            return False
        over = seconds <= _LONGEST_S and self._refused > _SHARE * self._came
        self._began += seconds
        self._came = self._refused = 0
        self._changing = self._changing + 1 if over != self.lasts else 0
        if self._changing < _WINDOWS:
            return False
        self._change(over)
        return over

    def _change(self, lasts: bool) -> None:
        self.lasts, self._changing = lasts, 0
        self._on_change(lasts)
        if lasts:
            self._since = perf_counter()
            self._look_again()
        elif self._look is not None:
            self._look.cancel()

    def _look_again(self) -> None:
        self._look = get_running_loop().call_later(_SILENCE_S, self._end_in_time)

    def _end_in_time(self) -> None:
        """Where nothing comes any more, nothing else would end it, and metrics would show it for ever."""
        now = perf_counter()
        if now - self._began >= _SILENCE_S or now - self._since >= _LOOK_AGAIN_S:
            self._change(lasts=False)
        else:
            self._look_again()


class Queues(Protocol):
    """What is behind the door, in pictures."""

    @property
    def enough(self) -> int:
        """May be in hand while overload lasts, so that the engines stay busy."""

    def in_hand(self, query: bytes) -> int:
        """Of the model that a request with this query string asks for."""

    def give_up_waiting(self) -> None:
        """Refuse what waits."""


class Door:
    """Whether one more request may come in: at most `most` may be inside and, while overload lasts, little may wait.

    Slow clients and streams are inside for minutes, too: how many are is no measure of what waits to be done. All
    methods belong to the event loop.
    """

    def __init__(
        self, most: int, *, adapts: bool = False, on_change: Callable[[bool], None] = lambda lasts: None
    ) -> None:
        """Without `adapts` overload is no reason to refuse."""
        self._most = most
        self._overload = Overload(on_change, adapts=adapts)
        self._queues: Queues | None = None
        self._just_in = 0  # in this turn of the event loop: nothing of theirs waits yet
        self.why_full = f"{most} requests are being answered, at most as many may (VQSERVE_MAX_CONCURRENT_REQUESTS)."

    def open_to(self, queues: Queues) -> None:
        """From now on what waits there counts."""
        self._queues = queues

    def may_be_closed(self, inside: int) -> bool:
        """False, quickly, where it is open to all."""
        return inside >= self._most or self._overload.lasts

    def why_closed(self, inside: int, path: str, query: bytes) -> str | None:
        """None where one more request may come in."""
        if inside >= self._most:
            return self.why_full
        return WHY_SHORT if self._overload.lasts and self._is_busy(path, query) else None

    def _is_busy(self, path: str, query: bytes) -> bool:
        """Whether as much waits already as keeps the engine of this request busy, if it needs one."""
        if path not in TO_ENGINES or self._queues is None:
            return False
        return self._just_in + self._queues.in_hand(query) >= self._queues.enough

    def expect(self, path: str) -> None:
        """A request has been let in whose handler runs later in this turn."""
        if self._overload.lasts and path in TO_ENGINES:
            if not self._just_in:
                get_running_loop().call_soon(self._none_just_in)
            self._just_in += 1

    def note(self, reason: str | None, path: str, query: bytes) -> None:
        """One has come in, or has been refused. Where slow uploads fill the process, and no engine is busy, that is no
        overload."""
        if path not in TO_ENGINES:
            return
        begins = self._overload.note(refused=reason is not None and self._is_busy(path, query))
        if begins and self._queues is not None:
            self._queues.give_up_waiting()

    def _none_just_in(self) -> None:
        self._just_in = 0
