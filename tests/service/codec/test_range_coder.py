"""The range coder against exact rational arithmetic, at its edges, and on every short byte string."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codec.container_errors import DamagedError
from service.codec.range_coder import RangeDecoder, RangeEncoder, shortest_within

Model = list[int]  # the frequencies of one position


def encode(models: list[Model], symbols: list[int]) -> bytes:
    encoder = RangeEncoder()
    for frequencies, symbol in zip(models, symbols, strict=True):
        encoder.encode([(sum(frequencies[:symbol]), frequencies[symbol], sum(frequencies))])
    return encoder.finish()


def decode(models: list[Model], data: bytes) -> list[int]:
    decoder = RangeDecoder(data)
    symbols = []
    for frequencies in models:
        boundaries = np.cumsum([0, *frequencies], dtype=np.int64).data
        symbols.append(decoder.decode(boundaries, 0, len(frequencies)))
    decoder.finish()
    return symbols


def ideal_bits(models: list[Model], symbols: list[int]) -> float:
    return sum(-math.log2(f[s] / sum(f)) for f, s in zip(models, symbols, strict=True))


@st.composite
def coded_symbols(draw: st.DrawFn) -> tuple[list[Model], list[int]]:
    small = st.lists(st.integers(1, 50), min_size=1, max_size=8)
    steep = st.lists(st.sampled_from([1, 3, 1 << 16, (1 << 28) - 1]), min_size=2, max_size=7)
    models = draw(st.lists(st.one_of(small, steep), max_size=60))
    return models, [draw(st.integers(0, len(model) - 1)) for model in models]


@given(coded_symbols())
def test_symbols_come_back_and_cost_their_entropy(case: tuple[list[Model], list[int]]) -> None:
    models, symbols = case
    data = encode(models, symbols)
    assert decode(models, data) == symbols
    # floor(range / total) gives away less than 2**-17 of the interval a symbol; the flush adds less than 9 bits.
    assert len(data) * 8 <= ideal_bits(models, symbols) + 9 + len(symbols) * 2**-16


@given(coded_symbols())
def test_the_bytes_lie_in_the_interval_of_exact_arithmetic(case: tuple[list[Model], list[int]]) -> None:
    """Oracle: the interval in rationals. The coder's interval lies below the exact one by at most its rounding."""
    models, symbols = case
    low, width, rounding = Fraction(0), Fraction(1), Fraction(0)
    for frequencies, symbol in zip(models, symbols, strict=True):
        total = sum(frequencies)
        rounding += width * Fraction(2) ** -16
        low += width * Fraction(sum(frequencies[:symbol]), total)
        width *= Fraction(frequencies[symbol], total)
    data = encode(models, symbols)
    value = Fraction(int.from_bytes(data, "big"), 256 ** len(data))
    assert low - rounding <= value < low + width


def test_every_string_of_two_bytes_is_rejected_or_the_encoding_of_what_it_decodes_to() -> None:
    """65,793 strings: decoding is injective, so an altered stream never stands for the same symbols."""
    models: list[Model] = [[1, 2, 5], [200, 1, 55], [3, 1]]
    accepted = 0
    for length in range(3):
        for string in product(range(256), repeat=length):
            try:
                symbols = decode(models, bytes(string))
            except DamagedError:
                continue
            assert encode(models, symbols) == bytes(string)
            accepted += 1
    assert accepted == 3 * 3 * 2 - sum(len(encode(models, list(s))) > 2 for s in product(range(3), range(3), range(2)))


def test_all_sequences_have_different_bytes() -> None:
    models = [[1, 7, 3, 250]] * 5
    encoded = {encode(models, list(symbols)) for symbols in product(range(4), repeat=5)}
    assert len(encoded) == 4**5


def test_a_carry_runs_through_written_bytes() -> None:
    """Symbols just below one half, then one that lifts the sum over it: 0x7f ff ff .. becomes 0x80."""
    half = [(1 << 29) - 1, 2, (1 << 29) - 1]
    models = [half] + [[1, (1 << 30) - 2, 1]] * 3
    seen = set()
    for symbols in product(range(3), repeat=4):
        data = encode(models, list(symbols))
        assert decode(models, data) == list(symbols)
        seen.add(data[:1])
    assert {b"\x7f", b"\x80"} <= seen


@given(coded_symbols(), st.integers(0, 255))
def test_an_appended_byte_is_rejected(case: tuple[list[Model], list[int]], extra: int) -> None:
    models, symbols = case
    data = encode(models, symbols) + bytes([extra])
    with contextlib.suppress(DamagedError):
        assert decode(models, data) != symbols


def test_no_symbols_are_no_bytes() -> None:
    assert encode([], []) == b""
    assert decode([], b"") == []
    with pytest.raises(DamagedError, match="follow the end"):
        decode([], b"\0")
    with pytest.raises(DamagedError, match="end early"):
        decode([], b"\1")


def test_totals_up_to_the_limit() -> None:
    model = [1, (1 << 31) - 3, 1]
    for symbols in ([0] * 20, [1] * 20, [2] * 20, [0, 1, 2] * 7):
        models = [model] * len(symbols)
        assert decode(models, encode(models, symbols)) == symbols
    with pytest.raises(AssertionError):
        RangeEncoder().encode([(0, 1, 1 << 31)])


@pytest.mark.parametrize("interval", [(-1, 2, 4), (0, 0, 4), (3, 2, 4), (0, 1, 1 << 31)])
def test_an_interval_that_no_symbol_has_is_an_error(interval: tuple[int, int, int]) -> None:
    """Without this a frequency of 0 would never end: its interval stays empty however often it is widened."""
    with pytest.raises(AssertionError):
        RangeEncoder().encode([interval])


def test_a_carry_of_exactly_one_runs_into_the_byte_written() -> None:
    """After the second symbol the interval begins at 2**56 and not beyond."""
    models = [[255, 2, (1 << 16) - 257], [1, 1], [1, 1]]
    data = encode(models, [1, 1, 0])
    assert data == b"\x01"
    assert decode(models, data) == [1, 1, 0]


def test_bytes_at_the_end_of_the_last_interval_are_rejected() -> None:
    """2**56 is no multiple of 3: the last number belongs to none of three equal symbols."""
    with pytest.raises(DamagedError, match="leave the range"):
        decode([[1, 1, 1]], b"\xff" * 7)


def test_the_shortest_string_is_the_first_number_with_the_most_zero_bytes() -> None:
    def zero_bytes(number: int) -> int:
        return 99 if number == 0 else next(n for n in range(9) if number % 256 ** (n + 1))

    for low in range(0, 800, 7):
        for width in (1, 2, 255, 256, 257, 300):
            numbers = range(low, low + width)
            assert shortest_within(low, width) == max(numbers, key=zero_bytes), (low, width)
    assert shortest_within(2**56 - 2**50, 2**51) == 2**56, "a carry, and no byte of its own"


def test_an_interval_that_is_just_wide_enough_is_not_widened() -> None:
    """One of 256 equal symbols leaves 2**48, of which three sixths end a little lower than those of 2**56. The upper
    halves of what is left lead there."""
    models, symbols = [[1] * 256, [3, 3], *[[1, 1]] * 52], [7, 0, *[1] * 52]
    assert decode(models, encode(models, symbols)) == symbols
