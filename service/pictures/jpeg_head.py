"""What comes before the pixels of a JPEG. In: a file. Out: one of the same pixels whose head is short, and its EXIF.

Pillow makes something of every segment as it opens a file: it joins the pieces of EXIF one by one, makes an object of
each fraction in it, and keeps a tuple for every three bytes of a frame. Of 32 MB it made a minute of work, or a
gigabyte. So it is shown only what decides about pixels.
"""

from __future__ import annotations

import re

SIGNATURE = b"\xff\xd8\xff"
# Tables and the frame of a JPEG are less than 5 kB; more go to libjpeg as well, which tells which ones there may be.
LARGEST_JPEG_HEAD = 1 << 14
MOST_SEGMENTS = 4096  # cameras write tens; of a profile or of XMP there is one for each 64 KB
_MARKER = re.compile(rb"\xff([^\xff\x00])", re.DOTALL)  # fill bytes before it, and what stands between segments, go
_NOT_CODED = re.compile(rb"\xff([^\xff\x00\xd0-\xd7])", re.DOTALL)  # a marker that coded pixels do not have in them
_SCAN, _END, _FIRST_FRAME = 0xDA, 0xD9, 0xC0
_ALONE = (0x01, *range(0xD0, 0xDA))  # these have no length: they are the marker and nothing else
_TEXT, _APPLICATION = 0xFE, range(0xE0, 0xF0)
_JFIF, _ADOBE, _EXIF = (0xE0, b"JFIF\0"), (0xEE, b"Adobe"), (0xE1, b"Exif\0\0")
_JFIF_BYTES, _NO_THUMBNAIL = 12, b"\0\0"


class TooManySegmentsError(ValueError):
    """More than any encoder writes."""


def short_head(data: bytes) -> tuple[bytes, bytes | None]:
    """The JPEG without texts, profiles, thumbnails and whatever else applications add; and its first segment of EXIF,
    which begins with `Exif`.

    Raises:
        TooManySegmentsError: more segments or tables than encoders write. ValueError: it ends before its first scan.
    """
    kept, exif, position, head_bytes = [data[:2]], None, 2, 0
    for _ in range(MOST_SEGMENTS + 1):  # and the scan
        found = _MARKER.search(data, position)
        if found is None:
            raise ValueError("no scan")
        marker, start = found[1][0], found.start()
        if marker == _SCAN:
            return b"".join((*kept, memoryview(data)[start:])), exif
        position = found.end() if marker in _ALONE else _end_of(data, found.end())
        content = data[found.end() + 2 : position]
        if exif is None and marker == _EXIF[0] and content.startswith(_EXIF[1]):
            exif = content
        if segment := _needed(marker, content, data[start:position]):
            kept.append(segment)
            head_bytes += len(segment)
            if head_bytes > LARGEST_JPEG_HEAD:
                raise TooManySegmentsError
    raise TooManySegmentsError


def has_more_scans(data: bytes, most: int) -> bool:
    """Whether that many scans, or very many segments, are followed by more before the picture's end: what stands behind
    that, as the film of a moving photograph does, is no part of it."""
    position = scans = 0
    for _ in range(MOST_SEGMENTS):
        found = _NOT_CODED.search(data, position)
        if found is None or found[1][0] == _END:
            return False
        position, marker = found.end(), found[1][0]
        scans += marker == _SCAN
        if scans > most:
            return True
        if marker not in _ALONE and marker >= _FIRST_FRAME:  # the others libjpeg may pass over, whatever follows
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return True


def _end_of(data: bytes, start: int) -> int:
    """Of the segment whose length, itself included, stands at `start`. As libjpeg, takes a shorter one for nothing."""
    end = start + max(2, int.from_bytes(data[start : start + 2], "big"))
    if end > len(data):
        raise ValueError("a segment without an end")
    return end


def _needed(marker: int, content: bytes, segment: bytes) -> bytes:
    """What is kept of a segment. JFIF and Adobe say what the colours are."""
    if marker == _JFIF[0] and content.startswith(_JFIF[1]) and len(content) > _JFIF_BYTES:
        plain = content[:_JFIF_BYTES] + _NO_THUMBNAIL
        return segment[:2] + (2 + len(plain)).to_bytes(2, "big") + plain
    is_adobe = marker == _ADOBE[0] and content.startswith(_ADOBE[1])
    return b"" if marker == _TEXT or (marker in _APPLICATION and not is_adobe) else segment
