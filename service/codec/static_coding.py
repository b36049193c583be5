"""Codes to bytes without a network: fixed-length bits, and a range coder with one table for all positions.

In: codes (n,) int64 in [0, K). Out: bytes, and back. Both check what they read and raise `DamagedError`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.codec.container_errors import DamagedError
from service.codec.range_coder import RangeDecoder, RangeEncoder
from service.stopping import check_stop

Codes = NDArray[np.int64]

TABLE_SCALE = 1 << 20  # of the static frequencies: below the range coder's limit of 2**31 with any K up to 2**30
CODES_A_STEP = 1 << 14  # taken apart at once: the memory beside the codes themselves


def width_of(codebook_size: int) -> int:
    """Bits of a fixed-length code: ceil(log2 K)."""
    return (codebook_size - 1).bit_length()


def pack(codes: Codes, codebook_size: int) -> bytes:
    """(n,) codes -> width_of(K) bits a code, most significant bit first, the last byte filled up with zeros."""
    width = width_of(codebook_size)
    return b"".join(_packed(codes[s : s + CODES_A_STEP], width) for s in range(0, len(codes), CODES_A_STEP))


def _packed(codes: Codes, width: int) -> bytes:
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)  # (n, 32)
    return np.packbits(bits[:, 32 - width :]).tobytes()


def unpack(data: bytes, count: int, codebook_size: int) -> Codes:
    """What `pack` made of (count,) codes. Raises DamagedError where it makes no such bytes."""
    width = width_of(codebook_size)
    if len(data) != -(-count * width // 8):
        raise DamagedError(
            f"{count} codes of {width} bits take {-(-count * width // 8)} bytes, there are {len(data)}: it is "
            "truncated or damaged"
        )
    unused = len(data) * 8 - count * width
    if unused and data[-1] & ((1 << unused) - 1):
        raise DamagedError("the bits after the last code are not zero: the container is damaged")
    powers = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    codes = np.empty(count, np.int64)
    for start in range(0, count, CODES_A_STEP):  # a multiple of 8 codes begins with a byte
        part = codes[start : start + CODES_A_STEP]
        taken = np.frombuffer(data, np.uint8)[start * width // 8 :][: -(-len(part) * width // 8)]
        part[:] = np.unpackbits(taken, count=len(part) * width).reshape(len(part), width) @ powers
    if count and codes.max() >= codebook_size:
        raise DamagedError(
            f"a code is {codes.max()}, the codebook has {codebook_size} vectors: the container is damaged"
        )
    return codes


class FrequencyTable:
    """Frequency 1 + floor(count * 2**20 / sum of counts) for a code seen `count` times in training."""

    def __init__(self, histogram: tuple[int, ...]) -> None:
        self._histogram = histogram

    @cached_property
    def boundaries(self) -> NDArray[np.int64]:
        """(K + 1,) int64: 0, and the inclusive cumulative frequencies."""
        seen = max(1, sum(self._histogram))
        frequency = [1 + count * TABLE_SCALE // seen for count in self._histogram]
        return np.cumsum([0, *frequency], dtype=np.int64)

    def encode(self, codes: Codes, encoder: RangeEncoder) -> None:
        """codes (n,) int64 in [0, K), one symbol each."""
        frequency, total = np.diff(self.boundaries), np.full(CODES_A_STEP, self.boundaries[-1])
        for start in range(0, len(codes), CODES_A_STEP):
            check_stop()
            part = codes[start : start + CODES_A_STEP]
            columns = (self.boundaries[part], frequency[part], total[: len(part)])
            encoder.encode(zip(*(column.tolist() for column in columns), strict=True))

    def decode(self, count: int, decoder: RangeDecoder) -> Codes:
        """(count,) int64 in [0, K), as `encode` took them. Raises DamagedError from `decoder`."""
        flat, last = self.boundaries.data, len(self.boundaries) - 1
        codes = np.empty(count, np.int64)
        for start in range(0, count, CODES_A_STEP):
            check_stop()
            part = codes[start : start + CODES_A_STEP]
            part[:] = [decoder.decode(flat, 0, last) for _ in range(len(part))]
        return codes
