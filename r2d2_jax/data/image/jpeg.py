"""JPEG files cut down to what their pixels need.

Before its first scan a JPEG is a row of segments (ITU-T T.81, B.1): marker, length, content. Those named APP0 to APP15
hold metadata, each program's its own. Pillow reads several of them and calls the image unreadable if one is broken.
"""

import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType

_START, _SCAN = b"\xff\xd8", 0xDA
_APP0, _APP1, _APP14, _APP15 = 0xE0, 0xE1, 0xEE, 0xEF
_COLOURS = {_APP0: 18, _APP14: 16}  # bytes below which libjpeg passes over what tells the colours: JFIF's and Adobe's


def with_less_metadata(encoded: bytes) -> Iterator[bytes]:
    """The same image with no more than tells its colours and how to turn it, then without the latter; JPEGs only."""
    if encoded.startswith(_START):
        yield without_segments(encoded, _COLOURS | {_APP1: 0})
        yield without_segments(encoded, _COLOURS)


def without_segments(encoded: bytes, kept: Mapping[int, int] = MappingProxyType({})) -> bytes:
    """A JPEG without APP0 to APP15, but for the markers in `kept` whose segments have at least so many bytes."""
    parts, end = [_START], len(_START)
    for marker, start, stop in _segments(encoded):
        needed = stop - start >= kept[marker] if marker in kept else not _APP0 <= marker <= _APP15
        if needed:
            parts.append(encoded[start:stop])
        end = stop
    return b"".join([*parts, encoded[end:]])


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan."""
    start = len(_START)
    while start + 4 <= len(encoded):
        fill, marker, length = struct.unpack_from(">BBH", encoded, start)
        if fill != 0xFF or marker == _SCAN:
            return
        if marker == 0xFF:  # any number of such bytes may stand before a marker
            start += 1
            continue
        yield marker, start, start + 2 + length
        start += 2 + length
