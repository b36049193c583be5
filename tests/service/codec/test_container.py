"""Headers, varints and indexes: one spelling each, and a clear error for every other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codec.container import (
    MOST_PICTURES,
    Header,
    Mode,
    read_header,
    read_index,
    write_header,
    write_index,
    write_varint,
)
from service.codec.container_errors import ContainerError, FormatVersionError, HeaderError, NotAContainerError

LENGTHS = st.integers(1, (1 << 28) - 1)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    header = Header(
        mode=draw(st.sampled_from(Mode)),
        model=draw(st.binary(min_size=3, max_size=3)),
        checksum=draw(st.integers(0, (1 << 32) - 1)),
        pictures=draw(st.integers(1, MOST_PICTURES)),
        size=draw(st.none() | st.tuples(LENGTHS, LENGTHS)),
        indexed=draw(st.booleans()),
        name=draw(st.none() | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)),
    )
    return replace(header, colour=header.extended and draw(st.booleans()))


@given(headers(), st.binary(max_size=5))
def test_a_header_comes_back_and_says_where_it_ends(header: Header, payload: bytes) -> None:
    written = write_header(header)
    assert read_header(written + payload) == (header, len(written))


@given(headers())
def test_a_truncated_header_is_refused(header: Header) -> None:
    written = write_header(header)
    for length in range(len(written)):
        with pytest.raises(ContainerError):
            read_header(written[:length])


@given(st.binary(max_size=24))
def test_bytes_are_refused_or_the_spelling_of_what_they_say(tail: bytes) -> None:
    """The only spelling: what is read is written back as the same bytes."""
    data = b"\xf6Q\x1d" + tail
    try:
        header, end = read_header(data)
    except HeaderError:
        return
    assert write_header(header) == data[:end]


@pytest.mark.parametrize(
    ("hexadecimal", "error", "message"),
    [
        ("", NotAContainerError, "missing"),
        ("89504e47", NotAContainerError, "8950, not f651"),
        ("f650", NotAContainerError, "f650, not f651"),
        ("f651", HeaderError, "inside its flags"),
        ("f65120" + "00" * 7, FormatVersionError, "format version 2, this decoder reads 1"),
        ("f65110" + "00" * 6, HeaderError, "inside its checksum"),
        ("f65118" + "00" * 8, HeaderError, "extension byte 0x00"),
        ("f65118" + "00" * 7 + "08", HeaderError, "extension byte 0x08"),
        ("f65118" + "00" * 7 + "11", HeaderError, "extension byte 0x11"),
        ("f65114" + "00" * 7 + "01", HeaderError, "1 pictures, outside 2"),
        ("f65114" + "00" * 7 + "808001", HeaderError, "16384 pictures"),
        ("f65114" + "00" * 7 + "8200", HeaderError, "more bytes than it needs"),
        ("f65114" + "00" * 7 + "ffffffff7f", HeaderError, "longer than 4 bytes"),
        ("f65118" + "00" * 7 + "010004", HeaderError, "no pixels"),
        ("f65118" + "00" * 7 + "0400", HeaderError, "empty or not printable"),
        ("f65118" + "00" * 7 + "04020a41", HeaderError, "empty or not printable"),
        ("f65118" + "00" * 7 + "0402c3a9", HeaderError, "empty or not printable"),
        ("f65118" + "00" * 7 + "04ff41", HeaderError, "inside its name"),
    ],
)
def test_each_wrong_header_has_its_message(hexadecimal: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_header(bytes.fromhex(hexadecimal))


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(0, (1 << 32) - 1)), max_size=9))
def test_an_index_leads_to_its_streams(tiles: list[tuple[bytes, int]]) -> None:
    streams, checksums = [stream for stream, _ in tiles], [checksum for _, checksum in tiles]
    data = b"head" + write_index(streams, checksums) + b"".join(streams)
    entries = read_index(data, 4, len(tiles))
    assert [data[entry.start : entry.stop] for entry in entries] == streams
    assert [entry.checksum for entry in entries] == checksums
    with pytest.raises(HeaderError):
        read_index(data + b"x", 4, len(tiles))
    with pytest.raises(HeaderError):
        read_index(data[:-1], min(4, len(data) - 1), len(tiles) or 1)


def test_a_hostile_tile_count_costs_nothing() -> None:
    with pytest.raises(HeaderError, match="too short for the index of its 1000000000000 tiles"):
        read_index(b"x" * 100, 4, 10**12)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, (1 << 28) - 1])
def test_varints_are_as_short_as_they_can_be(value: int) -> None:
    assert len(write_varint(value)) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("value", [-1, 1 << 28])
def test_varints_outside_their_range_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        write_varint(value)
