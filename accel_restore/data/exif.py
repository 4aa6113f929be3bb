"""EXIF data as bytes: values stay where they are, and changed directories are appended.

EXIF data is a TIFF structure, whose directories refer to values by their offsets. Maker notes and vendors' directories
hold such offsets too, in forms that only their makers know: a value that moves is lost. Pillow and piexif decode and
encode all values again, which loses Interop (Adobe RGB), values of unknown types, and offsets in maker notes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

Entry = tuple[int, int, bytes]  # type, number of values, and 4 bytes: the values, or their offset
MARK = 0x000B  # ProcessingSoftware
XMP, PHOTOSHOP, ICC = 700, 34377, 34675
ASCII, SHORT, LONG, RATIONAL = 2, 3, 4, 5

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FORMATS = {SHORT: "H", LONG: "I", RATIONAL: "I"}  # a RATIONAL takes two numbers
_EXIF, _GPS, _INTEROP, _MAKER_NOTE = 0x8769, 0x8825, 0xA005, 0x927C
_ORIENTATION = 0x0112
_SIZE, _INTEROP_SIZE = (0xA002, 0xA003), (0x1001, 0x1002)  # width and height of the picture
_DENSITY = (282, 283, 296)  # XResolution, YResolution, ResolutionUnit
_SUBJECT = (0x9214, 0xA214)  # places in the picture, in pixels of the original
# Tags that describe how the pixels of the original are stored.
_LAYOUT = {*range(254, 267), 273, *range(277, 280), 284, 317, *range(320, 326), 330, *range(338, 348), *range(512, 533)}
_THUMBNAIL = (513, 514)  # offset and length of a JPEG


@dataclass(frozen=True)
class Density:
    """Pixels per unit of length, or only their ratio."""

    x: Fraction
    y: Fraction
    unit: int  # 1: no unit, only the ratio of x and y; 2: inch; 3: centimetre

    def times(self, factor: Fraction | int) -> tuple[int, int]:
        """Return x and y, multiplied and rounded."""
        return round(self.x * factor), round(self.y * factor)


@dataclass
class Tiff:
    """A TIFF structure that is edited: its bytes, their order, and its first directory, which `finish` appends."""

    data: bytearray = field(default_factory=lambda: bytearray(b"II*\0\0\0\0\0"))
    first: dict[int, Entry] = field(default_factory=dict)
    second: int = 0  # offset of the next directory, the thumbnail's
    is_damaged: bool = False  # some values are beyond the end

    @classmethod
    def parse(cls, data: bytearray) -> "Tiff":
        """Return the structure of EXIF data or of a TIFF file. Raises: ValueError if it is damaged."""
        if data[:4] not in (b"II*\0", b"MM\0*"):
            raise ValueError("does not start as EXIF data")
        tiff = cls(data)
        tiff.first, tiff.second = tiff.directory(tiff.unpack("I", 4)[0])
        return tiff

    @property
    def order(self) -> Literal["<", ">"]:
        """The byte order, as `struct` writes it."""
        return "<" if self.data[:2] == b"II" else ">"

    def unpack(self, form: str, offset: int) -> tuple:
        """Return the numbers at an offset. Raises: ValueError beyond the end."""
        try:
            return struct.unpack_from(self.order + form, self.data, offset)
        except struct.error:
            raise ValueError("refers to data beyond its end") from None

    def directory(self, offset: int) -> tuple[dict[int, Entry], int]:
        """Return the entries of a directory, and the offset of the next one or 0; values beyond the end are left out.

        Raises: ValueError if the directory is beyond the end.
        """
        (count,) = self.unpack("H", offset)
        entries: dict[int, Entry] = {}
        for number in range(count):
            tag, *entry = self.unpack("HHI4s", offset + 2 + 12 * number)
            try:
                self.value(tuple(entry))
                entries.setdefault(tag, tuple(entry))
            except ValueError:
                self.is_damaged = True
        try:
            return entries, self.unpack("I", offset + 2 + 12 * count)[0]
        except ValueError:  # some writers omit it at the end of the data
            return entries, 0

    def value(self, entry: Entry) -> bytes:
        """Return the bytes of an entry's values."""
        kind, count, raw = entry
        size = _SIZES.get(kind, 1) * count
        if size <= 4:
            return raw[:size]
        offset = self.offset(entry)
        if offset + size > len(self.data):
            raise ValueError("refers to data beyond its end")
        return bytes(self.data[offset : offset + size])

    def offset(self, entry: Entry) -> int:
        """Return where the values of an entry are, or the directory that it names."""
        return struct.unpack(self.order + "I", entry[2])[0]

    def number(self, entry: Entry) -> int:
        """Return an entry's only value, a SHORT or a LONG. Raises: ValueError if it is none."""
        if entry[:2] not in ((SHORT, 1), (LONG, 1)):
            raise ValueError("has an unusual type")
        return struct.unpack(self.order + _FORMATS[entry[0]], self.value(entry))[0]

    def rational(self, entry: Entry) -> Fraction:
        """Return an entry's only value, a fraction. Raises: ValueError if it is none."""
        value = self.value(entry)
        if entry[0] != RATIONAL or len(value) != 8 or not any(value[4:]):
            raise ValueError("has an invalid resolution")
        return Fraction(*struct.unpack(self.order + "II", value))

    def density(self) -> Density | None:
        """Return the density of the first directory; None if it has none that makes sense."""
        try:
            x, y = (self.rational(self.first[tag]) for tag in _DENSITY[:2])
            unit = self.number(self.first[_DENSITY[2]]) if _DENSITY[2] in self.first else 2
        except (KeyError, ValueError):
            return None
        return Density(x, y, unit) if x > 0 and y > 0 and unit in (1, 2, 3) else None

    def store(self, kind: int, values: bytes | Sequence[int]) -> Entry:
        """Return a new entry; values of more than 4 bytes are appended."""
        if not isinstance(values, bytes):
            values = struct.pack(f"{self.order}{len(values)}{_FORMATS[kind]}", *values)
        count = len(values) // _SIZES[kind]
        if len(values) <= 4:
            return kind, count, values.ljust(4, b"\0")
        return kind, count, struct.pack(self.order + "I", self.append(values))

    def append(self, content: bytes) -> int:
        """Append bytes at an even offset, and return it."""
        self.data += b"\0" * (len(self.data) % 2)
        offset = len(self.data)
        self.data += content
        return offset

    def append_directory(self, entries: dict[int, Entry]) -> int:
        """Append a directory and return its offset."""
        packed = [struct.pack(self.order + "HHI4s", tag, *entries[tag]) for tag in sorted(entries)]
        return self.append(struct.pack(self.order + "H", len(entries)) + b"".join(packed) + bytes(4))

    def finish(self) -> bytes:
        """Append the first directory, and return all bytes."""
        struct.pack_into(self.order + "I", self.data, 4, self.append_directory(self.first))
        return bytes(self.data)


def renewed(
    exif: bytes | None,
    size: tuple[int, int],
    density: Density | None,
    mark: str | None = None,
    adds_density: bool = False,
) -> Tiff:
    """Return EXIF data for new upright pixels of `size` (width, height), less what described the original's pixels.

    `density` replaces one that is there; `adds_density`: it is added where there is none. A mark that is there goes.

    Raises: ValueError if it is damaged.
    """
    tiff = Tiff.parse(bytearray(exif)) if exif else Tiff()
    _blank_thumbnail(tiff)
    tiff.first = {tag: entry for tag, entry in tiff.first.items() if tag not in {*_LAYOUT, XMP, PHOTOSHOP, ICC}}
    if _ORIENTATION in tiff.first:
        tiff.first[_ORIENTATION] = tiff.store(SHORT, [1])
    _change_directory(tiff, tiff.first, _EXIF, size, _SIZE)
    if tiff.density() is None:
        tiff.first = {tag: entry for tag, entry in tiff.first.items() if tag not in _DENSITY}
    if density is not None and (adds_density or _DENSITY[0] in tiff.first):
        for tag, value in zip(_DENSITY[:2], (density.x, density.y), strict=True):
            tiff.first[tag] = tiff.store(RATIONAL, as_rational(value))
        tiff.first[_DENSITY[2]] = tiff.store(SHORT, [density.unit])
    tiff.first.pop(MARK, None)
    if mark is not None:
        tiff.first[MARK] = tiff.store(ASCII, mark.encode() + b"\0")
    return tiff


def as_rational(value: Fraction) -> tuple[int, int]:
    """Return numerator and denominator, as near as 32 bits allow."""
    value = min(value.limit_denominator(10**6), Fraction(2**32 - 1))
    if value.numerator >= 2**32:
        value = Fraction(round(value))
    return value.numerator, value.denominator


def _change_directory(
    tiff: Tiff, parent: dict[int, Entry], pointer: int, size: tuple[int, int], tags: tuple[int, int]
) -> None:
    """Set the picture's size in the directory that `parent` names, and in Interop below it."""
    if pointer not in parent:
        return
    try:
        inner, _ = tiff.directory(tiff.offset(parent[pointer]))
    except ValueError:
        tiff.is_damaged = True
        del parent[pointer]
        return
    inner = {tag: entry for tag, entry in inner.items() if tag not in _SUBJECT}
    inner |= {tag: tiff.store(LONG, [side]) for tag, side in zip(tags, size, strict=True) if tag in inner}
    if pointer == _EXIF:
        _change_directory(tiff, inner, _INTEROP, size, _INTEROP_SIZE)
    parent[pointer] = tiff.store(LONG, [tiff.append_directory(inner)])


def _blank_thumbnail(tiff: Tiff) -> None:
    """Overwrite the thumbnail, which shows the original, with zeros."""
    try:
        entries, _ = tiff.directory(tiff.second) if tiff.second else ({}, 0)
        start, length = (tiff.number(entries[tag]) for tag in _THUMBNAIL)
    except (ValueError, KeyError):
        return
    end = min(start + length, len(tiff.data))
    if tiff.data[start : start + 2] == b"\xff\xd8":
        tiff.data[start:end] = bytes(end - start)
        if end == len(tiff.data):
            del tiff.data[start:]


def exif_of_tiff(file: bytes) -> tuple[bytes | None, list[str]]:
    """Return the tags of a TIFF file that do not describe its layout, as EXIF data, and what is left out, in words.

    Raises: ValueError if the file's directories are damaged.
    """
    if file[:4] in (b"II+\0", b"MM\0+"):
        return None, ["EXIF of a BigTIFF"]
    source = Tiff.parse(file)  # type: ignore[arg-type]  # it is not edited
    made = Tiff(bytearray(file[:4] + bytes(4)))
    left_out: list[str] = []
    hidden = {*_LAYOUT, XMP, PHOTOSHOP, ICC}
    first = {tag: entry for tag, entry in source.first.items() if tag not in hidden}
    made.first = _copied(source, made, first, {_EXIF: (_INTEROP,), _GPS: ()}, left_out)
    if PHOTOSHOP in source.first:
        left_out.append("Photoshop's data")
    if source.is_damaged:
        left_out.append("damaged EXIF values")
    return made.finish(), left_out


def _copied(
    source: Tiff, made: Tiff, entries: dict[int, Entry], pointers: dict[int, tuple[int, ...]], left_out: list[str]
) -> dict[int, Entry]:
    """Return entries with their values and directories copied from one structure to another."""
    copies = {}
    for tag, entry in entries.items():
        if tag == _MAKER_NOTE:
            left_out.append("EXIF's maker note (it cannot be moved)")
        elif tag in pointers:
            try:
                inner, _ = source.directory(source.offset(entry))
            except ValueError:
                source.is_damaged = True
                continue
            below = _copied(source, made, inner, dict.fromkeys(pointers[tag], ()), left_out)
            copies[tag] = made.store(LONG, [made.append_directory(below)])
        elif tag not in (_EXIF, _GPS, _INTEROP):
            value = source.value(entry)
            is_long = len(value) > 4
            copies[tag] = (*entry[:2], struct.pack(made.order + "I", made.append(value)) if is_long else entry[2])
    return copies
