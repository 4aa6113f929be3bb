"""Pictures of a run: the curves, and the sheets in `samples/`."""

import json

import numpy as np
import pytest
from made_run import EPOCHS, made_run
from PIL import Image, ImageFont

from accel_restore.tracking import pictures
from accel_restore.tracking.curves import draw_curves
from accel_restore.tracking.pictures import draw_samples
from accel_restore.tracking.report.series import Metrics
from accel_restore.utils.captions import shorten


def test_the_curves_count_epochs_from_1_with_integer_ticks(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    metrics = Metrics(made_run(tmp_path / "run") / "metrics.jsonl")
    metrics.read()
    draw_curves(metrics, tmp_path / "curves.png")
    panels = [panel for panel in figures[0].axes if panel.get_xlabel() == "epoch"]
    assert len(panels) == 3
    for panel in panels:
        epochs, best = (list(line.get_xdata()) for line in panel.lines)
        assert epochs == list(range(1, EPOCHS + 1)) and best == [2]
        assert all(float(tick).is_integer() for tick in panel.get_xticks())


def test_a_single_epoch_is_drawn_with_one_integer_tick(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    folder = made_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["epoch"] == 1))
    metrics = Metrics(folder / "metrics.jsonl")
    metrics.read()
    draw_curves(metrics, tmp_path / "curves.png")
    panels = [panel for panel in figures[0].axes if panel.get_xlabel() == "epoch"]
    assert panels and all(list(panel.get_xticks()) == [1, 2, 3] for panel in panels)  # 2 is in view


@pytest.mark.parametrize("side", [16, 64, 400])
def test_a_small_tile_leaves_room_for_its_whole_caption(tmp_path, monkeypatch, side):
    drawn, font = [], ImageFont.load_default(14)
    monkeypatch.setattr(
        pictures, "draw_caption", lambda pen, place, text, width: drawn.append((text, shorten(text, width, font)))
    )
    captions = ("000: input 20.48 dB PSNR", "output 22.47 dB PSNR", "gt")
    tiles = [(caption, np.full((side, side, 3), 40 * index, np.uint8)) for index, caption in enumerate(captions)]
    draw_samples(tmp_path / "sheet.png", [tiles, tiles])
    assert len(drawn) == 6 and all(text == shown for text, shown in drawn)
    sheet = Image.open(tmp_path / "sheet.png")
    for row in json.loads(sheet.info["accel_restore"]):
        for index, tile in enumerate(row):
            assert np.array_equal(np.asarray(sheet.crop(tile["box"])), tiles[index][1])


def test_a_long_caption_widens_a_small_tile_to_that_of_a_large_one_at_most(tmp_path):
    draw_samples(tmp_path / "sheet.png", [[("a long name " * 40, np.zeros((16, 16, 3), np.uint8))]])
    assert Image.open(tmp_path / "sheet.png").width <= 404
