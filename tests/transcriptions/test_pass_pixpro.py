"""PixPro by hand (spec §2.10)."""

import math

import numpy as np
import pytest

from tests.transcriptions import pass_pixpro


def test_ppm():
  # Cosines: 0.6 of the first two, 0 and 0.8 with the third, -1 dropped.
  x = np.array([[[1.0, 0], [3, 4]], [[0, 2], [-5, 0]]])
  actual = pass_pixpro.ppm(x, np.eye(2), np.zeros(2))
  e, m, f = np.array([1.0, 0]), np.array([0.6, 0.8]), np.array([0, 1.0])
  sums = [
    e + 0.36 * m,
    0.36 * e + m + 0.64 * f,
    0.64 * m + f,
    -e,
  ]
  expected = [v / np.linalg.norm(v) for v in sums]
  np.testing.assert_allclose(actual.reshape(4, 2), expected)
  # The transform is of the values alone: rotated values, rotated result.
  turn = np.array([[0.0, 1], [-1, 0]])
  np.testing.assert_allclose(
    pass_pixpro.ppm(x, turn, np.zeros(2)).reshape(4, 2),
    np.array(expected) @ turn,
  )
  biased = pass_pixpro.ppm(x, 0 * turn, np.array([0.0, 7.0]))
  np.testing.assert_allclose(biased.reshape(4, 2), [f] * 4)
  loose = pass_pixpro.ppm(x, np.eye(2), np.zeros(2), power=1, clamp=-9)
  np.testing.assert_allclose(
    loose[1, 1], -(e + 0.6 * m + e) / np.linalg.norm(2 * e + 0.6 * m)
  )


def test_pixpro_masks():
  whole = (0, 0, 9, 9)
  # Neighbors of a square grid are 0.707 diagonals apart: only i = j.
  actual = pass_pixpro.pixpro_masks(whole, whole, False, False, 3, (9, 9))
  np.testing.assert_array_equal(actual, np.eye(9))
  wider = pass_pixpro.pixpro_masks(whole, whole, False, False, 3, (9, 9), 0.71)
  assert wider[4].tolist() == [0, 1, 0, 1, 1, 1, 0, 1, 0]
  actual = pass_pixpro.pixpro_masks(whole, whole, True, False, 2, (9, 9))
  np.testing.assert_array_equal(actual, np.eye(4)[[1, 0, 3, 2]])
  far = pass_pixpro.pixpro_masks(
    (0, 0, 9, 9), (50, 0, 9, 9), False, False, 3, (9, 99)
  )
  assert not far.any()


def test_pixpro_masks_of_different_bins():
  # Source 11 by 11: a is 0 to 1, b 0 to 0.5 each way, 2 cells a side. Centers
  # 1/4, 3/4 and 1/8, 3/8; the larger diagonal is sqrt2 / 2.
  actual = pass_pixpro.pixpro_masks(
    (0, 0, 11, 11), (0, 0, 6, 6), False, False, 2, (11,) * 2
  )
  # The first cell of a is (1/8, 1/8) from all of b's: 0.25 diagonals. The
  # second is (3/8, 1/8) from b's second: 0.559, and (5/8, 1/8) from the first.
  assert actual[0].tolist() == [True, True, True, True]
  assert actual[1].tolist() == [False, True, False, True]
  assert actual[2].tolist() == [False, False, True, True]
  assert actual[3].tolist() == [False, False, False, False]  # 3/8, 3/8: 0.75


def test_pixpro_masks_of_boxes_inside():
  # Source of 17 rows and 33 columns: steps of 1/16 down and 1/32 across. One
  # cell each: 3/16 across and 4/16 down, a diagonal of 5/16; half a box to the
  # right is 3/32, two boxes down 8/16.
  box = (4, 3, 7, 5)
  arguments = False, False, 1, (17, 33)
  for other, distance in [
    ((4, 3, 7, 5), 0),
    ((7, 3, 7, 5), 3 / 10),
    ((4, 11, 7, 5), 8 / 5),
    ((14, 3, 7, 5), 1),
    ((10, 7, 7, 5), 1),  # 3/16 across, 4/16 down
    ((4, 3, 1, 1), 1 / 2),  # a point at the corner; the larger bin counts
  ]:
    assert not pass_pixpro.pixpro_masks(box, other, *arguments, distance).any()
    assert pass_pixpro.pixpro_masks(
      box, other, *arguments, distance + 1e-9
    ).all()
  # Centers 7/32, 5/16 and 9/32, 11/16; the larger diagonal is 1/16, 8/16.
  distance = math.sqrt((1 + 36) / (1 + 64))
  for threshold, positive in [
    (distance - 1e-9, False),
    (distance + 1e-9, True),
  ]:
    actual = pass_pixpro.pixpro_masks(box, (8, 7, 3, 9), *arguments, threshold)
    assert actual.tolist() == [[positive]]


def test_pixpro_loss():
  y_a = np.array([[[[1.0, 0], [0, 1.0]]]])
  y_b = np.array([[[[0, 1.0], [0, 1.0]]]])
  k_a, k_b = np.array([[[[3.0, 4], [5, 0]]]]), np.array([[[[0, 2.0], [6, 8]]]])
  mask = np.array([[[False, True], [False, True]]])
  # a to b: (0.6 + 0.8) / 2. b to a: b's second with both of a's: (0.8 + 0) / 2.
  actual = pass_pixpro.pixpro_loss(y_a, y_b, k_a, k_b, mask)
  assert actual == pytest.approx(-2 * (0.7 + 0.4), rel=1e-5)
  two = [np.concatenate([x, x]) for x in (y_a, y_b, k_a, k_b)]
  actual = pass_pixpro.pixpro_loss(*two, np.concatenate([mask, mask & False]))
  assert actual == pytest.approx(-1.1, rel=1e-5)
  one = np.ones((1, 1, 1, 1))
  actual = pass_pixpro.pixpro_loss(one, one, one, one, np.ones((1, 1, 1), bool))
  assert actual == pytest.approx(-4 / (1 + 1e-6), rel=1e-12)
