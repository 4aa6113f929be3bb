"""JPEG files: decoded by libjpeg-turbo, whose warnings of damaged data are errors here. Pillow hides them.

libjpeg fills missing data with gray or smears, and warns. A progressive file that is cut between two scans is valid for
libjpeg, so this module counts what the scans contain. Damage that leaves the number of blocks as it is (a flipped bit
of a coefficient) is invisible to every decoder, as JPEG has no checksums.
Source: ITU-T T.81.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from accel_restore.data.image_formats import damaged

_SOI, _EOI, _SOS, _DRI, _DHT, _DQT, _DAC = 0xD8, 0xD9, 0xDA, 0xDD, 0xC4, 0xDB, 0xCC
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # that libjpeg decodes: sequential and progressive, Huffman and arithmetic
_PROGRESSIVE = {0xC2, 0xCA}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_ALL_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JFIF, _ADOBE, _COMMENT = 0xE0, 0xEE, 0xFE
_KEPT = {*_FRAMES, _SOS, _DRI, _DHT, _DQT, _DAC, _JFIF, _ADOBE}
_APPLICATION = {*range(0xE0, 0xF0), _COMMENT}
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # except restart markers
_END = bytes([0xFF, _EOI])
_PLAIN_JFIF = bytes.fromhex("4a46494600 0101 00 0001 0001 0000")  # libjpeg warns of unknown versions
_AC = 0x10  # class of Huffman tables
_HOLE = 64  # bytes: more than two blocks of the smallest codes
_WHOLE_SPECTRUM = bytes([0, 63, 0])  # all that a sequential scan can contain; libjpeg warns of other values


def decode_jpeg(data: bytes, gray: bool) -> np.ndarray:
    """Return the pixels (H, W, 1 or 3), bit-identical to Pillow's.

    Accepted, because the pixels are whole: a missing end marker, zeros in front of it, and anything behind it.

    Raises: ImageError or ValueError for damaged files.
    """
    import simplejpeg

    image = _image_of(data)
    mode = "GRAY" if gray else "RGB"
    try:
        return simplejpeg.decode_jpeg(image, mode)
    except ValueError as error:
        padded = image.removesuffix(_END)
        unpadded = padded.rstrip(b"\0")
        if len(unpadded) == len(padded) or "extraneous" not in str(error):
            raise
        unpadded += b"\0" if unpadded.endswith(b"\xff") else b""  # 0xFF 0x00 is a data byte
        return simplejpeg.decode_jpeg(unpadded + _END, mode)


def unsupported_jpeg(data: bytes) -> str | None:
    """Return why a JPEG is refused that is no damaged file, but of a kind that is not supported; None for others."""
    for marker, content, _ in _segments(data):
        if marker in _ALL_FRAMES and len(content) > 5:
            bits, channels = content[0], content[5]
            kind = "lossless " if marker in _LOSSLESS else "" if marker in _FRAMES else "hierarchical "
            if kind or bits != 8 or channels not in (1, 3):
                channels_in_words = f"{channels} channel{'s' * (channels > 1)}"
                return (
                    f"is a {kind}JPEG of {channels_in_words} with {bits} bits; convert it to 8-bit gray or RGB, or PNG"
                )
            return None
    return None


@dataclass
class _Scans:
    """What the scans of an image contain so far."""

    progressive: bool = False
    missing: dict[int, list[int]] = field(default_factory=dict)  # component → bits that each coefficient still lacks
    zero_symbols: dict[int, int] = field(default_factory=dict)  # Huffman table → the symbol whose code is zeros

    def start(self, marker: int, frame: bytes) -> None:
        self.progressive = marker in _PROGRESSIVE
        self.missing = {frame[place]: [99] * 64 for place in range(6, len(frame) - 2, 3)}

    def add_tables(self, tables: bytes) -> None:
        while len(tables) > 17:
            self.zero_symbols[tables[0]] = tables[17]
            tables = tables[17 + sum(tables[1:17]) :]

    def add(self, scan: bytes, compressed: bytes) -> None:
        """Count the coefficients of a scan.

        Raises: ImageError if it has a hole of zeros: bits that would be blocks whose coefficients are all -1.
        """
        count = scan[0]
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count] if self.progressive else _WHOLE_SPECTRUM
        symbols = [self.zero_symbols.get(_AC | tables & 15, 0) for tables in scan[2 : 2 + 2 * count : 2]]
        is_block = last - first > 3 and not bits >> 4
        if is_block and any(symbol & 15 for symbol in symbols) and bytes(_HOLE) in compressed.rstrip(b"\0"):
            raise damaged("its data has a hole of zeros")
        for component in scan[1 : 1 + 2 * count : 2]:
            if component in self.missing:
                self.missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)

    @property
    def complete(self) -> bool:
        return bool(self.missing) and not any(any(bits) for bits in self.missing.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the marker, the content and, for SOS, the compressed data of each segment of a file's first image.

    Raises: ImageError if there is something unknown behind the first scan.
    """
    position, in_scans = 2, False
    while (found := _MARKER.search(data, position)) and data[found.start() + 1] != _EOI:
        start, marker = found.start(), data[found.start() + 1]
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if end > len(data) or end < start + 4:
            raise damaged("it ends inside a segment" if end > len(data) else "a segment has no length")
        if in_scans and (start != position or marker not in _KEPT | _APPLICATION):
            raise damaged(f"there is unknown data between its scans (marker 0x{marker:02x})")
        position = end
        if marker == _SOS:
            in_scans = True
            following = _MARKER.search(data, end)
            position = following.start() if following else len(data)
        yield marker, data[start + 4 : end], data[end:position]


def holds_more(data: bytes) -> bool:
    """Return whether anything but zeros follows the end marker of a file's first image, such as a phone's video."""
    position = 2
    while (found := _MARKER.search(data, position)) and data[found.start() + 1] != _EOI:
        length = int.from_bytes(data[found.start() + 2 : found.start() + 4], "big")
        position = found.start() + 2 + length
    return found is not None and bool(data[found.start() + 2 :].strip(b"\0"))


def _image_of(data: bytes) -> bytes:
    """The first image of a file: the segments that describe pixels, the scans, and an end marker.

    Raises: ImageError if scans are missing.
    """
    parts, scans = [bytes([0xFF, _SOI])], _Scans()
    for marker, content, compressed in _segments(data):
        if marker in _FRAMES:
            scans.start(marker, content)
        elif marker == _SOS:
            scans.add(content, compressed)
            content = content if scans.progressive else content[:-3] + _WHOLE_SPECTRUM
        elif marker == _DHT:
            scans.add_tables(content)
        elif marker == _JFIF and content.startswith(_PLAIN_JFIF[:5]):
            content = _PLAIN_JFIF
        if marker in _KEPT:
            parts += [bytes([0xFF, marker]), (len(content) + 2).to_bytes(2, "big"), content, compressed]
    if not scans.complete:
        raise damaged("it is cut: scans are missing")
    return b"".join(parts) + _END
