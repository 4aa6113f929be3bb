"""Pictures of a run: validation images side by side, and the curves of loss and learning rate."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from accel_restore.metrics.format import titled_score
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.psnr_ssim import psnr
from accel_restore.tracking.report.pictures import describe_tiles
from accel_restore.tracking.run_files import read_lines
from accel_restore.utils.redaction import redacted

_LARGEST = 400  # pixels of a tile's side
_CAPTION = 22


class Samples:
    """Collects the first validation images as this rank sees them: input, output and gt, cut to their centre."""

    def __init__(self, count: int, names: list[str], protocol: Protocol):
        self.count, self.names, self.protocol = count, redacted(names[:count]), protocol
        self.tiles: dict[int, list[tuple[str, np.ndarray]]] = {}

    def look(self, index: int, input: Tensor, output: Tensor, gt: Tensor) -> None:
        """Shapes: (1, C, H, W) in [0, 1]."""
        if index >= self.count:
            return
        before, after, clean = (self.protocol.prepare(image) for image in (input, output, gt))
        before, after = (titled_score("psnr", float(psnr(image, clean))) for image in (before, after))
        captions = (f"{self.names[index]}: input {before}", f"output {after}", "gt")
        self.tiles[index] = [
            (caption, _tile(image)) for caption, image in zip(captions, (input, output, gt), strict=True)
        ]


def _tile(image: Tensor) -> np.ndarray:
    height, width = image.shape[-2:]
    top, left = max(0, height - _LARGEST) // 2, max(0, width - _LARGEST) // 2
    cut = image[0, :, top : top + _LARGEST, left : left + _LARGEST].clamp(0, 1)
    pixels = (cut.float().cpu() * 255).round().byte().permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def worst_part(images: list[Tensor], output: Tensor, gt: Tensor) -> list[np.ndarray]:
    """The images (1, C, H, W) as tiles of the place where output and gt differ most, in the squares."""
    height, width = (min(_LARGEST, side) for side in gt.shape[-2:])
    errors = (output.clamp(0, 1) - gt).double().square().sum((0, 1)).cpu().cumsum(0).cumsum(1)
    sums = functional.pad(errors, (1, 0, 1, 0))  # of all above and to the left
    sums = sums[height:] - sums[:-height]
    sums = sums[:, width:] - sums[:, :-width]  # of each window
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return [_tile(image[..., top : top + height, left : left + width]) for image in images]


def draw_samples(path: Path, rows: list[list[tuple[str, np.ndarray]]]) -> None:
    """Write a picture with one row of captioned tiles per image."""
    font = ImageFont.load_default(14)
    height = sum(row[0][1].shape[0] + _CAPTION for row in rows)
    width = max(sum(tile.shape[1] + 4 for _, tile in row) for row in rows)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    top, boxes = 0, []
    for row in rows:
        left = 0
        boxes.append([])
        for caption, tile in row:
            place = (left, top + _CAPTION, left + tile.shape[1], top + _CAPTION + tile.shape[0])
            boxes[-1].append({"caption": caption, "box": place})
            pen.text((left + 2, top + 2), fitting(caption, tile.shape[1], font), "black", font)
            canvas.paste(Image.fromarray(tile), place)
            left += tile.shape[1] + 4
        top += row[0][1].shape[0] + _CAPTION
    path.parent.mkdir(exist_ok=True)
    canvas.save(path, pnginfo=describe_tiles(boxes))


def fitting(caption: str, width: int, font: ImageFont.ImageFont) -> str:
    """What of a caption fits into so many pixels: its end, as figures matter more than a long name."""
    while len(caption) > 1 and font.getlength(caption) > width:
        caption = f"…{caption[2:]}"
    return caption


def draw_curves(metrics: Path, path: Path) -> None:
    """Write the curves of a metrics.jsonl: loss and learning rate per rank, validation scores per epoch (from 1)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = read_lines(metrics)
    steps = [line for line in lines if line["event"] == "train"]
    epochs = [line for line in lines if line["event"] == "epoch" and line["val_loss"] is not None]
    scores = [key for key in ("val_psnr", "val_ssim") if epochs and epochs[0].get(key) is not None]
    figure = Figure(figsize=(10, 3.2 * (2 + len(scores)) / 2 + 1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-(3 + len(scores)) // 2), 2).flatten()
    ranks = sorted({line["rank"] for line in steps})
    for panel, key in zip(panels, ("loss", "lr"), strict=False):
        for rank in ranks:
            mine = [line for line in steps if line["rank"] == rank]
            style = ("-" if rank == 0 else "--") if len(mine) > 30 else ".-"
            drawn = "steps-post" if key == "lr" else "default"
            values = [_number(x[key]) for x in mine]
            panel.plot([x["step"] for x in mine], values, style, drawstyle=drawn, label=f"rank {rank}", lw=1)
        panel.set(title=f"train/{key} per rank", xlabel="step")
        if 0 < len(ranks) <= 16:
            panel.legend(fontsize=7)
    for panel, key in zip(panels[2:], ["val_loss", *scores], strict=False):
        panel.plot([x["epoch"] + 1 for x in epochs], [_number(x[key]) for x in epochs], ".-", lw=1)
        best = [x for x in epochs if x["is_best"]][-1:]
        panel.plot([x["epoch"] + 1 for x in best], [_number(x[key]) for x in best], "*", ms=11, label="best")
        panel.set(title=key.replace("_", "/"), xlabel="epoch")
        panel.legend(fontsize=7)
    for panel in panels[3 + len(scores) :]:
        panel.axis("off")
    for panel in panels[: 3 + len(scores)]:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=110)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
