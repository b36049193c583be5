"""Whose turn it is. In: the jobs that wait, oldest first. Out: the samples that advance by a row together.

One sample of each job, then whatever else the oldest jobs have: a new job advances at the next row, and a job of 64
samples gets what the others leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.prior.draws import Codes, Draw

OnRow = Callable[[int, Codes], None]


@dataclass(eq=False, slots=True)
class Sample:
    job: Job
    index: int  # in its job
    draw: Draw
    place: int | None = None  # of the sampler, from the first row to the last
    row: int = 0  # the next one


@dataclass(eq=False, slots=True)
class Job:
    """What one caller waits for: codes (n,h,w), filled row by row."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Codes]
    codes: Codes
    on_row: OnRow | None
    submitted: float
    unfinished: list[Sample] = field(default_factory=list)  # empty once the job is no longer inside
    rows: int = 0  # that all samples have; without on_row only the first one counts


def choose(jobs: Sequence[Job], slots: int, filled: int) -> list[Sample]:
    """The samples that advance next: the first of each job, in up to `slots`, then all others, in up to `filled` slots
    with the first ones, the oldest job first in both.

    Giving what is left to the oldest job, instead of sharing it, finishes jobs sooner and delays none.
    Fewer than 2 * slots samples are ever under way, so as many places are enough. One that is not its job's first
    begins only beside all samples of all older jobs, and therefore before any such sample of a younger one: whatever is
    under way then advances too, in at most `slots`. Until that happens again only the first ones of the oldest `slots`
    jobs begin.
    """
    chosen = [job.unfinished[0] for job in jobs[:slots]]
    filled = max(filled, len(chosen))
    for job in jobs:
        if len(chosen) == filled:
            break
        chosen += job.unfinished[1 : 1 + filled - len(chosen)]
    return chosen
