"""Crops of images whose long side has a random length."""

import numpy as np
import PIL.Image
import pytest

from input_pipeline import long_side_crop


def test_the_long_side_is_drawn_and_padding_is_marked():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (30, 40, 3), np.uint8)
  example = {'image': image, 'valid': np.ones((30, 40), bool)}
  crop = long_side_crop.LongSideCrop((24, 24), (20, 24))
  widths = set()
  for seed in range(60):
    cropped = crop(example, np.random.default_rng(seed))
    assert cropped['image'].shape == (24, 24, 3)
    valid = cropped['valid']
    height, width = (int(valid.any(axis).sum()) for axis in (1, 0))
    assert valid.sum() == height * width
    assert height == round(0.75 * width)
    widths.add(width)
    # Resized as by Pillow; the mean color elsewhere.
    expected = PIL.Image.fromarray(image).resize(
      (width, height), PIL.Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(
      cropped['image'][valid].reshape(height, width, 3), np.asarray(expected)
    )
    assert (cropped['image'][~valid] == (124, 116, 104)).all()
  assert widths == {20, 21, 22, 23, 24}


@pytest.mark.parametrize('long_side', [(0, 4), (5, 4)])
def test_lengths_that_do_not_fit(long_side):
  with pytest.raises(ValueError, match='long_side: expected 1 <= low <= high'):
    long_side_crop.LongSideCrop((4, 4), long_side)
