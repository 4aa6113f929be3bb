"""Captions on pictures."""

from PIL import ImageFont

from accel_restore.utils.captions import shorten


def test_a_caption_that_is_too_long_keeps_its_scores():
    font = ImageFont.load_default(14)
    caption = "a long name of an image: input 14.01 dB PSNR"
    shown = shorten(caption, 120, font)
    assert font.getlength(shown) <= 120 < font.getlength(caption)
    assert shown.startswith("…") and shown.endswith("14.01 dB PSNR") and caption.endswith(shown[1:])
    assert shorten("010", 120, font) == "010"
