"""An integer range coder: symbols with integer frequencies to bytes, and back.

In: for each symbol its cumulative frequency, its frequency and their total, all integers, total < 2**31. Out: the
shortest byte string inside the final interval. Bytes past its end count as zero, so no length is stored and the last
byte is never zero. A decoder accepts exactly the byte string that the encoder writes for the symbols it found: every
other string that would give the same symbols is rejected as damaged.

Only additions, multiplications, shifts and floor divisions on integers below 2**57, so any language with 64-bit
unsigned integers gives the same bytes. docs/code-format.md has the algorithm in prose with a worked example.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from service.codec.container_errors import DamagedError

STATE_BYTES = 7
TOP = 1 << 56  # the interval is [low, low + range) in units of 2**-56 of the bytes written so far
BOTTOM = 1 << 48  # range is kept at or above this, so a total below 2**31 costs less than 2**-17 of the interval
TOTAL_LIMIT = 1 << 31


class RangeEncoder:
    """Writes symbols. Call `encode`, once or several times, then `finish`."""

    def __init__(self) -> None:
        self._low = 0  # below 2**57: bit 56 is a carry into the bytes written
        self._range = TOP
        self._bytes = bytearray()

    def encode(self, symbols: Iterable[tuple[int, int, int]]) -> None:
        """Narrow the interval to [cumulative, cumulative + frequency) of total, once for each of these triples.

        The state lives in locals: this is the hot loop.
        """
        low, range_, written = self._low, self._range, self._bytes
        for cumulative, frequency, total in symbols:
            assert cumulative >= 0 and frequency > 0 and cumulative + frequency <= total < TOTAL_LIMIT
            step = range_ // total
            low += step * cumulative
            range_ = step * frequency
            while range_ < BOTTOM:
                if low >= TOP:
                    _carry(written)
                    low -= TOP
                written.append(low >> 48)
                low = (low & (BOTTOM - 1)) << 8
                range_ <<= 8
        self._low, self._range = low, range_

    def finish(self) -> bytes:
        """The shortest byte string in the interval. The encoder cannot be used afterwards."""
        tail = shortest_within(self._low, self._range)
        if tail >= TOP:
            _carry(self._bytes)
            tail -= TOP
        self._bytes += tail.to_bytes(STATE_BYTES, "big")
        return bytes(self._bytes).rstrip(b"\0")


class RangeDecoder:
    """Reads symbols from `data`. Call `decode` once a symbol, then `finish`.

    Raises:
        DamagedError: from `decode` or `finish`, when no encoder writes these bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._read = STATE_BYTES  # bytes taken from data, counting implied zeros
        self._offset = int.from_bytes(data[:STATE_BYTES].ljust(STATE_BYTES, b"\0"), "big")  # data minus low
        self._range = TOP

    def decode(self, boundaries: memoryview, first: int, last: int) -> int:
        """The symbol s with boundaries[first + s] <= target < boundaries[first + s + 1].

        `boundaries[first : last + 1]` are the cumulative frequencies 0 .. total of one symbol, increasing; the flat
        int64 view holds those of many symbols, so that numpy makes them all at once.
        """
        step = self._range // boundaries[last]
        target = self._offset // step
        if target >= boundaries[last]:
            raise DamagedError("the coded bytes leave the range of their symbols: the container is damaged")
        position = bisect_right(boundaries, target, first, last + 1) - 1
        low = boundaries[position]
        self._narrow(step * low, step * (boundaries[position + 1] - low))
        return position - first

    def _narrow(self, low: int, range_: int) -> None:
        offset = self._offset - low
        while range_ < BOTTOM:
            following = self._data[self._read] if self._read < len(self._data) else 0
            offset = offset << 8 | following
            range_ <<= 8
            self._read += 1
        self._offset, self._range = offset, range_

    def finish(self) -> None:
        """Check that the encoder, given the decoded symbols, would have written exactly these bytes."""
        if len(self._data) > self._read or self._data[-1:] == b"\0":
            raise DamagedError("bytes follow the end of the coded symbols: the container is damaged")
        window = int.from_bytes(self._data[self._read - STATE_BYTES :].ljust(STATE_BYTES, b"\0"), "big")
        if window != shortest_within(window - self._offset, self._range):
            raise DamagedError("the coded symbols end early: the container is truncated or damaged")


def shortest_within(low: int, range_: int) -> int:
    """The multiple of the largest power of 256 in [low, low + range_), the smallest if there are several."""
    for zero_bytes in range(STATE_BYTES, -1, -1):
        unit = 1 << (8 * zero_bytes)
        value = -(-low // unit) * unit
        if value < low + range_:
            return value
    raise AssertionError("unreachable: every integer is a multiple of 1")


def _carry(written: bytearray) -> None:
    index = len(written) - 1
    while written[index] == 255:
        written[index] = 0
        index -= 1
    written[index] += 1
