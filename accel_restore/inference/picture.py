"""A restored PIL image, whose `save` keeps the metadata that `accel-restore restore` keeps."""

import os
import struct
from os import PathLike
from pathlib import Path
from typing import IO, Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from accel_restore.data.exif import renewed
from accel_restore.data.metadata import XMP_KEYWORD, read_picture, renewed_xmp

Place = str | bytes | PathLike[str] | PathLike[bytes]
_KEPT = ("icc_profile", "exif", "xmp", "dpi")  # keys of `info` and options of `save`
_COLOUR = ("gamma", "srgb", "chromaticity")  # keys of `info`, which Pillow reads from PNG but does not write


class RestoredImage(Image.Image):
    """A PIL image whose `save` writes the metadata in its `info`, which Pillow does for few formats."""

    def save(
        self, fp: str | bytes | PathLike[str] | PathLike[bytes] | IO[bytes], format: str | None = None, **params: Any
    ) -> None:
        """Save the image as Pillow does, with its profile, EXIF, XMP, density and colour unless `params` has others."""
        kept = {name: self.info[name] for name in _KEPT if self.info.get(name)}
        suffix = Path(os.fsdecode(fp)).suffix.lower() if isinstance(fp, str | bytes | PathLike) else ""
        if "exif" in kept and (format or Image.registered_extensions().get(suffix)) == "TIFF":
            kept["exif"] = _exif_for_tiff(kept["exif"])
        super().save(fp, format, **{"pnginfo": _png_info(self.info), **kept, **params})


def with_metadata(restored: Image.Image, original: Image.Image, orientation: int, scale: int) -> RestoredImage:
    """Return the restored image with what is still true of the original's metadata.

    `orientation`: that of the original, which has been applied.
    """
    about = read_picture(original, 1 if restored.mode.startswith(("L", "I")) else 3, orientation, scale)
    info: dict[str | tuple[int, int], Any] = {name: original.info[name] for name in _COLOUR if name in original.info}
    if about.icc:
        info["icc_profile"] = about.icc
    if about.exif:
        info["exif"] = b"Exif\0\0" + renewed(about.exif, restored.size, about.density).finish()
    if about.xmp:
        info["xmp"] = renewed_xmp(about.xmp, restored.size)
    if about.density is not None and about.density.unit != 1:
        per_inch = 2.54 if about.density.unit == 3 else 1.0
        info["dpi"] = (float(about.density.x) * per_inch, float(about.density.y) * per_inch)
    restored.info = info
    restored.__class__ = RestoredImage  # Pillow has no other way to make an image of a class
    assert isinstance(restored, RestoredImage)
    return restored


def _exif_for_tiff(data: bytes) -> Image.Exif:
    """Return EXIF data whose Interop Pillow writes too; as bytes, it would keep the offset that it had."""
    exif = Image.Exif()
    exif.load(data)
    interop = exif.get_ifd(ExifTags.IFD.Interop)
    if interop:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = dict(interop)
    return exif


def _png_info(info: dict) -> PngInfo:
    chunks = PngInfo()
    if "gamma" in info:
        chunks.add(b"gAMA", struct.pack(">I", round(info["gamma"] * 100_000)))
    if "chromaticity" in info:
        chunks.add(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in info["chromaticity"])))
    if "srgb" in info:
        chunks.add(b"sRGB", bytes([info["srgb"]]))
    if info.get("xmp"):
        chunks.add(b"iTXt", XMP_KEYWORD + bytes(5) + info["xmp"])
    return chunks
