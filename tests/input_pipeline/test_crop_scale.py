"""Crops are chosen from the shape of images and the size of objects."""

import numpy as np
import pytest

from input_pipeline import crop_scale, transforms
from input_pipeline.sources import object_sizes


def fit(sizes, shares=(), **fields):
  counts = object_sizes.object_share_histogram(shares)
  return crop_scale.FittedInceptionCrop(**fields).fit(sizes, counts).crop


@pytest.mark.parametrize(
  ('size', 'expected'),
  [
    ((600, 400), (144, 96)),  # whole people
    ((720, 960), (96, 128)),
    ((500, 500), (112, 112)),
    ((100, 3000), (80, 160)),  # at most twice as wide
    ((41, 47), (48, 48)),  # not larger than the images, but for padding
  ],
)
def test_crops_have_the_shape_of_the_images(size, expected):
  crop = fit([size] * 3 + [(10, 10)])
  assert crop.size == expected
  # Boxes are about as wide as the crop, so that objects keep their shape.
  low, high = crop.aspect
  assert low * high == pytest.approx((expected[1] / expected[0]) ** 2)


def test_crops_show_most_of_an_image_of_large_objects():
  assert fit([(600, 400)], [0.01, 0.02, 0.3]).area == (0.4, 1.0)
  # The size of objects is unknown.
  assert fit([(600, 400)]).area == (0.4, 1.0)


def test_crops_show_a_part_where_objects_are_small():
  crop = fit([(3000, 4000)], [1e-3] * 9 + [0.3])
  low, high = crop.area
  assert low == pytest.approx(0.4 * high, abs=1e-3)
  # An object has at least eight pixels a side in the smallest scale.
  share = object_sizes.object_share_quantile(
    object_sizes.object_share_histogram([1e-3]), 0.5
  )
  side = np.sqrt(share / high * crop.size[0] * crop.size[1])
  assert side == pytest.approx(8, rel=0.02)
  # Crops are not enlarged.
  assert fit([(200, 200)], [1e-4] * 9).area[1] > 112 * 112 / 200**2 - 1e-3


def test_given_fields_are_kept():
  crop = fit([(600, 400)], [1e-3], size=(32, 48), area=(0.2, 0.3))
  assert (crop.size, crop.area) == ((32, 48), (0.2, 0.3))
  assert crop_scale.FittedInceptionCrop((32, 48), (0.2, 0.3)).is_complete
  assert fit([(600, 400)], size=(32, 48)).area == (0.4, 1.0)
  with pytest.raises(ValueError, match='area: expected 0 < low'):
    crop_scale.FittedInceptionCrop(area=(0.5, 0.3))


def test_chosen_areas_have_an_upper_limit():
  assert fit([(3000, 4000)], max_area=0.5).area == (0.2, 0.5)
  # Not at the price of enlarged crops.
  assert fit([(112, 112)], max_area=0.5).area[1] == 1
  assert fit([(600, 400)], max_area=0.5, area=(0.6, 0.9)).area == (0.6, 0.9)
  with pytest.raises(ValueError, match='max_area: expected above 0'):
    fit([(600, 400)], max_area=0.0)


def test_whole_images_are_evaluated_at_the_mean_scale_of_crops():
  crop = transforms.InceptionCrop((100, 150), (0.0625, 0.4375))
  # A crop of a quarter of the image: twice its side.
  assert crop_scale.short_side_at_crop_scale(crop) == 200
