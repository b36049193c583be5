"""Codes through containers and back, with an exact tiny prior as the model."""

from __future__ import annotations

import math
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tiny_prior import FREQUENCY_TABLE, TinyGraphs, draw_codes, tiny_model
from service.codec import Codes, Limits, decode, decode_tile, encode, prior_coding, static_coding
from service.codec.container import MOST_PICTURES, Mode, read_header, write_header
from service.codec.container_errors import (
    ChecksumError,
    ContainerError,
    DamagedError,
    HeaderError,
    OverLimitError,
    TileError,
    WrongModelError,
)
from service.codec.prior_coding import frequencies
from service.codec.range_coder import RangeDecoder, RangeEncoder
from service.codec.static_coding import CODES_A_STEP, pack, unpack, width_of
from service.stopping import Stopped, check_stop, stoppable

MODEL = tiny_model()
NATIVE = (12, 16)  # pixels: a grid of 3 x 4 codes, 4 pixels each
ALL_MODES = list(Mode)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Codes, tuple[int, int]]:
    height, width = draw(st.one_of(st.just(NATIVE), st.tuples(st.integers(1, 60), st.integers(1, 60))))
    count, seed = draw(st.integers(1, 6)), draw(st.integers(0, 9))
    return draw_codes(MODEL, (count, -(-height // 4), -(-width // 4)), seed), (height, width)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("indexed", [False, True])
@given(case=pictures())
def test_codes_come_back(mode: Mode, indexed: bool, case: tuple[Codes, tuple[int, int]]) -> None:
    codes, size = case
    labels = np.arange(len(codes)) % 4 if mode == Mode.LABELLED else None
    if indexed and mode == Mode.LABELLED:
        with pytest.raises(ValueError, match="allow raw"):
            encode(MODEL, codes, size=size, labels=labels, modes=[mode], indexed=True)
        return
    data = encode(MODEL, codes, size=size, labels=labels, modes=[mode], indexed=indexed)
    decoded = decode(MODEL, data)
    assert np.array_equal(decoded.codes, codes) and decoded.codes.dtype == np.int64
    assert (decoded.size, decoded.mode) == (size, mode)
    if labels is not None:
        assert decoded.labels is not None and np.array_equal(decoded.labels, labels)


def test_the_shortest_mode_wins() -> None:
    likely = draw_codes(MODEL, (8, 3, 4), seed=1)
    unlikely = np.full((8, 3, 4), MODEL.codebook_size - 1)
    for codes in (likely, unlikely):
        lengths = {mode: len(encode(MODEL, codes, modes=[mode])) for mode in (Mode.RAW, Mode.TABLE, Mode.PRIOR)}
        chosen = encode(MODEL, codes)
        assert len(chosen) == min(lengths.values())
        assert lengths[read_header(chosen)[0].mode] == len(chosen)
    assert read_header(encode(MODEL, likely))[0].mode == Mode.PRIOR


def test_a_label_is_stored_only_where_it_saves_bytes() -> None:
    codes = draw_codes(MODEL, (30, 3, 4), seed=1)  # likely without a label
    assert decode(MODEL, encode(MODEL, codes, labels=np.zeros(30, np.int64))).labels is None
    assert MODEL.prior is not None
    labels = np.full(30, 2)
    for _ in range(7):
        codes = MODEL.prior.graphs.logits(codes, labels).argmax(axis=-1)  # likely with label 2
    decoded = decode(MODEL, encode(MODEL, codes, labels=labels))
    assert decoded.labels is not None and decoded.labels.tolist() == [2] * 30


def test_bytes_are_within_one_percent_of_the_ideal_code_length() -> None:
    """Ideal: the sum of -log2(frequency / total) in floating point, from the teacher-forced logits."""
    codes = draw_codes(MODEL, (500, 3, 4), seed=3)
    assert MODEL.prior is not None
    frequency = frequencies(MODEL.prior.graphs.logits(codes, np.full(500, 3)), FREQUENCY_TABLE)
    chosen = np.take_along_axis(frequency, codes[..., None], -1)[..., 0]
    ideal_bits = -np.log2(chosen / frequency.sum(-1)).sum()
    data = encode(MODEL, codes, modes=[Mode.PRIOR])
    assert ideal_bits / 8 - 1 <= len(data) - 12 <= ideal_bits / 8 * 1.01


@pytest.mark.parametrize(("pictures", "header_bytes"), [(1, 10), (2, 11), (64, 11), (127, 11), (128, 12), (4000, 12)])
def test_the_header_takes_at_most_12_bytes(pictures: int, header_bytes: int) -> None:
    codes = np.zeros((pictures, 3, 4), np.int64)
    data = encode(MODEL, codes, modes=[Mode.RAW])
    assert len(data) - math.ceil(pictures * 12 * 4 / 8) == header_bytes


def test_pictures_of_a_stream_are_decoded_together() -> None:
    """The prior is called once a position for all pictures of a group, not once a picture."""
    model = tiny_model()
    data = encode(model, draw_codes(model, (300, 3, 4), seed=0), modes=[Mode.PRIOR])
    assert model.prior is not None and isinstance(model.prior.graphs, TinyGraphs)
    model.prior.graphs.batches.clear()
    decode(model, data)
    assert model.prior.graphs.batches == [256] * 12 + [44] * 12


@pytest.mark.parametrize("mode", [Mode.RAW, Mode.TABLE, Mode.PRIOR])
def test_one_tile_decodes_alone(mode: Mode) -> None:
    codes = draw_codes(MODEL, (2, 7, 9), seed=5)  # tiles of 3, 3, 1 rows and 4, 4, 1 columns
    data = encode(MODEL, codes, size=(28, 33), modes=[mode], indexed=True)
    seen = np.full(codes.shape, -1)
    for index in range(18):
        found = decode_tile(MODEL, data, index)
        seen[found.tile.where] = found.codes[0]
    assert np.array_equal(seen, codes)
    with pytest.raises(TileError, match="no tile 18"):
        decode_tile(MODEL, data, 18)


@given(st.integers(0, 9), st.integers(1, 13), st.integers(1, 13), st.data())
def test_a_tile_comes_with_its_surroundings(margin: int, height: int, width: int, data: st.DataObject) -> None:
    codes = draw_codes(MODEL, (2, height, width), seed=5)
    container = encode(MODEL, codes, size=(4 * height, 4 * width - 1), modes=[Mode.PRIOR], indexed=True)
    tiles = 2 * -(-height // 3) * -(-width // 4)
    found = decode_tile(MODEL, container, data.draw(st.integers(0, tiles - 1)), margin=margin)
    tile, (_, rows, columns) = found.tile, found.codes.shape
    assert found.size == (4 * height, 4 * width - 1)
    assert (found.top, found.left) == (max(0, tile.top - margin), max(0, tile.left - margin))
    assert found.top + rows == min(height, tile.top + tile.height + margin)
    assert found.left + columns == min(width, tile.left + tile.width + margin)
    whole = codes[tile.picture, found.top : found.top + rows, found.left : found.left + columns]
    assert np.array_equal(found.codes[0], whole)


def test_a_damaged_tile_does_not_hurt_its_neighbours() -> None:
    codes = draw_codes(MODEL, (1, 6, 4), seed=5)
    data = encode(MODEL, codes, size=(24, 16), modes=[Mode.RAW], indexed=True)
    damaged = data[:-1] + bytes([data[-1] ^ 16])
    assert np.array_equal(decode_tile(MODEL, damaged, 0).codes[0], codes[0, :3])
    with pytest.raises(ChecksumError):
        decode_tile(MODEL, damaged, 1)
    with pytest.raises(ContainerError, match="no index"):
        decode_tile(MODEL, encode(MODEL, codes, size=(24, 16)), 0)


def test_another_model_is_refused() -> None:
    data = encode(MODEL, draw_codes(MODEL, (1, 3, 4), seed=5), named=True)
    with pytest.raises(WrongModelError, match=r"07ab3c\.\.\. \(tiny\), this is tiny 08ab3c.*: decode it with"):
        decode(tiny_model(seed=8), data)


def test_a_model_that_was_renamed_is_the_same() -> None:
    codes = draw_codes(MODEL, (1, 3, 4), seed=5)
    assert np.array_equal(decode(replace(MODEL, name="other"), encode(MODEL, codes, named=True)).codes, codes)


def test_a_model_with_the_same_prefix_but_other_numbers_fails_the_checksum() -> None:
    """3 bytes of version do not identify a model; the fingerprint in the checksum does."""
    data = encode(MODEL, np.zeros((1, 3, 4), np.int64), modes=[Mode.RAW])
    other = [
        replace(MODEL, version=MODEL.version[:-1] + "1"),
        replace(MODEL, code_histogram=(1,) * 12),
        replace(MODEL, prior=None),
    ]
    for model in other:
        with pytest.raises(ChecksumError):
            decode(model, data)


def test_limits_hold_at_their_value_and_not_above() -> None:
    codes = np.zeros((5, 3, 4), np.int64)
    data = encode(MODEL, codes)
    assert len(decode(MODEL, data, Limits(max_pictures=5, max_codes=60)).codes) == 5
    with pytest.raises(OverLimitError, match="5 pictures, the limit is 4"):
        decode(MODEL, data, Limits(max_pictures=4))
    with pytest.raises(OverLimitError, match="60 codes, the limit is 59"):
        decode(MODEL, data, Limits(max_codes=59))
    assert len(decode(MODEL, data, Limits(max_pixels=192)).codes) == 5
    with pytest.raises(OverLimitError, match="16x12 is more than 191 pixels"):
        decode(MODEL, data, Limits(max_pixels=191))


def stopped_at(call: int, graph: Callable[..., object]) -> tuple[threading.Event, list[int], Callable[..., object]]:
    """`graph`, the event that its call of this number sets, and its calls."""
    stop, calls = threading.Event(), [0]

    def run(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            stop.set()
        return graph(*arguments)

    return stop, calls, run


def test_a_decoder_stops_at_the_next_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes past the end count as zero, so a header alone was decoded in full: 41 s of a thread for 15 bytes."""
    model = tiny_model()
    assert model.prior is not None
    stop, calls, context = stopped_at(2, model.prior.graphs.context)
    monkeypatch.setattr(model.prior.graphs, "context", context)
    head = bytes.fromhex("f6511a") + model.prefix + bytes(4) + b"\x01" + b"\x80\x20" * 2  # 4096 x 4096 pixels
    with pytest.raises(Stopped):
        stoppable(lambda: decode(model, head), stop)()
    assert calls == [2]


def test_an_encoder_stops_at_the_next_call_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert model.prior is not None
    stop, calls, logits = stopped_at(2, model.prior.graphs.logits)
    monkeypatch.setattr(model.prior.graphs, "logits", logits)
    monkeypatch.setattr(prior_coding, "LOGITS_A_CALL", 1)
    codes = np.zeros((5, 3, 4), np.int64)
    with pytest.raises(Stopped):
        stoppable(lambda: encode(model, codes), stop)()
    assert calls == [2]
    stop.set()
    with pytest.raises(Stopped):
        stoppable(lambda: encode(model, codes), stop)()
    assert calls == [2], "it had not begun"


def test_a_hostile_size_is_refused_before_anything_is_made() -> None:
    """2**28 - 1 pixels squared in a few bytes."""
    head = bytes.fromhex("f65118") + MODEL.prefix + bytes(4) + b"\x01" + b"\xff\xff\xff\x7f" * 2
    with pytest.raises(OverLimitError, match="codes, the limit is"):
        decode(MODEL, head)


def test_arguments_that_make_no_sense_say_so() -> None:
    codes = np.zeros((1, 3, 4), np.int64)
    with pytest.raises(ValueError, match=r"take \(B, \*\(3, 4\)\)"):
        encode(MODEL, np.zeros((1, 4, 3), np.int64))
    with pytest.raises(ValueError, match=r"0\.\.11, they span 0\.\.12"):
        encode(MODEL, codes + np.arange(12).reshape(3, 4) // 11 * 12)
    with pytest.raises(ValueError, match=r"1 numbers in 0\.\.3"):
        encode(MODEL, codes, labels=np.array([4]))
    with pytest.raises(ValueError, match="no conditional prior"):
        encode(tiny_model(label_count=0), codes, labels=np.array([0]))
    with pytest.raises(ValueError, match="only"):
        encode(tiny_model(any_size=False), codes, size=(8, 8))


def test_a_container_holds_as_many_pictures_as_a_decoder_reads() -> None:
    most = np.zeros((MOST_PICTURES, 3, 4), np.int64)
    data = encode(MODEL, most, modes=[Mode.RAW])
    assert len(decode(MODEL, data, Limits(MOST_PICTURES)).codes) == MOST_PICTURES
    with pytest.raises(ValueError, match=f"holds {MOST_PICTURES} pictures at most"):
        encode(MODEL, np.zeros((MOST_PICTURES + 1, 3, 4), np.int64), modes=[Mode.RAW])


@pytest.mark.parametrize("codebook_size", [2, 3, 12, 512, 1000])
@pytest.mark.parametrize("beyond", [-1, 0, 1, 8])
def test_fixed_length_codes_come_back_across_the_parts_that_they_are_read_in(codebook_size: int, beyond: int) -> None:
    codes = np.random.default_rng(beyond + 1).integers(0, codebook_size, 2 * CODES_A_STEP + beyond)
    data = pack(codes, codebook_size)
    assert np.array_equal(unpack(data, len(codes), codebook_size), codes)
    unused = len(data) * 8 - len(codes) * width_of(codebook_size)
    if unused:
        with pytest.raises(DamagedError, match="bits after the last code"):
            unpack(data[:-1] + bytes([data[-1] | 1 << (unused - 1)]), len(codes), codebook_size)


def test_models_without_a_prior_use_the_other_modes() -> None:
    model = replace(MODEL, prior=None)
    codes = draw_codes(MODEL, (2, 3, 4), seed=5)
    data = encode(model, codes)
    assert np.array_equal(decode(model, data).codes, codes)
    with pytest.raises(HeaderError, match="never writes the mode prior"):
        decode(model, data[:2] + bytes([data[2] & ~3 | Mode.PRIOR]) + data[3:])


def test_colour_is_repeated_only_in_an_extended_header() -> None:
    model = tiny_model(channels=3)
    codes = np.zeros((1, 3, 4), np.int64)
    assert not read_header(encode(model, codes))[0].colour
    data = encode(model, codes, named=True)
    assert read_header(data)[0].colour
    contradicting = replace(read_header(data)[0], colour=False)
    assert contradicting.extended
    with pytest.raises(HeaderError, match="colour"):
        decode(model, write_header(contradicting) + data[read_header(data)[1] :])
    with pytest.raises(HeaderError, match="colour"):
        decode(tiny_model(channels=1), data)


def test_packing_needs_little_memory_beside_the_codes() -> None:
    """All codes taken apart at once are 32 bytes each, and as much again."""
    codes = np.zeros(1 << 19, np.int64)
    tracemalloc.start()
    try:
        data = pack(codes, 512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == codes.size * 9 // 8
    assert peak < 6 * len(data)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_the_table_coder_stops_between_two_parts(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran on for seconds for nobody, at the largest size."""
    monkeypatch.setattr(static_coding, "CODES_A_STEP", 4)
    stop, table, codes = threading.Event(), static_coding.FrequencyTable((5, 3, 1)), np.arange(40) % 3
    encoder = RangeEncoder()
    table.encode(codes, encoder)
    data = encoder.finish()
    assert np.array_equal(table.decode(40, RangeDecoder(data)), codes)
    parts = [0]

    def looks() -> None:
        parts[0] += 1
        if parts[0] == 3:
            stop.set()
        check_stop()

    monkeypatch.setattr(static_coding, "check_stop", looks)
    work: dict[str, Callable[[], object]] = {
        "encode": lambda: table.encode(codes, RangeEncoder()),
        "decode": lambda: table.decode(40, RangeDecoder(data)),
    }
    with pytest.raises(Stopped):
        stoppable(work[direction], stop)()
    assert parts == [3]
