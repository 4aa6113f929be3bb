"""Scores have the same format wherever they are shown."""

import pytest

from accel_restore.metrics.format import format_score, metrics_of, titled_score


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("psnr", 25, "25.00 dB"), ("input_psnr", 20.346, "20.35 dB"), ("ssim", 0.81, "0.8100"), ("ssim", 1, "1.0000"),
        ("lpips", 0.05, "0.0500"), ("loss", 0.03, "0.03000"), ("loss", 12.5, "12.50"), ("psnr", float("inf"), "inf dB"),
    ],
)  # fmt: skip
def test_a_score_has_its_unit_and_significant_digits(name, value, text):
    assert format_score(name, value) == text


@pytest.mark.parametrize("name", ["my_psnr.lossless:score", "input_my_psnr.lossless:score", "my_psnr.lossless:score_2"])
def test_a_score_of_the_users_own_has_five_digits_and_no_unit(name):
    assert [format_score(name, value) for value in (0.123456, 12345.6, 1.2e-7)] == ["0.12346", "12346", "1.2e-07"]


def test_metrics_are_the_scores_that_inputs_have_too():
    scores = ["epoch", "loss", "a.b:c", "ssim", "psnr", "input_a.b:c", "input_psnr", "term_l1"]
    assert metrics_of(scores) == ["psnr", "ssim", "a.b:c"]


def test_differences_have_a_sign_and_captions_a_title():
    assert format_score("psnr_difference", 0.5, signed=True) == "+0.50 dB"
    assert format_score("ssim_difference", -0.01, signed=True) == "-0.0100"
    assert (titled_score("psnr", 25), titled_score("ssim", 0.5)) == ("25.00 dB PSNR", "0.5000 SSIM")
