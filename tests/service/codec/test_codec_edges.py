"""What the codec refuses, and where its limits, modes and tiles begin and end."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tiny_prior import draw_codes, tiny_model
from service.codec import Announced, Limits, announced, decode, decode_tile, encode
from service.codec.container import Header, Mode, read_header, read_index, write_header
from service.codec.container_errors import ChecksumError, DamagedError, HeaderError, OverLimitError, TileError
from service.codec.static_coding import FrequencyTable, pack, unpack

MODEL = tiny_model()
NATIVE = (12, 16)


def test_fixed_length_codes_beyond_the_codebook_are_refused() -> None:
    """12 vectors take 4 bits, which could also say 12: the decoder network has no such vector."""
    assert unpack(pack(np.array([3, 11]), 12), 2, 12).tolist() == [3, 11]
    with pytest.raises(DamagedError, match="a code is 12, the codebook has 12"):
        unpack(pack(np.array([3, 12]), 12), 2, 12)


@pytest.mark.parametrize("change", [1, -1])
def test_fixed_length_codes_have_one_length(change: int) -> None:
    data = pack(np.arange(5), 12)  # 20 bits
    with pytest.raises(DamagedError, match=f"take 3 bytes, there are {3 + change}"):
        unpack((data + b"\0")[: 3 + change], 5, 12)


def test_a_histogram_without_counts_gives_every_code_the_same_frequency() -> None:
    assert FrequencyTable((0, 0, 0)).boundaries.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (Header(Mode.RAW, MODEL.prefix, 0, size=NATIVE), "a size of"),  # which is left out where it is the model's
        (Header(Mode.LABELLED, MODEL.prefix, 0, indexed=True), "never writes the mode labelled"),
    ],
)
def test_headers_that_make_no_sense_for_the_model_are_refused(header: Header, message: str) -> None:
    with pytest.raises(HeaderError, match=message):
        decode(MODEL, write_header(header) + bytes(6))


def test_a_model_of_one_size_or_without_labels_refuses_headers_that_have_them() -> None:
    with pytest.raises(HeaderError, match="a size of"):
        decode(tiny_model(any_size=False), write_header(Header(Mode.RAW, MODEL.prefix, 0, size=(8, 8))) + bytes(2))
    with pytest.raises(HeaderError, match="never writes the mode labelled"):
        decode(tiny_model(label_count=0), write_header(Header(Mode.LABELLED, MODEL.prefix, 0)) + bytes(6))


def test_codes_that_make_no_sense_say_so() -> None:
    codes = np.zeros((1, 3, 4), np.int64)
    for wrong in (codes[:0], codes[0], codes[None]):
        with pytest.raises(ValueError, match="codes have shape"):
            encode(MODEL, wrong)
    with pytest.raises(ValueError, match=r"they span -1\.\.0"):
        encode(MODEL, codes - np.eye(3, 4, dtype=np.int64))
    for labels in ([-1], [0, 0], []):
        with pytest.raises(ValueError, match=r"1 numbers in 0\.\.3"):
            encode(MODEL, codes, labels=np.array(labels, np.int64))


def test_the_cost_of_a_container_is_in_its_header() -> None:
    data = encode(MODEL, draw_codes(MODEL, (5, 2, 3), 0), size=(8, 9))
    assert announced(MODEL, data) == announced(MODEL, data[:20]) == Announced(5, (8, 9), (2, 3))
    with pytest.raises(OverLimitError):
        announced(MODEL, data, Limits(max_codes=29))


def test_tiles_are_counted_from_0() -> None:
    data = encode(MODEL, draw_codes(MODEL, (2, 3, 4), 0), indexed=True)
    with pytest.raises(TileError, match="no tile -1: the container has 2, counted from 0"):
        decode_tile(MODEL, data, -1)


def test_of_modes_of_one_length_the_simplest_is_taken() -> None:
    codes = draw_codes(MODEL, (1, 3, 4), 0)
    lengths = {}
    for seed in range(99):
        codes = draw_codes(MODEL, (1, 1, 1), seed)
        lengths = {mode: len(encode(MODEL, codes, size=(4, 4), modes=[mode])) for mode in (Mode.RAW, Mode.TABLE)}
        if lengths[Mode.RAW] == lengths[Mode.TABLE]:
            break
    else:
        raise AssertionError
    for modes in ([Mode.RAW, Mode.TABLE], [Mode.TABLE, Mode.RAW]):
        assert read_header(encode(MODEL, codes, size=(4, 4), modes=modes))[0].mode == Mode.RAW


def test_a_thin_picture_is_limited_like_any_other() -> None:
    """Its height minus a code is no number of pixels: the product passed every limit."""
    for size in ((1, 4000), (4000, 3), (2, 4000)):
        data = encode(MODEL, np.zeros((1, *MODEL.grid_of(size)), np.int64), size=size, modes=[Mode.RAW])
        assert len(decode(MODEL, data, Limits(max_pixels=12000)).codes) == 1
        with pytest.raises(OverLimitError, match="is more than 3000 pixels"):
            decode(MODEL, data, Limits(max_pixels=3000))


@pytest.mark.parametrize(
    ("limits", "of_pictures"),
    [(Limits(max_pictures=4), True), (Limits(max_codes=59), False), (Limits(max_pixels=9), False)],
)
def test_what_exceeds_a_limit_is_told_apart(limits: Limits, of_pictures: bool) -> None:
    """/decode answers too-many-items or picture-too-large by it."""
    with pytest.raises(OverLimitError) as caught:
        decode(MODEL, encode(MODEL, np.zeros((5, 3, 4), np.int64)), limits)
    assert caught.value.of_pictures is of_pictures


@pytest.mark.parametrize(("margin", "read"), [(0, {4}), (1, set(range(9)))])
def test_a_tile_is_decoded_without_those_further_away(margin: int, read: set[int]) -> None:
    """The middle one of 3 x 3 tiles of 3 x 4 codes, each of them damaged once."""
    codes = draw_codes(MODEL, (1, 9, 12), seed=5)
    data = encode(MODEL, codes, size=(36, 48), modes=[Mode.RAW], indexed=True)
    for index, entry in enumerate(read_index(data, read_header(data)[1], 9)):
        damaged = data[: entry.start] + bytes([data[entry.start] ^ 16]) + data[entry.start + 1 :]
        if index in read:
            with pytest.raises(ChecksumError):
                decode_tile(MODEL, damaged, 4, margin=margin)
        else:
            assert np.array_equal(decode_tile(MODEL, damaged, 4, margin=margin).codes, codes[:, 3:6, 4:8])
