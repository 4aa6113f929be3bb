"""Scores and epochs as people read them, the same wherever they are shown."""

import pytest
from made_run import EPOCHS, made_run
from PIL import ImageFont

from accel_restore.metrics.format import format_score, titled_score
from accel_restore.tracking.pictures import draw_curves, fitting


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("psnr", 25, "25.00 dB"), ("input_psnr", 20.346, "20.35 dB"), ("ssim", 0.81, "0.8100"), ("ssim", 1, "1.0000"),
        ("lpips", 0.05, "0.0500"), ("loss", 0.03, "0.03000"), ("loss", 12.5, "12.50"), ("psnr", float("inf"), "inf dB"),
    ],
)  # fmt: skip
def test_a_score_has_its_unit_and_as_many_digits_as_mean_something(name, value, text):
    assert format_score(name, value) == text


def test_differences_have_a_sign_and_captions_a_name():
    assert format_score("psnr_difference", 0.5, signed=True) == "+0.50 dB"
    assert format_score("ssim_difference", -0.01, signed=True) == "-0.0100"
    assert (titled_score("psnr", 25), titled_score("ssim", 0.5)) == ("25.00 dB PSNR", "0.5000 SSIM")


def test_the_curves_count_epochs_from_1_in_whole_ones(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_curves(made_run(tmp_path / "run") / "metrics.jsonl", tmp_path / "curves.png")
    panels = [panel for panel in drawn[0].axes if panel.get_xlabel() == "epoch"]
    assert len(panels) == 3
    for panel in panels:
        drawn, best = (list(line.get_xdata()) for line in panel.lines)
        assert drawn == list(range(1, EPOCHS + 1)) and best == [2]
        assert all(float(tick).is_integer() for tick in panel.get_xticks())


def test_a_caption_that_is_too_long_keeps_its_figures():
    font = ImageFont.load_default(14)
    caption = "a long name of an image: input 14.01 dB PSNR"
    shown = fitting(caption, 120, font)
    assert font.getlength(shown) <= 120 < font.getlength(caption)
    assert shown.startswith("…") and shown.endswith("14.01 dB PSNR") and caption.endswith(shown[1:])
    assert fitting("010", 120, font) == "010"
