"""Codes (B,h,w) to range-coded or packed streams and back, in the order that the format fixes.

In: codes, their tiles and a mode. Out: one stream for all codes, or one stream a tile. Streams carry no length and no
checksum: the container around them does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from service.codec.codec_model import CodecModel
from service.codec.container import Mode
from service.codec.prior_coding import Codes, IntegerPrior, decode_group, intervals
from service.codec.range_coder import RangeDecoder, RangeEncoder
from service.codec.static_coding import pack, unpack
from service.codec.tiles import Tile, groups_of, tiles_of


def encode_stream(model: CodecModel, mode: Mode, codes: Codes, labels: Codes | None) -> bytes:
    """One stream for all pictures. Raw and table run picture by picture; the prior runs group by group of tiles."""
    if mode == Mode.RAW:
        return pack(codes.reshape(-1), model.codebook_size)
    encoder = RangeEncoder()
    if mode == Mode.TABLE:
        model.table.encode(codes.reshape(-1), encoder)
        return encoder.finish()
    assert model.prior is not None
    if labels is not None:
        encoder.encode((label, 1, model.prior.label_count + 1) for label in labels.tolist())
    tiles = tiles_of(len(codes), codes.shape[1:], model.native_grid)
    for _, found in group_intervals(model.prior, codes, tiles, labels):
        for row in found.transpose(1, 2, 0, 3):  # (w, B, 3) a row
            encoder.encode(row.reshape(-1, 3).tolist())
    return encoder.finish()


def encode_tiles(model: CodecModel, mode: Mode, codes: Codes, tiles: list[Tile]) -> list[bytes]:
    """One stream a tile. The prior still works on whole groups."""
    if mode < Mode.PRIOR:
        return [encode_stream(model, mode, codes[tile.where], None) for tile in tiles]
    assert model.prior is not None
    streams = {}
    for group, found in group_intervals(model.prior, codes, tiles, None):
        for tile, of_tile in zip(group, found, strict=True):
            encoder = RangeEncoder()
            encoder.encode(of_tile.reshape(-1, 3).tolist())
            streams[tile] = encoder.finish()
    return [streams[tile] for tile in tiles]


def group_intervals(
    prior: IntegerPrior, codes: Codes, tiles: list[Tile], labels: Codes | None
) -> Iterator[tuple[list[Tile], Codes]]:
    """Group by group: its tiles, and (B,h,w,3) cumulative, frequency, total of every code."""
    for group in groups_of(tiles):
        grids = np.stack([codes[tile.where] for tile in group])
        yield group, intervals(prior, grids, _labels_of(prior, group, labels))


def decode_stream(model: CodecModel, mode: Mode, data: bytes, tiles: list[Tile], codes: Codes) -> Codes | None:
    """Fill `codes` from one stream. Out: the labels (B,) if the mode has them."""
    if mode == Mode.RAW:
        codes[...] = unpack(data, codes.size, model.codebook_size).reshape(codes.shape)
        return None
    decoder = RangeDecoder(data)
    labels = None
    if mode == Mode.TABLE:
        codes[...] = model.table.decode(codes.size, decoder).reshape(codes.shape)
    else:
        assert model.prior is not None
        if mode == Mode.LABELLED:
            labels = _decode_labels(model.prior.label_count, len(codes), decoder)
        for group in groups_of(tiles):
            _decode_prior(model.prior, [decoder] * len(group), group, labels, codes)
    decoder.finish()
    return labels


def decode_tiles(model: CodecModel, mode: Mode, streams: list[bytes], tiles: list[Tile], codes: Codes) -> None:
    """Fill `codes` at `tiles`, each from its own stream."""
    of_tile = dict(zip(tiles, streams, strict=True))
    if mode < Mode.PRIOR:
        for tile, stream in of_tile.items():
            decode_stream(model, mode, stream, [], codes[tile.where])
        return
    assert model.prior is not None
    for group in groups_of(tiles):
        decoders = [RangeDecoder(of_tile[tile]) for tile in group]
        _decode_prior(model.prior, decoders, group, None, codes)
        for decoder in decoders:
            decoder.finish()


def _decode_labels(label_count: int, count: int, decoder: RangeDecoder) -> Codes:
    uniform = np.arange(label_count + 2, dtype=np.int64).data
    return np.asarray([decoder.decode(uniform, 0, label_count + 1) for _ in range(count)], np.int64)


def _decode_prior(
    prior: IntegerPrior, decoders: list[RangeDecoder], group: list[Tile], labels: Codes | None, codes: Codes
) -> None:
    grids = decode_group(prior, decoders, group[0].height, group[0].width, _labels_of(prior, group, labels))
    for tile, grid in zip(group, grids, strict=True):
        codes[tile.where] = grid


def _labels_of(prior: IntegerPrior, group: list[Tile], labels: Codes | None) -> Codes:
    if labels is None:
        return np.full(len(group), prior.no_label, np.int64)
    return labels[[tile.picture for tile in group]]
