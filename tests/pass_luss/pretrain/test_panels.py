"""Drawn overlaps of views, and the warning about a collapse."""

import numpy as np

from pass_luss.pretrain import panels


def test_overlap_corners():
  """The first view is the left half, the second the middle, flipped."""
  boxes = np.array([[0, 0, 10, 10], [0, 5, 10, 10]], np.float32)
  first, second = panels.view_overlap_corners(boxes, np.array([False, True]))
  assert first == (0.0, 0.5, 1.0, 1.0)
  assert second == (0.0, 0.5, 1.0, 1.0)  # The left half, flipped.
  _, plain = panels.view_overlap_corners(boxes, np.array([False, False]))
  assert plain == (0.0, 0.0, 1.0, 0.5)
  apart = np.array([[0, 0, 4, 4], [6, 0, 4, 4]], np.float32)
  assert panels.view_overlap_corners(apart, np.zeros(2, bool)) == [None, None]


def test_a_rectangle_is_drawn_on_a_copy():
  image = np.zeros((8, 10, 3), np.uint8)
  drawn = panels.draw_overlap_rectangle(image, (0.0, 0.0, 1.0, 1.0))
  assert drawn[0].any(-1).all() and drawn[:, 0].any(-1).all()
  assert not drawn[1:-1, 1:-1].any()
  assert not image.any()
  np.testing.assert_array_equal(
    panels.draw_overlap_rectangle(image, None), image
  )


def test_a_collapse_is_warned_of():
  fine = {'watch/prototype_usage': 0.9, 'watch/feature_spread': 0.1}
  assert panels.collapse_warning(fine) is None
  assert (
    panels.collapse_warning({'watch/feature_spread': 0.1}) is None
  )  # No prototypes.
  for name in fine:
    warning = panels.collapse_warning({**fine, name: 0.0001})
    assert 'collapsed' in warning and '\n' not in warning
