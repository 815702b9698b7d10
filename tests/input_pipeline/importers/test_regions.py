"""Outlines are painted by the centers of the pixels."""

import numpy as np
import pytest

from input_pipeline.importers import regions
from tests.support import messages


def disc(center, radius, size, vertices=400):
  """Returns the outline of a disc, and the pixels with their center in it."""
  angles = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
  points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + center
  y, x = np.mgrid[: size[0], : size[1]] + 0.5
  return points, np.hypot(x - center[0], y - center[1]) < radius


@pytest.mark.parametrize(
  ('center', 'radius'),
  [((50, 40), 30.0), ((50.5, 40.5), 17.3), ((33.21, 41.87), 9.6)],
)
def test_a_disc_agrees_with_its_outline(center, radius):
  points, expected = disc(center, radius, (80, 100))
  actual = regions.rasterize_region_polygon(
    regions.make_region_polygon(points), (80, 100)
  )
  area = np.pi * radius**2
  assert abs(actual.sum() - area) < 0.01 * area
  # Pixels that differ have their center within half a pixel of the circle.
  y, x = np.mgrid[:80, :100] + 0.5
  distance = np.abs(np.hypot(x - center[0], y - center[1]) - radius)
  assert distance[actual != expected].max(initial=0) < 0.5
  assert np.count_nonzero(actual != expected) < 0.02 * area
  # Its center of mass is that of the disc.
  for axis, expected_center in ((x, center[0]), (y, center[1])):
    assert abs(axis[actual].mean() - expected_center) < 0.1


def test_boxes_cover_whole_pixels():
  mask = np.zeros((5, 6), np.int32)
  region = regions.Region('a', (regions.make_region_box((1, 1), (4, 3)),))
  assert region.paint(mask, 7) == 6
  expected = np.zeros((5, 6), int)
  expected[1:3, 1:4] = 7
  np.testing.assert_array_equal(mask, expected)


def test_outlines_across_the_border_are_clipped():
  points, expected = disc((2, 3), 6, (12, 10))
  mask = np.zeros((12, 10), np.int32)
  regions.Region('a', (regions.make_region_polygon(points),)).paint(mask, 1)
  y, x = np.mgrid[:12, :10] + 0.5
  near = np.abs(np.hypot(x - 2, y - 3) - 6) < 0.3
  np.testing.assert_array_equal((mask == 1)[~near], expected[~near])
  outside = regions.Region('a', (regions.make_region_box((20, 1), (30, 9)),))
  assert outside.paint(mask, 2) == 0
  assert not (mask == 2).any()


def test_an_ellipse_is_rotated_clockwise():
  ellipse = regions.make_region_ellipse((40, 40), (30, 6), 30)
  actual = regions.rasterize_region_polygon(ellipse, (80, 80))
  assert abs(actual.sum() - np.pi * 30 * 6) < 0.01 * np.pi * 30 * 6
  # To the right it lies lower, where y is larger.
  y, x = np.nonzero(actual)
  assert y[x > 60].mean() > 48 and y[x < 20].mean() < 32


def test_later_regions_lie_over_earlier_ones():
  large = regions.Region('a', (regions.make_region_box((0, 0), (4, 4)),))
  small = regions.Region(
    '',
    bitmap=regions.encode_region_bitmap(np.eye(2, dtype=bool)),
    corner=(1, 2),
  )
  image = regions.AnnotatedImage(('x',), (4, 5), (large, small), 'x.json')
  mask, empty = image.paint({'a': 1, '': 255}, background=0)
  expected = [[1, 1, 1, 1, 0]] * 2 + [[1, 255, 1, 1, 0], [1, 1, 255, 1, 0]]
  assert mask.tolist() == expected
  assert empty == 0


@pytest.mark.parametrize(
  ('points', 'message'),
  [
    ([(1, 2), (3, 4)], 'expected an outline of at least 3 points x, y, got 2'),
    ([], 'expected an outline of at least 3 points x, y, got 0'),
    ([(1, 2, 3)] * 3, 'expected an outline of at least 3 points x, y'),
    ([(1, 'x')] * 3, 'expected an outline of points x, y, got no numbers'),
    ([(1, None)] * 3, 'expected an outline of points x, y, got no numbers'),
    ([(0, 0), (1, 1), (1e9, 0)], 'expected an outline in its image'),
    ([(0, 0), (1, 1), (float('nan'), 0)], 'expected an outline in its image'),
  ],
)
def test_points_that_are_no_outline_are_refused(points, message):
  actual = messages.message_of(regions.make_region_polygon, points)
  assert actual.startswith(message)


@pytest.mark.parametrize(
  ('bitmap', 'corner', 'message'),
  [
    ({'size': [2, 2], 'counts': b'~~~~'}, (0, 0), 'cannot be decoded'),
    ({'size': [9, 9], 'counts': b'1'}, (0, 0), ''),
    (
      regions.encode_region_bitmap(np.ones((2, 2), bool)),
      (3, 0),
      'in the image of 4x4 pixels, got 2x2 at column 3, row 0',
    ),
    (
      regions.encode_region_bitmap(np.ones((2, 2), bool)),
      (0, -1),
      'at column 0, row',
    ),
  ],
)
def test_bitmaps_that_do_not_fit_are_refused(bitmap, corner, message):
  region = regions.Region('a', bitmap=bitmap, corner=corner)
  image = regions.AnnotatedImage(('x',), (4, 4), (region,), 'x.json')
  actual = messages.message_of(image.paint, {'a': 1}, 0)
  assert actual.startswith("x.json: x, 'a': ") and message in actual
