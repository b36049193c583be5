"""When to try again, and how long to wait. In: an answer or a lost connection. Out: a pause in seconds, or None.

No call of the clients changes anything on the service, so repeating one is safe even if the first attempt arrived.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

RETRIED_STATUSES = frozenset({429, 502, 503})
RETRIED_ERRORS = (  # and none of the timeouts, which have had their wait
    httpx.ConnectError,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)


@dataclass(frozen=True)
class Retries:
    """At most `attempts` tries. A Retry-After is waited for in full, at least the pause of this attempt, or, above
    `max_pause_s`, not at all.

    Raises ValueError for no attempt at all, and for what is no pause.
    """

    attempts: int = 4
    first_pause_s: float = 0.25  # doubles at each attempt, less a random part of up to a half
    max_pause_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.attempts >= 1:
            raise ValueError(f"attempts are {self.attempts}: pass 1 or more, of which the first one is no retry")
        for name, pause_s in (("first_pause_s", self.first_pause_s), ("max_pause_s", self.max_pause_s)):
            if not 0 <= pause_s < math.inf:
                raise ValueError(f"{name} is {pause_s}: pass seconds of 0 or more")

    def pause_s(self, attempt: int, response: httpx.Response | None) -> float | None:
        """The pause after attempt number `attempt` (from 1), None to give up. Without a response, it was lost."""
        if attempt >= self.attempts or (response is not None and response.status_code not in RETRIED_STATUSES):
            return None
        asked = None if response is None else retry_after_s(response)
        if asked is not None and asked > self.max_pause_s:
            return None
        doublings = min(attempt - 1, 1000)  # a float holds no 2**1024, and many attempts are allowed
        longest = min(self.max_pause_s, self.first_pause_s * 2.0**doublings)
        # a date may have passed, or soon: all attempts would be gone at once
        return max(asked or 0.0, float(longest * random.uniform(0.5, 1.0)))


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds, from a number or an HTTP date; None where the header is absent or neither. A date is by the clock of who
    answered: by that of this machine, which may go wrong, it had passed or was hours away."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    moment = _moment(value)
    if moment is None:
        return None
    now = _moment(response.headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (moment - now).total_seconds())


def _moment(value: str) -> datetime | None:
    """None for what is no HTTP date."""
    try:
        moment = parsedate_to_datetime(value)
    except (OverflowError, TypeError, ValueError):  # a year of ten digits overflows
        return None
    if moment.tzinfo is None:  # "-0000" in the header: UTC of unknown origin
        moment = moment.replace(tzinfo=UTC)
    return moment
