"""Codes (B,h,w) to the bytes of a container and back: what other programs store and send.

In: a `CodecModel` (what the bundle says, with the prior's graphs if it has one) and codes, or bytes. Out: the shortest
container among the allowed modes, or the codes, checked by CRC-32. Every reason why bytes cannot be decoded is a
`ContainerError`. docs/code-format.md is the format.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from service.codec.code_streams import decode_stream, decode_tiles, encode_stream, encode_tiles
from service.codec.codec_model import CodecModel
from service.codec.container import (
    CHECKSUM_START,
    FIXED_BYTES,
    MOST_PICTURES,
    Header,
    Mode,
    read_header,
    read_index,
    write_header,
    write_index,
)
from service.codec.container_errors import ChecksumError, HeaderError, OverLimitError, TileError, WrongModelError
from service.codec.prior_coding import Codes
from service.codec.tiles import Tile, bounds, grown, overlap, tiles_of


@dataclass(frozen=True)
class Limits:
    """What a container may ask a decoder for. Checked against the header, before anything is allocated."""

    max_pictures: int = 4096
    max_codes: int = 1 << 20  # codes of all pictures together: 67 million pixels where a code covers 8 x 8
    max_pixels: int | None = None  # of one picture; None: as many as `max_codes` allows


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Decoded:
    """codes (B,h,w) int64 in [0, K); the pictures' height and width in pixels; labels (B,) where they were used."""

    codes: Codes
    size: tuple[int, int]
    labels: Codes | None
    mode: Mode


def encode(
    model: CodecModel,
    codes: Codes,
    *,
    size: tuple[int, int] | None = None,
    labels: Codes | None = None,
    modes: Collection[Mode] = tuple(Mode),
    indexed: bool = False,
    named: bool = False,
) -> bytes:
    """The shortest container that `modes` allow, for pictures of one size.

    `size` is (height, width) in pixels, by default the model's native size. `labels` (B,) may help a conditional
    prior; `label_count` means none. `indexed` lets a reader decode one tile alone, for about 6 bytes a tile. `named`
    adds the model's name for people.

    Raises:
        ValueError: codes, size or labels that this model does not have, or more than `MOST_PICTURES` pictures.
    """
    size = size or model.native_size
    _check_arguments(model, codes, size, labels)
    usable = [mode for mode in sorted(modes) if _usable(model, mode, labels is not None, indexed)]
    if not usable:
        raise ValueError(f"none of the modes {[mode.name.lower() for mode in modes]} is possible here: allow raw")
    header = Header(
        mode=usable[0],
        model=model.prefix,
        checksum=0,
        pictures=len(codes),
        size=None if size == model.native_size else size,
        indexed=indexed,
        name=model.name if named else None,
    )
    header = replace(header, colour=header.extended and model.channels == 3)
    seal = _seal_tiles if indexed else _seal_stream
    return min((seal(model, replace(header, mode=mode), codes, labels) for mode in usable), key=len)


def decode(model: CodecModel, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """All codes of a container.

    Raises:
        ContainerError: the bytes are not a container of this model, are damaged, or ask for more than `limits`.
    """
    header, start = read_header(data)
    size, grid = _check_header(model, header, limits)
    head, codes = data[:start], np.empty((header.pictures, *grid), np.int64)
    labels = None
    tiles = tiles_of(header.pictures, grid, model.native_grid)
    if header.indexed:
        entries = read_index(data, start, len(tiles))
        decode_tiles(model, header.mode, [data[entry.start : entry.stop] for entry in entries], tiles, codes)
        for tile, entry in zip(tiles, entries, strict=True):
            _check(entry.checksum, model, head, codes[tile.where])
    else:
        labels = decode_stream(model, header.mode, data[start:], tiles, codes)
    _check(header.checksum, model, head, codes, labels)
    return Decoded(codes, size, labels, header.mode)


def model_prefix(data: bytes) -> bytes:
    """The first bytes of the version of the model that a container was made with. Raises ContainerError as `decode`."""
    return read_header(data)[0].model


@dataclass(frozen=True)
class Announced:
    """What a container says that it has: so many pictures of `size` (H,W) in pixels, with `grid` (h,w) codes each."""

    pictures: int
    size: tuple[int, int]
    grid: tuple[int, int]


def announced(model: CodecModel, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Announced:
    """Before it is decoded: what that will cost.

    Raises:
        ContainerError: as `decode`, as far as its header tells.
    """
    header, _ = read_header(data)
    return Announced(header.pictures, *_check_header(model, header, limits))


@dataclass(frozen=True)
class DecodedTile:
    """codes (1,h,w): those of `tile` and of up to `margin` codes around it, which start at `top` and `left`."""

    tile: Tile
    codes: Codes
    top: int
    left: int
    size: tuple[int, int]  # of the whole picture, in pixels


def decode_tile(
    model: CodecModel, data: bytes, index: int, *, margin: int = 0, limits: Limits = DEFAULT_LIMITS
) -> DecodedTile:
    """Tile `index` of an indexed container, with what a decoder network needs around it. Reads no tile further away.

    Raises:
        TileError: the container has no index or no such tile. ContainerError: as `decode`.
    """
    header, start = read_header(data)
    size, grid = _check_header(model, header, limits)
    if not header.indexed:
        raise TileError("the container has no index of tiles: encode it with one, or decode it whole")
    tiles = tiles_of(header.pictures, grid, model.native_grid)
    if not 0 <= index < len(tiles):
        raise TileError(f"there is no tile {index}: the container has {len(tiles)}, counted from 0")
    entries = read_index(data, start, len(tiles))
    seen = grown(tiles[index], margin, grid)
    near = {tile: entry for tile, entry in zip(tiles, entries, strict=True) if overlap(tile, seen)}
    whole = bounds(list(near))  # of the tiles that reach into what is seen
    moved = [replace(tile, picture=0, top=tile.top - whole.top, left=tile.left - whole.left) for tile in near]
    codes = np.empty((1, whole.height, whole.width), np.int64)
    decode_tiles(model, header.mode, [data[entry.start : entry.stop] for entry in near.values()], moved, codes)
    for tile, entry in zip(moved, near.values(), strict=True):
        _check(entry.checksum, model, data[:start], codes[tile.where])
    _, rows, columns = replace(seen, top=seen.top - whole.top, left=seen.left - whole.left).where
    return DecodedTile(tiles[index], codes[:, rows, columns], seen.top, seen.left, size)


def _check_arguments(model: CodecModel, codes: Codes, size: tuple[int, int], labels: Codes | None) -> None:
    if not model.any_size and size != model.native_size:
        raise ValueError(f"model {model.name} codes pictures of {model.native_size} (height, width) only, not {size}")
    if codes.ndim != 3 or len(codes) == 0 or codes.shape[1:] != model.grid_of(size):
        raise ValueError(f"codes have shape {codes.shape}, pictures of {size} take (B, *{model.grid_of(size)})")
    if len(codes) > MOST_PICTURES:
        raise ValueError(f"one container holds {MOST_PICTURES} pictures at most, not {len(codes)}")
    if codes.min() < 0 or codes.max() >= model.codebook_size:
        raise ValueError(f"codes must lie in 0..{model.codebook_size - 1}, they span {codes.min()}..{codes.max()}")
    if labels is not None:
        if model.prior is None or model.prior.label_count == 0:
            raise ValueError(f"model {model.name} has no conditional prior: leave labels out")
        if labels.shape != (len(codes),) or labels.min() < 0 or labels.max() > model.prior.label_count:
            raise ValueError(f"labels must be {len(codes)} numbers in 0..{model.prior.label_count}")


def _usable(model: CodecModel, mode: Mode, labelled: bool, indexed: bool) -> bool:
    if mode == Mode.PRIOR:
        return model.prior is not None
    if mode == Mode.LABELLED:
        return model.prior is not None and labelled and not indexed
    return True


def _check_header(model: CodecModel, header: Header, limits: Limits) -> tuple[tuple[int, int], tuple[int, int]]:
    """The pictures' size in pixels and in codes, if this model can decode such a container within the limits."""
    if header.model != model.prefix:  # the name is for people
        wanted = f"model version {header.model.hex()}..." + (f" ({header.name})" if header.name else "")
        advice = "decode it with the bundle of that version"
        raise WrongModelError(f"the container needs {wanted}, this is {model.name} {model.version[:12]}: {advice}")
    if header.colour != (header.extended and model.channels == 3):
        raise HeaderError(f"the container disagrees about colour with model {model.name}: it is damaged")
    size = header.size or model.native_size
    if header.size and (header.size == model.native_size or not model.any_size):
        raise HeaderError(f"the container gives a size of {size} that model {model.name} never writes: it is damaged")
    if header.mode >= Mode.PRIOR and not _usable(model, header.mode, _has_labels(model), header.indexed):
        raise HeaderError(f"model {model.name} never writes the mode {header.mode.name.lower()} here: it is damaged")
    grid = model.grid_of(size)
    count = header.pictures * grid[0] * grid[1]
    if header.pictures > limits.max_pictures:
        text = f"the container has {header.pictures} pictures, the limit is {limits.max_pictures}"
        raise OverLimitError(text, of_pictures=True)
    if limits.max_pixels is not None and size[0] * size[1] > limits.max_pixels:
        text = f"a picture of {size[1]}x{size[0]} is more than {limits.max_pixels} pixels"
        raise OverLimitError(text, of_pictures=False)
    if count > limits.max_codes:
        raise OverLimitError(f"the container has {count} codes, the limit is {limits.max_codes}", of_pictures=False)
    return size, grid


def _has_labels(model: CodecModel) -> bool:
    return model.prior is not None and model.prior.label_count > 0


def _checksum(model: CodecModel, head: bytes, codes: Codes, labels: Codes | None = None) -> int:
    """CRC-32 of the header without its checksum, the fingerprint, the labels if used, and the codes."""
    crc = zlib.crc32(head[:CHECKSUM_START] + head[FIXED_BYTES:] + model.fingerprint)
    if labels is not None:
        crc = zlib.crc32(labels.astype("<u4").tobytes(), crc)
    return zlib.crc32(codes.astype("<u4").tobytes(), crc)


def _check(expected: int, model: CodecModel, head: bytes, codes: Codes, labels: Codes | None = None) -> None:
    if _checksum(model, head, codes, labels) != expected:
        raise ChecksumError("the checksum does not match the decoded codes: the container is damaged")


def _seal_stream(model: CodecModel, header: Header, codes: Codes, labels: Codes | None) -> bytes:
    used = labels if header.mode == Mode.LABELLED else None
    checksum = _checksum(model, write_header(header), codes, used)
    return write_header(replace(header, checksum=checksum)) + encode_stream(model, header.mode, codes, used)


def _seal_tiles(model: CodecModel, header: Header, codes: Codes, labels: Codes | None) -> bytes:
    head = write_header(header)
    tiles = tiles_of(len(codes), codes.shape[1:], model.native_grid)
    streams = encode_tiles(model, header.mode, codes, tiles)
    checksums = [_checksum(model, head, codes[tile.where]) for tile in tiles]
    checksum = _checksum(model, head, codes)
    return write_header(replace(header, checksum=checksum)) + write_index(streams, checksums) + b"".join(streams)
