"""PNG files cut down to what their pixels need, and their checksums.

A PNG is a row of chunks (W3C, PNG third edition, 5): length, name, content, CRC. A name that begins with a capital is
critical: without that chunk there is no image. The others hold profiles, texts, thumbnails, animations. Pillow has
limits on what they may hold, and calls a whole image broken for an error in one of them; other decoders pass it over.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = slice(25, 26)  # its place in the file
# Bytes of transparency that make sense, by colour type: one grey, one colour, at most 256 entries of a palette.
_TRANSPARENCY = {b"\0": range(2, 2**31), b"\2": range(6, 2**31), b"\3": range(257)}
# Where Pillow looks for the EXIF tag that turns the image.
_EXIF = b"eXIf"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEPT_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif")
_MAX_TEXT = 2**20  # bytes; Pillow's limit on a text that is decompressed


class Chunk(NamedTuple):
    """A whole chunk of a PNG: its name, and where it lies in the file."""

    name: bytes
    start: int
    stop: int

    @property
    def critical(self) -> bool:
        """Whether there is no image without it."""
        return self.name[:1].isupper()

    def content(self, encoded: bytes) -> bytes:
        """What it holds."""
        return encoded[self.start + 8 : self.stop - 4]

    def intact(self, encoded: bytes) -> bool:
        """Whether its checksum is right."""
        (crc,) = struct.unpack_from(">I", encoded, self.stop - 4)
        return zlib.crc32(memoryview(encoded)[self.start + 4 : self.stop - 4]) == crc


def chunks(encoded: bytes) -> Iterator[Chunk]:
    """The whole chunks of a file, up to its end mark; none if it is no PNG."""
    start = len(_SIGNATURE) if encoded.startswith(_SIGNATURE) else len(encoded)
    while start + 12 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, start)
        stop = start + 12 + length
        if stop > len(encoded) or not name.isalpha():
            return
        yield Chunk(name, start, stop)
        if name == b"IEND":
            return
        start = stop


def without_metadata(encoded: bytes) -> bytes:
    """The same image without profiles, texts and further frames; bytes that are no PNG come back as they are.

    Transparency and what may turn the image stay if their checksum is right. So does whatever follows the last whole
    chunk: the decoder shall find that the file is cut short.
    """
    kept, stop = [(0, len(_SIGNATURE))], len(_SIGNATURE)
    for chunk in chunks(encoded):
        if chunk.critical or (_is_needed(chunk, encoded) and chunk.intact(encoded)):
            kept.append((chunk.start, chunk.stop))
        stop = chunk.stop
    if sum(end - start for start, end in kept) == stop:
        return encoded
    view = memoryview(encoded)
    return b"".join([*(view[start:end] for start, end in kept), view[stop:]])


def _is_needed(chunk: Chunk, encoded: bytes) -> bool:
    """Whether Pillow needs the chunk to show the image as it is meant, and can read it."""
    if chunk.name == b"tRNS":
        return chunk.stop - chunk.start - 12 in _TRANSPARENCY.get(encoded[_COLOUR_TYPE], ())
    return chunk.name == _EXIF or (chunk.name in _TEXTS and _is_short_text(chunk.name, chunk.content(encoded)))


def _is_short_text(name: bytes, content: bytes) -> bool:
    keyword, _, text = content.partition(b"\0")
    if keyword not in _KEPT_TEXTS or len(content) > _MAX_TEXT:
        return False
    if name == b"zTXt":
        return text[:1] == b"\0" and _is_short(text[1:])
    if name == b"iTXt" and text[:1] not in (b"", b"\0"):  # the flag of a compressed text, then method and languages
        return _is_short(text[2:].split(b"\0", 2)[-1])
    return True


def _is_short(compressed: bytes) -> bool:
    decompression = zlib.decompressobj()
    try:
        decompression.decompress(compressed, _MAX_TEXT)
    except zlib.error:
        return False
    return not decompression.unconsumed_tail
