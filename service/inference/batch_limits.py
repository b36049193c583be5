"""How much goes into one run of an engine and how much may wait for it, in pictures and in elements of their arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLimits:
    """In pictures; the elements are those of all their arrays together."""

    max_batch: int
    max_queued: int
    max_wait_ms: float = 0.0
    max_batch_elements: float = math.inf
    max_queued_elements: float = math.inf

    def most_pictures(self, shape: tuple[int, ...]) -> int:
        """How many pictures of this shape, without the batch axis, a network gets at once: one at least."""
        return max(1, int(min(self.max_batch, self.max_batch_elements / math.prod(shape))))

    def fit_a_run(self, pictures: int, elements: int) -> bool:
        """Whether they may go together."""
        return pictures <= self.max_batch and elements <= self.max_batch_elements

    def fill_a_run(self, pictures: int, elements: int) -> bool:
        """Whether nothing more may go with them."""
        return pictures >= self.max_batch or elements >= self.max_batch_elements

    def half_full(self, pictures: int, elements: int) -> bool:
        """Whether as many waiting ones take half of the queue."""
        return 2 * pictures >= self.max_queued or 2 * elements >= self.max_queued_elements

    def why_full(self, pictures: int, elements: int) -> str | None:
        """Which limit of the queue so many exceed, and the setting that moves it; None where they may wait."""
        if pictures > self.max_queued:
            return f"with these they would be more than the {self.max_queued} that may (VQSERVE_MAX_QUEUED_PICTURES)."
        if elements > self.max_queued_elements:
            return (
                "with these they would have more pixels than may (VQSERVE_MAX_PIXELS_PER_REQUEST, or "
                "VQSERVE_MAX_QUEUED_PICTURES of the model's size where those have more)."
            )
        return None


def buckets(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `max_batch` itself."""
    powers = [1 << n for n in range(max_batch.bit_length()) if 1 << n < max_batch]
    return (*powers, max_batch)
