"""The container's header and index, byte for byte: docs/code-format.md is the same in prose.

In: a `Header` or bytes. Out: bytes or a `Header` and where its payload starts. Nothing here knows a model: whether the
fields make sense for one is checked in `service.codec`. A header has exactly one spelling, so a flipped bit either
fails here, changes a field that is checked against the model, or fails the checksum, which covers the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from service.codec.container_errors import FormatVersionError, HeaderError, NotAContainerError

MEDIA_TYPE = "application/vnd.vqserve.codes"
MAGIC = b"\xf6Q"  # 0xf6 never occurs in UTF-8, so no text is taken for a container
FORMAT_VERSION = 1
MODEL_PREFIX_BYTES = 3
CHECKSUM_START = 6
FIXED_BYTES = 10  # magic, version and flags, model prefix, checksum
MOST_PICTURES = (1 << 14) - 1  # two bytes of varint: a header without extension never exceeds 12 bytes
VARINT_BYTES = 4

_SEVERAL, _EXTENDED = 4, 8
_SIZE, _INDEXED, _NAME, _COLOUR = 1, 2, 4, 8


class Mode(IntEnum):
    """How the codes became bytes."""

    RAW = 0  # ceil(log2 K) bits a code
    TABLE = 1  # range coder, the static frequencies of the model's training codes
    PRIOR = 2  # range coder, the integer prior with no label
    LABELLED = 3  # range coder, the integer prior with a label a picture, which the payload starts with


@dataclass(frozen=True)
class Header:
    """`model` is the first 3 bytes of the model's version. The optional fields share one extension byte.

    `colour` is only meaningful where one of the optional fields is present: it repeats that the model has 3 channels.
    """

    mode: Mode
    model: bytes
    checksum: int
    pictures: int = 1
    size: tuple[int, int] | None = None  # height, width in pixels, where it is not the model's native size
    indexed: bool = False
    name: str | None = None
    colour: bool = False

    @property
    def extended(self) -> bool:
        return self.size is not None or self.indexed or self.name is not None


def write_header(header: Header) -> bytes:
    flags = FORMAT_VERSION << 4 | header.mode
    flags |= _SEVERAL * (header.pictures > 1) | _EXTENDED * header.extended
    parts = [MAGIC, bytes([flags]), header.model, header.checksum.to_bytes(4, "big")]
    if header.extended:
        extension = _SIZE * (header.size is not None) | _INDEXED * header.indexed
        parts.append(bytes([extension | _NAME * (header.name is not None) | _COLOUR * header.colour]))
    if header.pictures > 1:
        parts.append(write_varint(header.pictures))
    parts += [write_varint(length) for length in header.size or ()]
    if header.name is not None:
        encoded = header.name.encode("ascii")
        parts += [bytes([len(encoded)]), encoded]
    return b"".join(parts)


def read_header(data: bytes) -> tuple[Header, int]:
    """The header and the position of the first byte after it.

    Raises:
        NotAContainerError: wrong magic number.
        FormatVersionError: another format version.
        HeaderError: too short, or a field that no encoder writes.
    """
    if data[:2] != MAGIC:
        raise NotAContainerError(
            f"not a container: the first bytes are {data[:2].hex() or 'missing'}, not {MAGIC.hex()}"
        )
    reader = _Reader(data, position=2)
    flags = reader.byte("flags")
    if flags >> 4 != FORMAT_VERSION:
        raise FormatVersionError(f"the container has format version {flags >> 4}, this decoder reads {FORMAT_VERSION}")
    model = reader.take(MODEL_PREFIX_BYTES, "model prefix")
    checksum = int.from_bytes(reader.take(4, "checksum"), "big")
    extension = _read_extension(reader) if flags & _EXTENDED else 0
    pictures = reader.varint("picture count") if flags & _SEVERAL else 1
    if flags & _SEVERAL and not 2 <= pictures <= MOST_PICTURES:
        raise HeaderError(f"the container says {pictures} pictures, outside 2..{MOST_PICTURES}")
    size = (reader.varint("height"), reader.varint("width")) if extension & _SIZE else None
    if size and min(size) == 0:
        raise HeaderError("the container says that the pictures have no pixels")
    name = _read_name(reader) if extension & _NAME else None
    indexed, colour = bool(extension & _INDEXED), bool(extension & _COLOUR)
    return Header(Mode(flags & 3), model, checksum, pictures, size, indexed, name, colour), reader.position


def _read_extension(reader: _Reader) -> int:
    extension = reader.byte("extension")
    if extension > 15 or not extension & (_SIZE | _INDEXED | _NAME):
        raise HeaderError(f"the extension byte 0x{extension:02x} is not one that an encoder writes")
    return extension


def _read_name(reader: _Reader) -> str:
    name = reader.take(reader.byte("name length"), "name")
    if not name or not name.isascii() or not name.decode("ascii").isprintable():
        raise HeaderError("the model name in the container is empty or not printable ASCII")
    return name.decode("ascii")


@dataclass(frozen=True)
class IndexEntry:
    """One tile of an indexed container: where its bytes are in the container, and the CRC-32 of its codes."""

    start: int
    stop: int
    checksum: int


def write_index(streams: list[bytes], checksums: list[int]) -> bytes:
    entries = zip(streams, checksums, strict=True)
    return b"".join(write_varint(len(stream)) + checksum.to_bytes(4, "big") for stream, checksum in entries)


def read_index(data: bytes, position: int, tiles: int) -> list[IndexEntry]:
    """The entries of all tiles. Their streams fill the rest of the container exactly.

    Raises:
        HeaderError: fewer bytes than `tiles` entries take, or streams that are shorter or longer than the container.
    """
    if (len(data) - position) < 5 * tiles:  # before the loop: a hostile count costs nothing
        raise HeaderError(f"the container is too short for the index of its {tiles} tiles: it is truncated or damaged")
    reader = _Reader(data, position)
    lengths_and_checksums = [
        (reader.varint("tile length"), int.from_bytes(reader.take(4, "tile checksum"), "big")) for _ in range(tiles)
    ]
    entries, start = [], reader.position
    for length, checksum in lengths_and_checksums:
        entries.append(IndexEntry(start, start + length, checksum))
        start += length
    if start != len(data):
        raise HeaderError(f"the index says {start} bytes, the container has {len(data)}: it is truncated or damaged")
    return entries


def write_varint(value: int) -> bytes:
    """Little-endian groups of 7 bits; the high bit says that another group follows."""
    if not 0 <= value < 1 << (7 * VARINT_BYTES):
        raise ValueError(f"{value} does not fit the {VARINT_BYTES} bytes of a varint")
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def take(self, count: int, field: str) -> bytes:
        taken = self._data[self.position : self.position + count]
        if len(taken) < count:
            raise HeaderError(f"the container ends inside its {field}: it is truncated")
        self.position += count
        return taken

    def byte(self, field: str) -> int:
        return self.take(1, field)[0]

    def varint(self, field: str) -> int:
        value = 0
        for group in range(VARINT_BYTES):
            byte = self.byte(field)
            value |= (byte & 127) << (7 * group)
            if byte < 128:
                if byte == 0 and group > 0:
                    raise HeaderError(f"the {field} has more bytes than it needs: the container is damaged")
                return value
        raise HeaderError(f"the {field} is longer than {VARINT_BYTES} bytes: the container is damaged")
