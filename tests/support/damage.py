"""Folders of paired photographs, intact or damaged in fifteen named ways."""

import zlib
from pathlib import Path

import numpy as np
from image_files import save_deep_png
from photographs import photograph
from PIL import Image

ERRORS = {  # name of the damage → the file and the words that the report must contain
    "truncated": "truncated.png: is damaged",
    "zero bytes": "zero.png: is empty",
    "text": "text.png: is not a readable image",
    "off by one": "off.png: is 120x119, its gt",
    "missing partner": "alone.png: has no partner",
    "duplicate stem": "double.png: has the same name 'double'",
    "alpha": "alpha.png: has transparent pixels",
    "CMYK": "cmyk.jpg: is CMYK",
    "bomb": "bomb.png: ",
}
WARNINGS = {
    "swapped pair": "swapped.png",
    "shifted by 3 pixels": "shifted.png",
    "train image in val": "leaked.png",
    "16-bit against 8-bit": "deep.png",
    "palette": "palette.png",
    "EXIF-rotated": "rotated.png",
}


def photographs(count: int, size: int = 120) -> list[np.ndarray]:
    """Return non-overlapping crops of photographs, (size, size, 3)."""
    cut = [
        photo[top : top + size, left : left + size]
        for photo in (photograph("astronaut"), photograph("coffee"), photograph("chelsea"))
        for top in range(0, photo.shape[0] - size, size)
        for left in range(0, photo.shape[1] - size, size)
    ]
    assert len(cut) >= count
    return cut[:count]


def noisy(clean: np.ndarray, seed: int, sigma: float = 25) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, clean.shape)
    return (clean + noise).round().clip(0, 255).astype(np.uint8)


class Pairs:
    """A folder with `input` and `gt` to which pairs are added."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        for side in ("input", "gt"):
            (folder / side).mkdir(parents=True)

    def add(self, name: str, clean: np.ndarray, input: np.ndarray | None = None) -> tuple[Path, Path]:
        """Return the files of input and gt."""
        self.count += 1
        files = (self.folder / "input" / f"{name}.png", self.folder / "gt" / f"{name}.png")
        for file, pixels in zip(files, (noisy(clean, self.count) if input is None else input, clean), strict=True):
            Image.fromarray(pixels).save(file)
        return files

    @property
    def source(self) -> dict[str, str]:
        return {side: str(self.folder / side) for side in ("input", "gt")}


def sound(base: Path, count: int = 12) -> tuple[Pairs, Pairs]:
    """Return training and validation pairs without damage."""
    photos = photographs(count + 3)
    train, val = Pairs(base / "train"), Pairs(base / "val")
    for number, photo in enumerate(photos):
        (train if number < count else val).add(f"sound{number:02d}", photo)
    return train, val


def damaged(base: Path, errors: bool = True) -> tuple[Pairs, Pairs]:
    """Return pairs among which are one with each of `WARNINGS` and, if `errors`, one with each of `ERRORS`."""
    train, val = sound(base, 8)
    photos = iter(photographs(24)[11:])

    swapped = next(photos)
    train.add("swapped", noisy(swapped, 99), swapped)
    shifted = next(photos)
    train.add("shifted", shifted, noisy(np.roll(shifted, (0, 3), (0, 1)), 98))
    leaked = next(photos)
    train.add("original", leaked)
    val.add("leaked", leaked)
    _, gt = train.add("deep", next(photos))
    save_deep_png(gt, np.asarray(Image.open(gt)).astype(np.uint16) * 257)
    input, gt = train.add("palette", next(photos))
    Image.open(input).quantize(64).save(input)
    exif = Image.Exif()
    exif[0x0112] = 3
    input, gt = train.add("rotated", next(photos))
    for file in (input, gt):
        Image.open(file).rotate(180).save(file, exif=exif)
    if errors:
        _add_errors(train, photos)
    return train, val


def _add_errors(train: Pairs, photos) -> None:
    input, _ = train.add("truncated", next(photos))
    input.write_bytes(input.read_bytes()[:-2000])
    train.add("zero", next(photos))[1].write_bytes(b"")
    train.add("text", next(photos))[0].write_text("this is no image\n" * 20)
    off = next(photos)
    train.add("off", off, noisy(off, 97)[:-1])
    alone = next(photos)
    train.add("alone", alone)[1].unlink()
    _, gt = train.add("double", alone[::-1])
    Image.open(gt).save(gt.with_suffix(".jpg"))
    input, _ = train.add("alpha", alone[:, ::-1])
    Image.fromarray(np.dstack([alone[:, ::-1], alone[..., 0]])).save(input)
    input, gt = train.add("cmyk", alone[::-1, ::-1])
    Image.open(gt).convert("CMYK").save(gt.with_suffix(".jpg"))
    gt.unlink()
    _, gt = train.add("bomb", alone.transpose(1, 0, 2))
    header = (30000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = gt.read_bytes()  # the header then declares 30000x30000 pixels
    gt.write_bytes(data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + data[33:])
