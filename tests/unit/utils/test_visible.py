"""Pictures of images with any number of channels."""

import numpy as np
import pytest

from accel_restore.utils.visible import to_rgb

LEVELS = np.linspace(-0.5, 1.5, 31, dtype=np.float32)


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (31, [0, 1, 2])]
)
def test_the_first_three_channels_or_the_first_one_are_shown(channels, shown):
    image = np.random.default_rng(0).random((5, 7, channels), np.float32)
    picture = to_rgb(image)
    assert picture.dtype == np.uint8 and picture.shape == (5, 7, 3)
    assert (picture == np.round(image[..., shown] * 255)).all()


def test_values_outside_of_the_range_are_clamped():
    picture = to_rgb(LEVELS.reshape(1, -1, 1))
    assert picture[0, 0].tolist() == [0, 0, 0] and picture[0, -1].tolist() == [255, 255, 255]
    assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all()
