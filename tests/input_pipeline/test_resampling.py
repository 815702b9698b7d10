"""Resizing of images and of label maps, pixel by pixel."""

import fractions
import math

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline import resampling, transforms
from tests.support import images


def test_nearest_reads_the_pixel_at_the_center():
  index = np.arange(5, dtype=np.int16)[None]
  # Centers at 5/6, 15/6 and 25/6; at 5/16, 15/16, 25/16, …
  assert resampling.resize_label_nearest(index, (1, 3)).tolist() == [[0, 2, 4]]
  actual = resampling.resize_label_nearest(index, (1, 8))
  assert actual.tolist() == [[0, 0, 1, 2, 2, 3, 4, 4]]


@pytest.mark.parametrize(
  ('resize', 'first', 'last'),
  [
    # Centers at 1.99, 5.97, 9.94, …, and 511.01.
    (
      resampling.resize_label_nearest,
      [1, 5, 9, 13, 17, 21],
      [495, 499, 503, 507, 511],
    ),
    (
      resampling.resize_label_by_floor,
      [0, 3, 7, 11, 15, 19],
      [493, 497, 501, 505, 509],
    ),
  ],
)
def test_labels_from_513_to_129(resize, first, last):
  index = np.arange(513, dtype=np.int16)
  actual = resize(np.stack([index] * 2), (1, 129))[0]
  assert actual[:6].tolist() == first
  assert actual[-5:].tolist() == last
  column = resize(index[:, None], (129, 1))[:, 0]
  np.testing.assert_array_equal(column, actual)


@pytest.mark.parametrize(
  ('resize', 'first'),
  [
    (resampling.resize_label_nearest, 1),  # The pixel after the center.
    (resampling.resize_label_by_floor, 0),
  ],
)
def test_halving_takes_every_other_pixel(resize, first):
  index = np.arange(224, dtype=np.int16)[None]
  assert resize(index, (1, 112))[0].tolist() == list(range(first, 224, 2))


@pytest.mark.parametrize(
  'resize', [resampling.resize_label_nearest, resampling.resize_label_by_floor]
)
def test_nearest_doubles_by_repeating(resize):
  label = np.array([[1, -1], [3, 4]], np.int16)
  actual = resize(label, (4, 2))
  assert actual.tolist() == [[1, -1], [1, -1], [3, 4], [3, 4]]
  assert actual.dtype == np.int16


@pytest.mark.parametrize(
  ('resize', 'offset'),
  [
    (resampling.resize_label_nearest, fractions.Fraction(1, 2)),
    (resampling.resize_label_by_floor, 0),
  ],
)
def test_nearest_equals_a_loop_in_exact_fractions(resize, offset):
  for rng in images.draws(20):
    height, width, *size = rng.integers(1, 40, 4).tolist()
    label = rng.integers(-1, 900, (height, width), np.int16)
    actual = resize(label, tuple(size))
    assert actual.shape == tuple(size)
    for i in range(size[0]):
      for j in range(size[1]):
        row = math.floor((i + offset) * height / size[0])
        column = math.floor((j + offset) * width / size[1])
        assert actual[i, j] == label[row, column]


def test_nearest_equals_pillow_and_opencv():
  """Except where a center lies on an edge: they round it either way."""
  for rng in images.draws(20):
    height, width, *size = rng.integers(1, 300, 4).tolist()
    label = rng.integers(0, 255, (height, width), np.uint8)
    actual = resampling.resize_label_nearest(label, tuple(size))
    pillow = PIL.Image.fromarray(label).resize(
      size[::-1], PIL.Image.Resampling.NEAREST
    )
    rows, columns = (
      np.flatnonzero((2 * np.arange(new) + 1) * old % (2 * new))
      for old, new in zip(label.shape, size, strict=True)
    )
    inside = np.ix_(rows, columns)
    np.testing.assert_array_equal(actual[inside], np.asarray(pillow)[inside])
    opencv = cv2.resize(
      label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    )
    opencv = opencv.reshape(size)
    np.testing.assert_array_equal(actual[inside], opencv[inside])


def test_a_part_equals_that_part_of_the_whole():
  resizes = (
    resampling.resize_label_nearest,
    resampling.resize_label_by_floor,
    resampling.resize_image_bilinear,
    resampling.resize_crop_antialiased,
  )
  for n, rng in enumerate(images.draws(200)):
    shape = tuple(rng.integers(1, 70, 2).tolist())
    factors = (0.5, 2.0, 4.0)[n % 3] if n % 2 else rng.uniform(0.3, 3.0, 2)
    size = tuple(
      np.maximum(np.multiply(shape, factors), 1).astype(int).tolist()
    )
    part = tuple(
      slice(*np.sort(rng.choice(side + 1, 2, replace=False)).tolist())
      for side in size
    )
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    for resize in resizes:
      source = image[..., 0] if 'label' in resize.__name__ else image
      actual = resize(source, size, part).astype(int)
      # The package of antialiasing rounds positions of a part otherwise.
      tolerance = int(resize is resampling.resize_crop_antialiased)
      np.testing.assert_allclose(
        actual, resize(source, size)[part], atol=tolerance
      )


def test_antialiased_pixels_are_those_of_pillow_but_for_rounding():
  for rng in images.draws(60):
    shape, size = rng.integers(1, 200, (2, 2)).tolist()
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    expected = PIL.Image.fromarray(image).resize(
      size[::-1], PIL.Image.Resampling.BILINEAR
    )
    actual = resampling.resize_crop_antialiased(image, tuple(size))
    np.testing.assert_allclose(actual.astype(int), np.asarray(expected), atol=1)


@pytest.mark.parametrize(
  'resize',
  [resampling.resize_image_bilinear, resampling.resize_crop_antialiased],
)
def test_a_blob_keeps_its_place(resize):
  at = np.array([70.3, 88.6])  # In pixels, with centers at integers.
  rows, columns = np.indices((150, 190))
  distance = (rows - at[0]) ** 2 + (columns - at[1]) ** 2
  blob = np.rint(250 * np.exp(-distance / (2 * 15.0**2))).astype(np.uint8)
  image = np.repeat(blob[..., None], 3, axis=2)
  for size in ((97, 131), (223, 257), (75, 95), (61, 300)):
    part = slice(1, size[0] - 1), slice(2, size[1] - 3)
    shown = resize(image, size, part)[..., 0].astype(float)
    shown[shown < 2] = 0  # Rounded tails.
    positions = np.indices(shown.shape) + np.array([1.5, 2.5])[:, None, None]
    center = (positions * shown).sum((1, 2)) / shown.sum()
    scale = np.array(image.shape[:2]) / size
    np.testing.assert_allclose(center * scale - 0.5, at, atol=0.01)


def test_bilinear_has_half_pixel_centers():
  # Twice as wide: at -0.25 (the border), 0.25, 0.75 and 1.25 (the border).
  actual = resampling.resize_image_bilinear(images.rgb([[0, 100]]), (1, 4))
  np.testing.assert_allclose(actual[0, :, 1], [0, 25, 75, 100], atol=1)
  # A fourth: at 1.5, between the inner pixels; the outer ones are not seen.
  actual = resampling.resize_image_bilinear(
    images.rgb([[0, 40, 80, 200]]), (1, 1)
  )
  np.testing.assert_allclose(actual, 60, atol=1)


@pytest.mark.parametrize(
  ('size', 'sides', 'expected'),
  [
    ((1052, 1914), (1280, 720), (704, 1280)),  # GTA5.
    ((1046, 1914), (1280, 720), (700, 1280)),
    ((760, 1280), (1280, 760), (760, 1280)),  # SYNTHIA.
    ((1024, 2048), (1024, 512), (512, 1024)),  # Cityscapes.
    ((1914, 1052), (1280, 720), (1280, 704)),  # Upright.
    ((10, 10), (100, 50), (50, 50)),  # Enlarged.
    ((1, 1000), (10, 5), (1, 10)),
    ((3, 4), (2, 2), (2, 2)),  # 1.5 is rounded up.
  ],
)
def test_size_within_sides(size, sides, expected):
  assert resampling.size_within_sides(size, sides) == expected


@pytest.mark.parametrize('sides', [(720, 1280), (1280, 0), (0, 5), (-4, -5)])
def test_sides_to_fit_are_checked(sides):
  with pytest.raises(ValueError, match='fit_sides: expected'):
    resampling.check_fit_sides(sides)


def test_a_scaled_crop_equals_a_crop_of_the_scaled_image():
  for rng in images.draws(50):
    shape, size = rng.integers(4, 60, (2, 2)).tolist()
    example = {
      'image': rng.integers(0, 256, (*shape, 3), np.uint8),
      'label': rng.integers(-1, 3, shape, np.int16),
      'valid': np.ones(shape, bool),
    }
    seed = int(rng.integers(1000))
    scaled = transforms.RandomCrop(tuple(size), scales=(0.5, 2.0))
    actual = scaled(example, np.random.default_rng(seed))
    again = np.random.default_rng(seed)
    factor = again.uniform(0.5, 2.0)
    whole = transforms.resize_example(
      example, tuple(int(factor * side) for side in shape)
    )
    expected = transforms.RandomCrop(tuple(size))(whole, again)
    for name, value in expected.items():
      np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_a_crop_that_fits_and_scales_resizes_once():
  image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  crop = transforms.RandomCrop(
    (6, 9), scales=(0.5, 0.5), fit_sides=(100, 12), fill='black'
  )
  # Twice the size, and half of that: the image as it is.
  cropped = crop({'image': image}, np.random.default_rng(1))
  np.testing.assert_array_equal(cropped['image'], image)
